"""What was folded, what was left and why, and how far the outputs moved."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class FoldedLayer:
    """One normalization that became part of another layer.

    Attributes:
        norm: its name.
        into: name of the convolution or dense layer that does its work now.
        direction: ``"before"`` if that layer comes before the normalization, ``"after"`` if after it.
        instead: what stands in its place: ``"Identity"``, or the activation that it applied itself.
        max_difference: largest absolute difference of the two layers together on random numbers, before and after.
        scale: largest magnitude of what they gave before.

    """

    norm: str
    into: str
    direction: str
    instead: str
    max_difference: float
    scale: float


@dataclass(frozen=True)
class LeftNorm:
    """One normalization that is as it was.

    Attributes:
        norm: its name.
        kind: its class.
        reason: why folding it would not be exact, or could not be shown to be.

    """

    norm: str
    kind: str
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """What `mednorm.fold` did.

    Attributes:
        model: the folded network.
        folded: the normalizations that are gone, in the order of the network.
        left: those that stay.
        notes: what concerns the whole.
        tolerance: what a difference was held to, relative to the output.
        max_difference: largest absolute difference of the network's outputs on the example; None without one.
        scale: largest magnitude of those outputs before; None without an example.

    Example:
        >>> layer = FoldedLayer("bn", "conv", "before", "Identity", 2e-7, 3.5)
        >>> print(FoldReport(None, (layer,), (), (), 1e-5, 4e-7, 1.25))
        1 normalization folded, 0 left; outputs equal: they differ by at most 4e-07 at up to 1.25.
          bn -> conv  before it  2e-07 at up to 3.5

    """

    model: nn.Module | None = field(repr=False, compare=False)
    folded: tuple[FoldedLayer, ...]
    left: tuple[LeftNorm, ...]
    notes: tuple[str, ...]
    tolerance: float
    max_difference: float | None = None
    scale: float | None = None

    @property
    def equivalent(self) -> bool | None:
        """Whether the network's outputs on the example differ by rounding alone; None without an example."""
        if self.max_difference is None or self.scale is None:
            return None
        return self.max_difference <= allowed(self.tolerance, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the network, ready for JSON."""
        return {
            "folded": [asdict(layer) for layer in self.folded],
            "left": [asdict(layer) for layer in self.left],
            "notes": list(self.notes),
            "tolerance": self.tolerance,
            "max_difference": self.max_difference,
            "scale": self.scale,
            "equivalent": self.equivalent,
        }

    def __str__(self) -> str:
        """Table of the layers: what went where, and what stays with the reason."""
        lines = [self._heading()]
        names = [layer.norm for layer in self.folded], [layer.into for layer in self.folded]
        widths = [max(map(len, column), default=0) for column in names]
        for layer in self.folded:
            kept = f"  {layer.instead} stays" if layer.instead != "Identity" else ""
            lines.append(
                f"  {layer.norm:{widths[0]}} -> {layer.into:{widths[1]}}  {layer.direction} it  "
                f"{layer.max_difference:.2g} at up to {layer.scale:.3g}{kept}"
            )
        width = max((len(layer.norm or "the network") for layer in self.left), default=0)
        lines += [f"  {layer.norm or 'the network':{width}}  {layer.kind}  left: {layer.reason}" for layer in self.left]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def _heading(self) -> str:
        if not self.folded:
            there = f"{_normalizations(len(self.left))} left" if self.left else "the network has no normalization"
            return f"Found nothing to fold: {there}."
        count = f"{_normalizations(len(self.folded))} folded, {len(self.left)} left"
        if self.max_difference is None:
            return f"{count}; layers compared on random numbers, the network not: it needs example=."
        return (
            f"{count}; outputs {'equal' if self.equivalent else 'DIFFER'}: they differ by at most "
            f"{self.max_difference:.2g} at up to {self.scale:.3g}."
        )


def allowed(tolerance: float, scale: float) -> float:
    """Return the largest difference that is rounding: relative to the output, and where that is small, to 0.1."""
    return tolerance * (scale + 0.1)


def _normalizations(count: int) -> str:
    return f"{count} normalization{'s' if count != 1 else ''}"
