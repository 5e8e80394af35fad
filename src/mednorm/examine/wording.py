"""An examination in words: one headline, and a plain text of the findings by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mednorm.examine.findings import Evidence, Finding, Severity
from mednorm.examine.rules import RULES

if TYPE_CHECKING:
    from mednorm.examine.examination import Examination


@dataclass(frozen=True)
class Group:
    """What one rule found.

    Attributes:
        code: of the rule.
        title: what is wrong.
        severity: the gravest.
        layers: names of the layers, in the order of the network; empty where it is about the network as a whole.
        sites: that it is about, the one farthest off first.
        first: the finding that shows it most, or that is about the network as a whole.
        worst: the layer that shows it most; empty where none is named.
        remedies: each once.

    """

    code: str
    title: str
    severity: Severity
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    first: Finding
    worst: str
    remedies: tuple[str, ...]


def groups(found: Examination) -> list[Group]:
    """Gather the findings by rule, the diagnosis first."""
    titles = {rule.code: rule.title for rule in RULES}
    made = []
    for code, findings in found.by_code().items():
        here = {finding.layer for finding in findings}
        made.append(
            Group(
                code=code,
                title=titles.get(code, code),
                severity=findings[0].severity,
                layers=tuple(layer.name for layer in found.probed.layers if layer.name in here),
                sites=tuple(dict.fromkeys(finding.site for finding in findings if finding.site is not None)),
                first=findings[0],
                worst=next((finding.layer for finding in findings if finding.layer), ""),
                remedies=tuple(dict.fromkeys(finding.remedy for finding in findings if finding.remedy)),
            )
        )
    return made


def headline(found: Examination) -> str:
    """Say what the diagnosis is, in plain words."""
    probed, count = found.probed, len(found.probed.layers)
    if not count:
        return (
            f"{probed.network} has no normalization layer that takes statistics over the batch: there is nothing to "
            "examine."
        )
    images = plural(probed.images, "image")
    if not found.findings:
        return f"No finding: the normalization of {probed.network}, {plural(count, 'layer')}, fits these {images}."
    first, *others = groups(found)
    said = f"{first.title.rstrip('.')} ({first.code}, {first.severity}{where(first, count)})."
    beside = f" Beside it: {', '.join(other.code for other in others)}." if others else ""
    return f"{said} {sentence(first.first.message)}{beside}"


def where(group: Group, layers: int) -> str:
    """Say in how many layers, and at which sites."""
    sites = f" at {', '.join(group.sites)}" if group.sites else ""
    return (f" in {len(group.layers)} of {plural(layers, 'layer')}" if group.layers else "") + sites


def evidence(given: Evidence) -> str:
    """Say one number, and the threshold it crossed.

    Example:
        >>> evidence(Evidence("noise of the batch mean", 0.31234, 0.1, "σ"))
        'noise of the batch mean 0.312 σ (threshold 0.1)'

    """
    unit = f" {given.unit}" if given.unit else ""
    crossed = "" if given.threshold is None else f" (threshold {given.threshold:.3g})"
    return f"{given.name} {given.value:.3g}{unit}{crossed}"


def plural(count: int, noun: str) -> str:
    """Say how many there are.

    Example:
        >>> plural(1, "layer"), plural(2, "layer")
        ('1 layer', '2 layers')

    """
    return f"{count} {noun}{'s' * (count != 1)}"


def sentence(text: str) -> str:
    """Begin with a capital, but for Greek letters, whose capitals mean something else, and end with a full stop."""
    text = text.strip()
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return text if not text else first + text[1:] + ("" if text[-1] in ".!?" else ".")


def text(found: Examination) -> str:
    """Lay out the diagnosis, and each rule's findings with what mends them."""
    lines = [headline(found)]
    for group in groups(found):
        lines += ["", f"{group.severity:8}{group.code}  {group.title}{where(group, len(found.probed.layers))}"]
        lines += [f"        {evidence(each)}" for each in group.first.evidence]
        if group.worst:
            lines.append(f"        worst in {group.worst}")
        lines += [f"        mended by: {group.remedies[0]}"] if group.remedies else []
    return "\n".join(lines)
