"""One small value that carries every statistic of this package: count, mean, spread and extremes per channel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mednorm.errors import ShapeError
from mednorm.reference import range_over_std


def range_constant(count: int) -> float:
    """Return the expected range of so many Gaussian values over their standard deviation; of 2 for fewer."""
    return range_over_std(max(2, count))


# The compiler need not follow the integral. `torch.compiler.assume_constant_result` sets this mark too, and imports the
# whole compiler for it, which takes a second.
range_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    r"""Hold the statistics of some values, channel by channel, in a form that merges exactly.

    For the values :math:`x_1 … x_n` of one channel

    .. math:: \mu = \tfrac1n\sum x_i,\quad M_2 = \sum (x_i-\mu)^2,\quad \sigma^2 = M_2/n,\quad
              \text{range} = \max x_i - \min x_i

    Two `Moments` over disjoint values merge into the `Moments` over all of them, whatever their counts:
    :math:`n = n_a+n_b`, :math:`\delta=\mu_b-\mu_a`, :math:`\mu = \mu_a + \delta\,n_b/n`,
    :math:`M_2 = M_{2a}+M_{2b}+\delta^2 n_a n_b/n`. This is why micro-batches, devices, scans and sites can be pooled
    without losing the spread *between* them, which averaging their variances does lose.

    The five fields have one shape: ``(C,)``, or ``(N, C)`` in the per-sample form. Nothing here is differentiable.

    Attributes:
        count: how many values, int64.
        mean: their mean; 0 where count is 0.
        m2: sum of squared deviations from the mean.
        minimum: smallest value; +inf where count is 0.
        maximum: largest value; −inf where count is 0.

    Example:
        >>> import torch
        >>> first, second = torch.randn(2, 3, 8, 8), 5 + torch.randn(6, 3, 8, 8)
        >>> pooled = Moments.of(first).merge(Moments.of(second))
        >>> torch.allclose(pooled.variance, torch.cat([first, second]).var((0, 2, 3), correction=0))
        True

    Reference:
        Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", eqs. 2.1a and 2.1b.

    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    minimum: Tensor
    maximum: Tensor

    @staticmethod
    @torch.no_grad()
    def of(
        x: Tensor,
        channel_axis: int = 1,
        mask: Tensor | None = None,
        per_sample: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Moments:
        """Measure a tensor over every axis except the channel's (and the batch's, per sample).

        Two passes: the mean first, then the squared deviations from it; never E[x²] − E[x]², which cancels. The
        deviations' own mean, 0 but for the first pass's rounding, then corrects both, so that values far from 0 cost
        no digits (Chan et al., eq. 1.7).

        Args:
            x: values, at least two axes, the batch first.
            channel_axis: which axis holds the channels.
            mask: boolean, True where a value counts; of x's shape, or one that broadcasts to it, or of x's shape
                without the channel axis. What it leaves out may be anything, NaN included.
            per_sample: keep the batch axis, giving ``(N, C)``: one row an image.
            dtype: accumulate in this type; by default float32 for half precisions, float64 for integers,
                otherwise the type of x. float64 costs a copy of x.

        Raises:
            ShapeError: fewer than two axes, an axis out of range, a complex or boolean x, or a mask that fits in
                neither way.

        """
        axis = _checked_axis(x, channel_axis)
        values = x.to(dtype or _accumulation_dtype(x)).movedim(axis, 1)
        kept = None if mask is None else broadcast_mask(mask, x, axis).movedim(axis, 1)
        spatial = tuple(range(2, x.dim()))
        return _measure(values, kept, spatial if per_sample else (0, *spatial))

    @staticmethod
    def given(mean: Tensor, variance: Tensor) -> Moments:
        """Return what stands for a given mean and biased variance, such as running ones: of one value, without a range.

        Example:
            >>> import torch
            >>> Moments.given(torch.zeros(2), torch.full((2,), 4.0)).std
            tensor([2., 2.])

        """
        return Moments(torch.ones_like(mean, dtype=torch.int64), mean, variance, mean, mean)

    def merge(self, other: Moments) -> Moments:
        """Pool two over disjoint values (Chan et al.); either may be empty."""
        return Moments.pool((self, other))

    @staticmethod
    def pool(many: Iterable[Moments]) -> Moments:
        """Pool any number over disjoint values at once.

        Raises:
            ShapeError: none were given, or their shapes differ.

        """
        parts = [part.fields() for part in many]
        if not parts:
            raise ShapeError("Moments.pool: expected at least one Moments, got none.")
        shapes = {tuple(part[1].shape) for part in parts}
        if len(shapes) > 1:
            raise ShapeError(f"Moments.pool: expected Moments of one shape, got {sorted(shapes)}.")
        return Moments(*(torch.stack(field) for field in zip(*parts, strict=True))).pooled()

    def pooled(self) -> Moments:
        """Pool over the first axis: from per sample ``(N, C)`` to all samples ``(C,)``."""
        if self.count.shape[0] == 0:
            return _empty(self.mean, self.mean.shape[1:])
        weight = self.count.to(self.mean.dtype)
        total = self.count.sum(0)
        share = weight / total.clamp(min=1).to(self.mean.dtype)
        # Deviations from the largest part's mean first, so that a large common offset does not cost digits.
        anchor = self.mean.gather(0, self.count.argmax(0, keepdim=True))
        mean = anchor.squeeze(0) + ((self.mean - anchor) * share).sum(0)
        apart = torch.where(weight > 0, self.mean - mean, 0)  # an empty part's mean says nothing
        between = (weight * apart.square()).sum(0)
        return Moments(total, mean, self.m2.sum(0) + between, self.minimum.amin(0), self.maximum.amax(0))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Moments:
        """Pool over the processes of a group; every process gets the same result, also where counts differ or are 0."""
        local = torch.stack([field.double() for field in self.fields()])  # counts below 2^53 are exact in it
        others = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(others, local, group=group)
        parts = (Moments(other[0].to(torch.int64), *other[1:].to(self.mean.dtype)) for other in others)
        return Moments.pool(parts)

    def by_range(self, count: int | None = None) -> Moments:
        r"""Return the same with the spread that the range implies, in the place of the squared deviations.

        The variance becomes :math:`(\text{range}/C(n))^2`, with C(n) the expected range of n Gaussian values over
        their expected standard deviation. Fewer than two values imply none.

        Args:
            count: how many values every channel has, where that is known: then no device is asked for it.

        """
        constant: Tensor | float
        if count is None:
            counts, place = self.count.unique(return_inverse=True)
            constant = self.mean.new_tensor([range_constant(each) for each in counts.tolist()])[place]
        else:
            constant = range_constant(count)
        spread = torch.where(self.count > 1, (self.maximum - self.minimum) / constant, 0)
        return Moments(self.count, self.mean, self.count * spread.square(), self.minimum, self.maximum)

    def to(self, target: torch.device | torch.dtype | str) -> Moments:
        """Move to a device, or convert the four float fields to a type."""
        if isinstance(target, torch.dtype):
            return Moments(self.count, *(field.to(target) for field in self.fields()[1:]))
        return Moments(*(field.to(target) for field in self.fields()))

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the five tensors, in the order of the constructor."""
        return self.count, self.mean, self.m2, self.minimum, self.maximum

    @property
    def variance(self) -> Tensor:
        """Biased variance M₂/n, which normalizes a batch; NaN where count is 0."""
        return self.m2 / self.count

    @property
    def unbiased_variance(self) -> Tensor:
        """Unbiased variance M₂/(n − 1), which PyTorch keeps as running variance; NaN where count is below 2."""
        return torch.where(self.count > 1, self.m2 / (self.count - 1), torch.nan)

    @property
    def std(self) -> Tensor:
        """Square root of the biased variance."""
        return self.variance.sqrt()

    @property
    def range(self) -> Tensor:
        """Largest minus smallest value; NaN where count is 0."""
        return torch.where(self.count > 0, self.maximum - self.minimum, torch.nan)

    @property
    def finite(self) -> Tensor:
        """One boolean: every mean and every variance is a number."""
        return torch.isfinite(self.mean).all() & torch.isfinite(self.m2).all()


def _measure(values: Tensor, kept: Tensor | None, axes: tuple[int, ...]) -> Moments:
    """Reduce over `axes`, of which there may be none: then every value stands alone."""
    shape = [size for axis, size in enumerate(values.shape) if axis not in axes]
    if values.numel() == 0:
        return _empty(values, shape)
    if not axes:
        values, axes = values.unsqueeze(-1), (values.dim(),)
        kept = None if kept is None else kept.unsqueeze(-1)
    if kept is None:
        count = values.new_full(shape, values.numel() // max(1, math.prod(shape)), dtype=torch.int64)
        mean = values.mean(axes, keepdim=True)
        deviation = values - mean
        minimum, maximum = values.amin(axes), values.amax(axes)
    else:
        count = kept.sum(axes)
        total = values.masked_fill(~kept, 0).sum(axes, keepdim=True)
        mean = total / count.clamp(min=1).reshape(total.shape)
        deviation = (values - mean).masked_fill_(~kept, 0)
        minimum = values.masked_fill(~kept, torch.inf).amin(axes)
        maximum = values.masked_fill(~kept, -torch.inf).amax(axes)
    rounding = deviation.sum(axes) / count.clamp(min=1)
    squares = deviation.square_().sum(axes)
    excess = torch.where(squares.isfinite(), count * rounding.square(), 0)
    return Moments(count, mean.reshape(shape) + rounding, (squares - excess).clamp_(min=0), minimum, maximum)


def _empty(like: Tensor, shape: Sequence[int]) -> Moments:
    zeros = like.new_zeros(shape)
    return Moments(zeros.to(torch.int64), zeros, zeros.clone(), zeros + torch.inf, zeros - torch.inf)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    if x.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    if x.is_floating_point():
        return x.dtype
    if x.is_complex() or x.dtype == torch.bool:
        raise ShapeError(f"Moments.of: expected a tensor of real numbers, got {x.dtype}. Convert it first.")
    return torch.float64


def _checked_axis(x: Tensor, channel_axis: int) -> int:
    if x.dim() < 2:
        raise ShapeError(
            f"Moments.of: expected at least 2 axes (batch, channel), got shape {tuple(x.shape)}. Add the missing one."
        )
    if not -x.dim() <= channel_axis < x.dim() or channel_axis % x.dim() == 0:
        raise ShapeError(
            f"Moments.of: expected channel_axis to be an axis of the input other than 0 (the batch), got "
            f"{channel_axis} for shape {tuple(x.shape)}. Images laid out (N, C, *) have it at 1."
        )
    return channel_axis % x.dim()


def broadcast_mask(mask: Tensor, x: Tensor, channel_axis: int) -> Tensor:
    """Bring a mask to x's shape; without a channel axis it holds for every channel.

    Raises:
        ShapeError: it is not boolean, or fits neither way.

    """
    if mask.dtype != torch.bool:
        raise ShapeError(f"mask: expected a boolean tensor, got {mask.dtype}. Pass `mask > 0` or `mask.bool()`.")
    full = mask.unsqueeze(channel_axis) if mask.dim() == x.dim() - 1 else mask
    if full.dim() != x.dim() or any(m not in (1, n) for m, n in zip(full.shape, x.shape, strict=True)):
        raise ShapeError(
            f"mask: expected a shape that fits the input {tuple(x.shape)}, with or without its channel axis, "
            f"got {tuple(mask.shape)}."
        )
    return full.expand(x.shape)
