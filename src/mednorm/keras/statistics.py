"""Mean, variance, range and count of a batch, per channel, on whatever backend Keras runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from mednorm.keras.arguments import check_axis, mask_axis
from mednorm.reference import range_over_std_knots

Tensor = Any  # whatever the backend calls a tensor
_RANGE_OVER_STD = range_over_std_knots()


class BatchStatistics(NamedTuple):
    """What `batch_statistics` returns."""

    mean: Tensor
    variance: Tensor
    range: Tensor
    count: Tensor


def batch_statistics(x: Tensor, axis: int = -1, mask: Tensor | None = None) -> BatchStatistics:
    r"""Take the mean, the biased variance and the range of every channel, over every axis except `axis`.

    .. math:: \mu = \frac1n\sum_i x_i, \qquad \sigma^2 = \frac1n\sum_i (x_i - \mu)^2, \qquad
              \text{range} = \max_i x_i - \min_i x_i

    Two passes, in float32 or wider: the variance is never :math:`E[x^2] - E[x]^2`, which has no digit left where the
    mean is some thousand standard deviations (computed tomography in Hounsfield units plus 1024).

    Args:
        x: a batch, of any rank and type; a tensor or an array.
        axis: the axis of the channels; -1 for channels last, 1 for channels first.
        mask: True on the values that count, of the shape of `x` without `axis`. Without a single True everything is 0.

    Returns:
        mean, variance, range: shape (C,), float32 or wider. count: n, the number of values that each channel has; shape
        (C,) where the mask has the channels and lacks the last axis, as `keras.layers.Masking` makes them.

    Raises:
        ShapeError: `axis` is out of bounds, or the mask does not fit.

    Example:
        >>> import numpy as np
        >>> statistics = batch_statistics(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> print(*(np.asarray(value).tolist() for value in statistics))
        [2.0, 5.0] [1.0, 0.0] [2.0, 0.0] 2

    Reference:
        Ioffe & Szegedy (2015), "Batch Normalization", Algorithm 1, for mean and variance.

    """
    x = widen(ops.convert_to_tensor(x))
    check_axis("batch_statistics", axis, x.shape)
    batch = Batch.of("batch_statistics", x, axis, mask)
    mean, variance, extent = (ops.reshape(value, (-1,)) for value in (batch.mean, batch.variance(), batch.range()))
    count = ops.reshape(ops.convert_to_tensor(batch.count), (-1,))
    count = count[0] if count.shape[0] == 1 else count
    return BatchStatistics(mean, variance, extent, ops.cast(count, "int32"))


@dataclass(frozen=True)
class Batch:
    """A batch around its mean, from which the statistics follow.

    Attributes:
        centred: x minus the mean, the mean taken for a constant; with the shape of x.
        mean: differentiable; like every statistic here of length 1 on all axes but the channels'.
        drift: mean minus the constant mean: always 0, and carries the gradient that `centred` leaves out. So the mean's
            gradient is a number a channel, and no sum over the batch is needed for it in the backward pass.
        kept: the mask, to broadcast over x; None for all.
        share: of the values, how many are kept; None for all.
        size: values per channel, kept or not, in this replica.
        axes: all but the channels'.
        synchronized: statistics are those of all replicas of a `tf.distribute` strategy.

    """

    centred: Tensor
    mean: Tensor
    drift: Tensor
    kept: Tensor | None
    share: Tensor | None
    size: Any
    axes: tuple[int, ...]
    synchronized: bool

    @classmethod
    def of(cls, who: str, x: Tensor, axis: int, mask: Tensor | None = None, synchronized: bool = False) -> Batch:
        """Centre `x`, which is float32 or wider.

        Raises:
            ShapeError: the mask does not fit.

        """
        axes = all_but(axis, len(x.shape))
        kept = None if mask is None else _kept(who, mask, axis, x)
        share = None if kept is None else _mean(ops.cast(kept, x.dtype), axes, None, synchronized)
        mean = _mean(x if kept is None else ops.where(kept, x, 0.0), axes, share, synchronized)
        constant = ops.stop_gradient(mean)
        return cls(x - constant, mean, mean - constant, kept, share, _size(x, axes), axes, synchronized)

    @property
    def count(self) -> Any:
        """Values per channel that count: a whole number, or a tensor where that is known only in the graph."""
        if self.share is None:
            return self.size
        return ops.round(self.share * ops.cast(self.size, self.centred.dtype))

    def variance(self) -> Tensor:
        """The biased variance; the term in the drift makes its second derivatives right, the first are so without."""
        return _mean(ops.square(self._kept_values(0.0)), self.axes, self.share, self.synchronized) - ops.square(
            self.drift
        )

    def range(self) -> Tensor:
        """Maximum minus minimum; 0 where nothing is kept."""
        high = ops.max(self._kept_values(float("-inf")), self.axes, keepdims=True)
        low = ops.min(self._kept_values(float("inf")), self.axes, keepdims=True)
        if self.share is None:
            return high - low
        return ops.where(self.share > 0, high, 0.0) - ops.where(self.share > 0, low, 0.0)

    def range_over_std(self) -> Tensor:
        """C(n) of `reference.range_over_std` from its table, since the count may be known only in the graph."""
        count = ops.maximum(ops.cast(self.count, self.centred.dtype), 2.0)
        return interpolate(ops.log(count), *_RANGE_OVER_STD)

    def _kept_values(self, other: float) -> Tensor:
        return self.centred if self.kept is None else ops.where(self.kept, self.centred, other)


def portions(who: str, x: Tensor, axis: int, mask: Tensor | None) -> Tensor:
    """What each value counts for in a mean over the batch: 1/n where it is kept, else 0; broadcasts over `x`.

    Raises:
        ShapeError: the mask does not fit.

    """
    axes = all_but(axis, len(x.shape))
    size = ops.cast(_size(x, axes), x.dtype)
    if mask is None:
        return ops.reshape(1 / size, [1] * len(x.shape))
    kept = ops.cast(_kept(who, mask, axis, x), x.dtype)
    return kept / ops.maximum(ops.mean(kept, axes, keepdims=True) * size, 1.0)


def saved(vector: Tensor) -> Tensor:
    """Give the vector back, such that PyTorch's compiler keeps it for the backward pass.

    It would rather compute it again there, from moving statistics that have moved since, and gradients come out wrong
    without a word (pytorch#197039; so they do in Keras's own ``renorm=True`` with ``jit_compile=True``). What a
    reduction to less than a fourth returns it keeps.
    """
    return ops.max(ops.stack([vector] * 8), axis=0) if keras.backend.backend() == "torch" else vector


def all_but(axis: int, rank: int) -> tuple[int, ...]:
    """Every axis of so many, except one."""
    return tuple(position for position in range(rank) if position != axis % rank)


def widen(x: Tensor) -> Tensor:
    """Cast to float32, or leave float64: sums of float16 overflow, and bfloat16 has 8 bits."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def interpolate(t: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """Interpolate linearly in a scalar or tensor, as a sum of hinges, which every backend compiles."""
    turns = np.diff(np.diff(values) / np.diff(knots), prepend=0.0)
    above = ops.relu(ops.expand_dims(t, -1) - ops.convert_to_tensor(knots[:-1], dtype=t.dtype))
    return values[0] + ops.sum(above * ops.convert_to_tensor(turns, dtype=t.dtype), axis=-1)


def _size(x: Tensor, axes: Sequence[int]) -> Any:
    """Values per channel: a whole number, or a tensor where TensorFlow does not know the batch size."""
    shape = ops.shape(x)
    size: Any = 1
    for position in axes:
        size = size * shape[position]
    return size


def _kept(who: str, mask: Tensor, axis: int, x: Tensor) -> Tensor:
    mask = ops.convert_to_tensor(mask)
    return ops.expand_dims(ops.cast(mask, "bool"), mask_axis(who, axis, tuple(mask.shape), tuple(x.shape)))


def _mean(values: Tensor, axes: Sequence[int], share: Tensor | None, synchronized: bool) -> Tensor:
    """Average over axes and, if `synchronized`, replicas, where all but a `share` of the values are 0 and not there."""
    if synchronized:  # the one way that keras.ops has to add over replicas; its variance, E[x²] − E[x]², is not used
        mean = ops.moments(values, axes, keepdims=True, synchronized=True)[0]
    else:
        mean = ops.mean(values, axes, keepdims=True)
    return mean if share is None else mean / ops.where(share > 0, share, 1.0)
