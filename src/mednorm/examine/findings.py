"""What a rule is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mednorm.examine.records import Probed

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Evidence:
    """One number that was measured, and what it was held against.

    Attributes:
        name: what was measured, such as "noise of the batch mean"; one name a rule and quantity.
        value: what came.
        threshold: that it crossed; None for a number that only explains.
        unit: such as "σ", "%" or "updates".

    """

    name: str
    value: float
    threshold: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one layer.

    Attributes:
        code: of the rule, such as ``"MN003"``.
        severity: ``"error"`` where the network's results suffer, ``"warning"`` where they are likely to, ``"info"``
            for what is merely useless.
        layer: its name; empty for the network as a whole.
        message: one sentence with the numbers in it.
        evidence: the numbers, the decisive one first.
        remedy: a line of Python that runs as it is where `mednorm` and `torch` are imported, `model` is the network and
            `loader` gives images for it, under ``"image"`` where single ones are looked for, and `loader_of_site`
            those of one site. A line with … in it is a template: what is meant there only its reader knows.
        site: that the finding is about; None for all.
        share: of the train/eval gap that this layer explains, in [0, 1]; None where that was not asked.

    """

    code: str
    severity: Severity
    layer: str
    message: str
    evidence: tuple[Evidence, ...]
    remedy: str
    site: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Rule:
    """One kind of failure.

    Attributes:
        code: stable, never used again for another.
        name: a slug, such as ``"small-batch"``.
        title: a line that says what is wrong.
        check: finds it. Yields nothing where what it needs was not seen.
        symptom: whether something else causes it, so that causes of the same severity are said first.
        needs_data: whether it looks at what reached the layers, and not at their state alone.

    """

    code: str
    name: str
    title: str
    check: Callable[[Probed], Iterable[Finding]]
    symptom: bool = False
    needs_data: bool = True
