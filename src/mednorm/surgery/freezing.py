"""What `mednorm.freeze` and `mednorm.unfreeze` did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FrozenLayer:
    """A layer that `freeze` holds, or that `unfreeze` let go.

    Attributes:
        name: of the layer in the network.
        kind: its class.
        statistics: whether its running statistics are, or were, held.
        affine: whether its γ and β are, or were, held.
        reason: why it, or part of it, was left; empty otherwise.

    """

    name: str
    kind: str
    statistics: bool
    affine: bool
    reason: str = ""


@dataclass(frozen=True)
class FreezeReport:
    """What `mednorm.freeze` or `mednorm.unfreeze` did.

    Attributes:
        action: ``"frozen"`` or ``"unfrozen"``.
        layers: the layers it did it to.
        left: those it left, each with the reason.

    Example:
        >>> print(FreezeReport("frozen", (FrozenLayer("bn", "BatchNorm2d", True, False),)))
        1 layer frozen.
          bn  BatchNorm2d  statistics

    """

    action: str
    layers: tuple[FrozenLayer, ...]
    left: tuple[FrozenLayer, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers it was done to."""
        return tuple(layer.name for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "action": self.action,
            "layers": [asdict(layer) for layer in self.layers],
            "left": [asdict(layer) for layer in self.left],
        }

    def __str__(self) -> str:
        """Table of the layers, those left with the reason."""
        count = f"{len(self.layers)} layer{'s' if len(self.layers) != 1 else ''} {self.action}"
        if not self.layers:
            absent = "frozen layer" if self.action == "unfrozen" else "layer with running statistics"
            count = f"Nothing was {self.action}: " + ("see below" if self.left else f"found no {absent}")
        lines = [f"{count}."]
        width = max((len(layer.name) for layer in (*self.layers, *self.left)), default=0)
        for layer in self.layers:
            parts = " and ".join(
                part for part, held in (("statistics", layer.statistics), ("γ and β", layer.affine)) if held
            )
            lines.append(f"  {layer.name:{width}}  {layer.kind}  {parts}")
        lines += [f"  {layer.name:{width}}  {layer.kind}  left: {layer.reason}" for layer in self.left]
        return "\n".join(lines)
