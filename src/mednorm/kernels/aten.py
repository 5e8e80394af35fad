"""The plain way, in PyTorch's own operators: any device, type and strides, and `torch.compile` sees through it.

Every function takes x of shape (N, C, *) and per-channel vectors of shape (C,) in the type the arithmetic runs in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mednorm.moments import Moments


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the weight and of the bias, given that of the output.

    With x̂ = (x − μ)/√(σ² + ε), g the gradient before the activation and n the values per channel:

        ∂γ = Σ g·x̂    ∂β = Σ g    ∂x = γ/√(σ² + ε)·(g − kept·(∂β + x̂·∂γ)/n)

    The second term of ∂x is there because μ and σ² depend on x; a value that a mask keeps out of them has no such
    term (`kept` is 0 there). The activation's sign is recomputed from x, so that its output need not be kept.
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
    if mask is None and x.numel() > 0:  # the fused operator divides by the count
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, values, weight, None, None, moments.mean, invstd, True, eps, [True, True, True]
        )
    else:
        grads = _composed_backward(grad, values, moments, weight, invstd, mask)
    grad_x, grad_weight, grad_bias = grads
    return grad_x.to(x.dtype), grad_weight, grad_bias


def _affine(values: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """One pass over the values: evaluation-mode batch normalization with the given statistics is just that."""
    return torch.nn.functional.batch_norm(values, moments.mean, moments.variance, weight, bias, training=False, eps=eps)


def _composed_backward(
    grad: Tensor, values: Tensor, moments: Moments, weight: Tensor | None, invstd: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    axes = (0, *range(2, values.dim()))
    normalized = (values - per_channel(moments.mean, values)) * per_channel(invstd, values)
    if mask is not None:  # NaN or infinity outside the mask must not reach the sums over the channel
        normalized = normalized.masked_fill(~(mask | normalized.isfinite()), 0)
    grad_bias = grad.sum(axes)
    grad_weight = (grad * normalized).sum(axes)
    count = moments.count.clamp(min=1).to(values.dtype)
    through = normalized * per_channel(grad_weight / count, values) + per_channel(grad_bias / count, values)
    scale = invstd if weight is None else invstd * weight
    through = through if mask is None else through.masked_fill(~mask, 0)
    return (grad - through) * per_channel(scale, values), grad_weight, grad_bias
