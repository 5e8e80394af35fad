"""What a training step keeps for its backward pass, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class LayerMemory:
    """What one layer keeps.

    Attributes:
        name: in the network.
        kind: its class.
        ordinary: bytes that it is the first to keep, as PyTorch does it.
        lean: the same within `mednorm.lean_activations`.

    """

    name: str
    kind: str
    ordinary: int
    lean: int


@dataclass(frozen=True)
class ActivationMemory:
    """What a training step keeps for its backward pass: `mednorm.activation_memory`.

    Attributes:
        layers: those that keep something, in the order in which they first do.

    Example:
        >>> layers = LayerMemory("bn", "BatchNorm", 4096, 4096), LayerMemory("conv", "Conv2d", 4096, 0)
        >>> kept = ActivationMemory(layers)
        >>> kept.ordinary, kept.lean, kept.ratio
        (8192, 4096, 0.5)
        >>> kept.by_layer()["conv"]
        LayerMemory(name='conv', kind='Conv2d', ordinary=4096, lean=0)
        >>> print(kept)
        A training step keeps 8.0 KiB for its backward pass; lean, 4.0 KiB: 50%.
                            ordinary       lean
          bn    BatchNorm    4.0 KiB    4.0 KiB
          conv  Conv2d       4.0 KiB        0 B

    """

    layers: tuple[LayerMemory, ...]

    def __iter__(self) -> Iterator[LayerMemory]:
        return iter(self.layers)

    @property
    def ordinary(self) -> int:
        """All bytes, as PyTorch keeps them."""
        return sum(layer.ordinary for layer in self.layers)

    @property
    def lean(self) -> int:
        """All bytes within `mednorm.lean_activations`."""
        return sum(layer.lean for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Lean bytes to ordinary ones; 1 where nothing is kept."""
        return self.lean / self.ordinary if self.ordinary else 1.0

    def by_layer(self) -> dict[str, LayerMemory]:
        """Return the layers by name."""
        return {layer.name: layer for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {"ordinary": self.ordinary, "lean": self.lean, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        """Table of the layers."""
        lines = [
            f"A training step keeps {_readable(self.ordinary)} for its backward pass; lean, {_readable(self.lean)}: "
            f"{self.ratio:.0%}."
        ]
        names, kinds = (max((len(getattr(x, key)) for x in self.layers), default=0) for key in ("name", "kind"))
        lines += [f"{'':{names + kinds + 4}}{'ordinary':>11}{'lean':>11}"] if self.layers else []
        lines += [
            f"  {layer.name:{names}}  {layer.kind:{kinds}}{_readable(layer.ordinary):>11}{_readable(layer.lean):>11}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def _readable(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} {_UNITS[unit]}"
