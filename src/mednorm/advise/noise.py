"""How noisy the statistics of a batch are, by layer and batch size, and from which size on they are good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.mn003_small_batch import ERROR, WARNING
from mednorm.examine.rules.noise import noise, taken_over_batches

MOST = 4096
ENOUGH, GRAVE = WARNING, ERROR  # the thresholds of rule MN003, in σ


@dataclass(frozen=True)
class Noise:
    """Noise of the batch statistics against batch size, in standard deviations: rule MN003's, `examine.rules.noise`.

    Attributes:
        layers: those that take statistics over the batch: noise by size, the median over their channels.
        enough: σ below which the noisiest layer is good enough.

    """

    layers: Mapping[str, Mapping[int, float]]
    enough: float

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes there is a noise for."""
        return tuple(next(iter(self.layers.values()), {}))

    def worst(self, batch_size: int) -> tuple[str, float] | None:
        """Return the noisiest layer at one of the sizes, and its noise; None where no layer takes statistics."""
        found = {name: values[batch_size] for name, values in self.layers.items()}
        name = max(found, key=found.__getitem__, default=None)
        return None if name is None else (name, found[name])


def judged(probed: Probed) -> list[Layer]:
    """Return the layers whose training rests on the statistics of one batch, and of which two images were seen."""
    return [
        layer
        for layer in probed.layers
        if taken_over_batches(layer) and layer.seen is not None and layer.seen.images > 1 and _of(layer, 1) >= 0
    ]


def noise_by_size(probed: Probed, sizes: Sequence[int], enough: float) -> Noise:
    """Tell the noise of every layer at some sizes."""
    return Noise({layer.name: {n: _of(layer, n) for n in sorted(set(sizes))} for layer in judged(probed)}, enough)


def smallest_sufficient(probed: Probed, enough: float) -> int | None:
    """Return the smallest batch whose noisiest layer is less noisy than a limit; None where none up to 4096 is."""
    return max((_smallest(layer, enough) for layer in judged(probed)), default=1) if _possible(probed, enough) else None


def _possible(probed: Probed, enough: float) -> bool:
    return all(_of(layer, MOST) < enough for layer in judged(probed))


def _smallest(layer: Layer, enough: float) -> int:
    """Halve the sizes between; of a batch of one the formula is another, so it does not bound the others."""
    if _of(layer, 2) < enough:
        return 1 if _of(layer, 1) < enough else 2
    low, high = 2, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _of(layer, middle) < enough else (middle, high)
    return high


def _of(layer: Layer, batch_size: int) -> float:
    assert layer.seen is not None
    return noise(layer.seen, batch_size)  # NaN, which compares with nothing, where every channel is constant
