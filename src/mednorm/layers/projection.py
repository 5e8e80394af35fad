"""The gradient of a normalization whose statistics are not those of the batch, kept from making weights grow."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mednorm import kernels
from mednorm.kernels import per_channel
from mednorm.moments import Moments, broadcast_mask


class Window:
    """The four backward means of the last backward passes.

    Args:
        length: how many passes, at least 1.
        channels: C.

    Attributes:
        means: (length, 4, C), float32 or wider whatever the layer's type is.
        passes: how many were added so far, int64.

    """

    def __init__(self, length: int, channels: int) -> None:
        self.means = torch.zeros((length, 4, channels), device="cpu")
        self.passes = torch.zeros((), dtype=torch.int64, device="cpu")

    def on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, kept from now on where `like` is, in its type."""
        if (self.means.device, self.means.dtype) != (like.device, like.dtype):
            self.means, self.passes = self.means.to(like), self.passes.to(like.device)
        return self.means, self.passes

    def clear(self) -> None:
        """Forget all passes."""
        self.means.zero_()
        self.passes.zero_()


def averages(means: Tensor, passes: Tensor, new: Tensor, some: Tensor) -> Tensor:
    """Return the plain average of `new` and what a window holds, and keep `new` in it.

    An empty batch (`some` is False) adds nothing; means that are no numbers are in this average alone.
    """
    length = len(means)
    place = torch.arange(length, device=passes.device) == passes % length
    filled = torch.where(place.view(-1, 1, 1) & some, new, means)
    added = passes + some
    keep = some & new.isfinite().all()
    average = filled.sum(0) / added.clamp(1, length)
    means.copy_(torch.where(keep, filled, means))
    passes.copy_(torch.where(keep, added, passes))
    return average


class Project(torch.autograd.Function):
    r"""Give x on as it is; take from its gradient what would make the weights before the layer grow.

    With h the gradient that arrives, :math:`\hat x=(x-\mu)/\sigma` and averages over a window of backward passes of
    :math:`B=E[\sigma h], A=E[\sigma h\hat x], m=E[\hat x], c=E[\hat x^2]`:

    .. math:: \partial x = h - \left(B + (\hat x-m)\,q\right)/\sigma, \qquad
              q = \frac{A - B\,m}{c-m^2+\epsilon/\sigma^2}

    Where :math:`\mu,\sigma` are those of the batch and the window is one pass, m = 0, the denominator is 1 (with an
    unbiased variance (n−1)/n), and this is the gradient of batch normalization (Yan et al. 2020, eq. 5). Where they are
    not, this is the projection for the mean and variance that x really has. Without `center`, B and m are left out.
    """

    @staticmethod
    def forward(
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        mask: Tensor | None,
        means: Tensor,
        passes: Tensor,
        eps: float,
        center: bool,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Return x; the rest is for the backward pass. `means` and `passes` are those of a `Window`."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs; the window as it is, for it moves between the passes."""
        x, mean, std, mask, ctx.means, ctx.passes, ctx.eps, ctx.center, ctx.group = inputs
        ctx.save_for_backward(x, mean, std, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        x, mean, std, mask = ctx.saved_tensors
        kept = None if mask is None else broadcast_mask(mask, x, 1)
        sums = _sums(x, grad, mean, std) if kept is None and x.numel() > 0 else _kept_sums(x, grad, mean, std, kept)
        b, q, m = _projection(ctx, sums, std.reciprocal())
        through = _affine(x, mean, std, q / std, (b - m * q) / std)
        if kept is not None:  # what NaN or infinity outside the mask gives is dropped here
            through = through.masked_fill(~kept, 0)
        return (grad - through, *([None] * 8))


def _affine(x: Tensor, mean: Tensor, std: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return weight·x̂ + bias, by one fused pass."""
    return torch.nn.functional.batch_norm(x, mean, std.square(), weight, bias, training=False, eps=0)


def _sums(x: Tensor, h: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return Σσh, Σσh·x̂, Σx̂, Σx̂² and the count (5, C), the products by PyTorch's fused operator."""

    def with_normalized(other: Tensor) -> tuple[Tensor, Tensor]:
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            other, x, None, mean, std.square(), None, None, False, 0.0, [False, True, True]
        )
        return sums, products

    first, second = with_normalized(h), with_normalized(_affine(x, mean, std, None, None))
    count = torch.full_like(std, x.numel() // len(std))
    return torch.stack((std * first[0], std * first[1], *second, count))


def _kept_sums(x: Tensor, h: Tensor, mean: Tensor, std: Tensor, kept: Tensor | None) -> Tensor:
    """Return the same over what is kept, also where that is nothing."""
    axes = (0, *range(2, x.dim()))
    kept = torch.ones_like(x, dtype=torch.bool) if kept is None else kept
    normalized = torch.where(kept, (x - per_channel(mean, x)) / per_channel(std, x), 0)
    inside = torch.where(kept, h, 0)
    return torch.stack(
        (
            std * inside.sum(axes),
            std * (inside * normalized).sum(axes),
            normalized.sum(axes),
            normalized.square().sum(axes),
            kept.sum(axes).to(x.dtype),
        )
    )


class NormalizeProjected(torch.autograd.Function):
    """Normalize with given statistics, and project the gradient as `Project` does, in two passes over memory.

    For tensors that the compiled loops take (`mednorm.kernels.has_sums`), without a mask.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        means: Tensor,
        passes: Tensor,
        eps: float,
        slope: float | None,
        center: bool,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Return act(γ·x̂ + β). `means` and `passes` are those of a `Window`."""
        return kernels.normalize(x, Moments.given(mean, variance), weight, bias, eps, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs; the window as it is, for it moves between the passes."""
        x, weight, bias, mean, variance, ctx.means, ctx.passes, ctx.eps, ctx.slope, ctx.center, ctx.group = inputs
        ctx.save_for_backward(x, weight, bias, mean, variance)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the weight and of the bias."""
        x, weight, bias, mean, variance = ctx.saved_tensors
        given = grad, x, Moments.given(mean, variance), weight, bias, ctx.eps, ctx.slope
        h, products, deviations, squares = kernels.sums(*given, squares=True)
        invstd = (variance + ctx.eps).rsqrt()
        gamma = torch.ones_like(invstd) if weight is None else weight
        count = torch.full_like(invstd, x.numel() // len(mean))
        total = torch.stack(
            (gamma * h, gamma * invstd * products, invstd * deviations, invstd.square() * squares, count)
        )
        b, q, m = _projection(ctx, total, invstd)
        grad_x = kernels.apply(*given, q * invstd.square(), (b - m * q) * invstd)
        return (
            grad_x,
            None if weight is None else invstd * products,
            None if bias is None else h,
            *([None] * 8),
        )


def _projection(ctx: Any, sums: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return B, q and m of `Project`, from Σσh, Σσh·x̂, Σx̂, Σx̂² and the count of this pass, and those in the window."""
    if ctx.group is not None:
        dist.all_reduce(sums, group=ctx.group)
    new, some = sums[:4] / sums[4].clamp(min=1), (sums[4] > 0).all()
    b, a, m, c = averages(ctx.means, ctx.passes, new, some)
    if not ctx.center:
        b, m = torch.zeros_like(b), torch.zeros_like(m)
    return b, (a - b * m) / (c - m.square() + ctx.eps * invstd.square()), m
