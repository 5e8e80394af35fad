"""The plain way, in PyTorch's own operators: any device, type and strides, and `torch.compile` sees through it.

Every function takes x of shape (N, C, *) and per-channel vectors of shape (C,) in the type the arithmetic runs in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mednorm.moments import Moments

# Adds up a tensor over the processes that share their statistics.
Reduce = Callable[[Tensor], Tensor]


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over x, whose channels are axis 1."""
    return vector.view(1, -1, *([1] * (x.dim() - 2)))


def activate_(y: Tensor, slope: float | None) -> Tensor:
    """Rectify in place. Slope 0 is a case of its own: 0 times infinity is not 0."""
    if slope is None:
        return y
    return torch.relu_(y) if slope == 0 else torch.nn.functional.leaky_relu_(y, slope)


def normalize(
    x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float | None
) -> Tensor:
    """Return act(γ·(x − μ)/√(σ² + ε) + β) in x's type; `slope` is the activation's slope below 0, None for none."""
    values = x.to(moments.mean.dtype)
    y = _affine(values, moments, weight, bias, eps)
    return activate_(y, slope).to(x.dtype)


def normalize_backward(
    grad: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    mask: Tensor | None,
    *,
    fixed: bool = False,
    by_range: bool = False,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the weight and of the bias, given that of the output.

    With x̂ = (x − μ)/√(σ² + ε), g the gradient before the activation and n the values per channel:

        ∂γ = Σ g·x̂    ∂β = Σ g    ∂x = γ/√(σ² + ε)·(g − kept·(∂β + x̂·∂γ)/n)

    The second term of ∂x is there because μ and σ² depend on x; a value that a mask keeps out of them has no such
    term (`kept` is 0 there). The activation's sign is recomputed from x, so that its output need not be kept.

    `fixed` says that μ and σ² are given and no function of x: there is no second term then.
    `by_range` says that σ² is that of `Moments.by_range`: what goes through it reaches the extremes alone. `reduce`
    adds the two sums of ∂x up over the processes whose values the moments are of; ∂γ and ∂β stay this process's own.
    """
    values, grad = x.to(moments.mean.dtype), grad.to(moments.mean.dtype)
    if slope is not None:
        before = _affine(values, moments, weight, bias, eps)
        grad = (
            torch.ops.aten.threshold_backward(grad, before, 0)
            if slope == 0
            else torch.ops.aten.leaky_relu_backward(grad, before, slope, False)
        )
    invstd = (moments.variance + eps).rsqrt()
    if fixed:
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, values, weight, moments.mean, moments.variance, None, None, False, eps, [True, True, True]
        )
    elif mask is None and not by_range and reduce is None and x.numel() > 0:  # this operator divides by the count
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, values, weight, None, None, moments.mean, invstd, True, eps, [True, True, True]
        )
    else:
        grads = _composed_backward(grad, values, moments, weight, invstd, mask, by_range, reduce or _alone)
    grad_x, grad_weight, grad_bias = grads
    return grad_x.to(x.dtype), grad_weight, grad_bias


def _alone(sums: Tensor) -> Tensor:
    return sums


def _affine(values: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """One pass over the values: evaluation-mode batch normalization with the given statistics is just that."""
    return torch.nn.functional.batch_norm(values, moments.mean, moments.variance, weight, bias, training=False, eps=eps)


def _composed_backward(
    grad: Tensor,
    values: Tensor,
    moments: Moments,
    weight: Tensor | None,
    invstd: Tensor,
    mask: Tensor | None,
    by_range: bool,
    reduce: Reduce,
) -> tuple[Tensor, Tensor, Tensor]:
    axes = (0, *range(2, values.dim()))
    normalized = (values - per_channel(moments.mean, values)) * per_channel(invstd, values)
    if mask is not None:  # NaN or infinity outside the mask must not reach the sums over the channel
        normalized = normalized.masked_fill(~(mask | normalized.isfinite()), 0)
    grad_bias = grad.sum(axes)
    grad_weight = (grad * normalized).sum(axes)
    total_bias, total_weight = reduce(torch.stack((grad_bias, grad_weight)))
    count = moments.count.clamp(min=1).to(values.dtype)
    through = per_channel(total_bias / count, values).expand_as(values)
    if by_range:
        through = through + _through_extremes(values, moments, total_weight, invstd, mask, reduce)
    else:
        through = through + normalized * per_channel(total_weight / count, values)
    scale = invstd if weight is None else invstd * weight
    through = through if mask is None else through.masked_fill(~mask, 0)
    return (grad - through) * per_channel(scale, values), grad_weight, grad_bias


def _through_extremes(
    values: Tensor, moments: Moments, grad_weight: Tensor, invstd: Tensor, mask: Tensor | None, reduce: Reduce
) -> Tensor:
    """What ∂x loses at the largest and gains at the smallest values, which share it where several are equal.

    √(σ² + ε) grows with the range R by σ²/(R·√(σ² + ε)), σ being R times a constant.
    """
    highest, lowest = (
        (values == per_channel(extreme, values)) & (True if mask is None else mask)
        for extreme in (moments.maximum, moments.minimum)
    )
    axes = (0, *range(2, values.dim()))
    ties = reduce(torch.stack((highest.sum(axes), lowest.sum(axes))).to(values.dtype)).clamp(min=1)
    extent = moments.maximum - moments.minimum
    # 0 where all values are equal: an empty channel's extent is no number either.
    per_range = torch.where(extent > 0, moments.variance / extent, 0) * invstd * grad_weight
    at_highest, at_lowest = (per_channel(per_range / tie, values) for tie in ties)
    return highest * at_highest - lowest * at_lowest
