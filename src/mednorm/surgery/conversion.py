"""What `mednorm.convert` changed, what it left, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

NOT_ASKED_FOR = "not asked for by `where`"


@dataclass(frozen=True)
class ConvertedLayer:
    """One layer that was changed.

    Attributes:
        name: in the network.
        source: class it was of.
        target: class it is of now.
        exact: whether its output in evaluation is the same, up to rounding.
        notes: what did not carry over, and what to know.

    """

    name: str
    source: str
    target: str
    exact: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftLayer:
    """One layer, or one activation that was to be fused, that was left as it is.

    Attributes:
        name: in the network.
        kind: its class, or the name of a function.
        reason: why.

    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What `mednorm.convert` did.

    Attributes:
        model: the network; the same object in place, unless `notes` says otherwise.
        to: what was asked for.
        changed: the layers changed, in the network's order.
        left: those left, each with the reason.
        notes: what concerns the whole.

    Example:
        >>> layer = ConvertedLayer("bn", "BatchNorm2d", "GroupNorm", False, ("Running statistics are gone.",))
        >>> report = ConversionReport(None, "group", (layer,), (LeftLayer("ln", "LayerNorm", "another axis"),))
        >>> report.exact
        False
        >>> print(report)
        1 layer converted to group, 1 left; outputs in evaluation DIFFER after 1 of them.
          bn  BatchNorm2d -> GroupNorm  DIFFERS  [1]
          ln  LayerNorm  left: another axis
          1. Running statistics are gone.

    """

    model: Any = field(repr=False, compare=False)
    to: str
    changed: tuple[ConvertedLayer, ...]
    left: tuple[LeftLayer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every changed layer gives the same output in evaluation, up to rounding; True where none changed."""
        return all(layer.exact for layer in self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the network, ready for JSON."""
        return {
            "to": self.to,
            "exact": self.exact,
            "changed": [{**asdict(layer), "notes": list(layer.notes)} for layer in self.changed],
            "left": [asdict(layer) for layer in self.left],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Table of what was changed and left, each change with the numbers of the notes below."""
        distinct = list(dict.fromkeys(note for layer in self.changed for note in layer.notes))
        # Whoever says `where` knows that the rest stays: one line for all of it.
        told = [layer for layer in self.left if layer.reason != NOT_ASKED_FOR]
        names = [*(layer.name for layer in self.changed), *(layer.name for layer in told)]
        width = max(map(len, names), default=0)
        kinds = max((len(f"{layer.source} -> {layer.target}") for layer in self.changed), default=0)
        lines = [self._headline()]
        for layer in self.changed:
            numbers = ", ".join(str(distinct.index(note) + 1) for note in layer.notes)
            parts = [f"{layer.source} -> {layer.target}".ljust(kinds), "exact  " if layer.exact else "DIFFERS"]
            lines.append(f"  {layer.name:{width}}  {'  '.join(parts)}" + (f"  [{numbers}]" if numbers else ""))
        lines += [f"  {layer.name:{width}}  {layer.kind}  left: {layer.reason}" for layer in told]
        if len(told) < len(self.left):
            lines.append(f"  {_count(len(self.left) - len(told), 'layer')} left: {NOT_ASKED_FOR}")
        lines += [f"  {number}. {note}" for number, note in enumerate(distinct, 1)]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in lines)

    def _headline(self) -> str:
        if not self.changed and not self.left:
            return "Found no normalization layer: nothing was changed."
        if not self.changed:
            return f"Nothing was changed: none of {_count(len(self.left), 'layer')} was converted to {self.to}."
        different = sum(not layer.exact for layer in self.changed)
        outcome = f"DIFFER after {different} of them" if different else "are equal"
        left = f", {len(self.left)} left" if self.left else ""
        return f"{_count(len(self.changed), 'layer')} converted to {self.to}{left}; outputs in evaluation {outcome}."


def kind_of(module: nn.Module) -> str:
    """Name a layer's class, and what it does besides: ``BatchNorm(sync) + relu``."""
    name = type(module).__name__
    if name == "BatchNorm" and getattr(module, "process_group", None) is not None:
        name += "(sync)"
    activation = getattr(module, "activation", None)
    return f"{name} + {activation}" if isinstance(activation, str) else name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
