"""Differentiable normalization of a tensor, given its `Moments`. Layers hold state and call this."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.moments import Moments, broadcast_mask

Activation = Literal["relu", "leaky_relu"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "leaky_relu")


def normalize(
    x: Tensor,
    moments: Moments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    mask: Tensor | None = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Normalize each channel with the moments of x itself, scale, shift, and optionally rectify, as one operation.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta\right)

    with :math:`\mu,\sigma^2` the mean and *biased* variance of `moments`, :math:`\gamma` the weight and :math:`\beta`
    the bias.
    The arithmetic runs in the type of the moments (float32 for half-precision input); the result has x's type.

    Args:
        x: shape ``(N, C, *)``, any strides.
        moments: those of x, shape ``(C,)``: gradients flow through them to x.
        weight: shape ``(C,)``; 1 where None.
        bias: shape ``(C,)``; 0 where None.
        eps: added to the variance.
        mask: the mask with which `moments` were measured. Values it leaves out are normalized like the others but
            did not enter the statistics, so no gradient flows through the statistics to them.
        activation: rectify in the same operation; only x is kept for the backward pass.
        negative_slope: slope of ``"leaky_relu"`` below 0.

    Returns:
        Shape and type of x.

    Raises:
        ShapeError: x has fewer than 2 axes, another number of channels than `moments`, or whole numbers; or the moments
            are per sample.
        ConfigError: an unknown activation.

    Example:
        >>> import torch
        >>> x = torch.randn(4, 3, 5, 5)
        >>> y = normalize(x, Moments.of(x))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True

    Reference:
        Ioffe & Szegedy (2015), "Batch Normalization", Algorithm 1 and the gradients after it.

    """
    if moments.mean.dim() != 1:
        raise ShapeError(
            f"normalize: expected moments of shape (C,), got {tuple(moments.mean.shape)}. Pool those of the samples "
            "with .pooled()."
        )
    if not x.is_floating_point():
        raise ShapeError(f"normalize: expected floating-point values, got {x.dtype}. Pass `x.float()`.")
    if x.dim() < 2 or x.shape[1] != moments.mean.shape[0]:
        raise ShapeError(
            f"normalize: expected (N, {moments.mean.shape[0]}, *) to go with moments of that many channels, "
            f"got {tuple(x.shape)}. Measure the moments on this tensor."
        )
    slope = activation_slope(activation, negative_slope)
    full_mask = None if mask is None else broadcast_mask(mask, x, 1)
    y: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, *moments.fields(), full_mask, eps, slope
    )
    return y


def activation_slope(activation: Activation | None, negative_slope: float) -> float | None:
    """Return the slope below 0: 0 for ReLU, None without an activation.

    Raises:
        ConfigError: an unknown activation.

    """
    match activation:
        case None:
            return None
        case "relu":
            return 0.0
        case "leaky_relu":
            return negative_slope
    raise ConfigError(f"activation: expected one of None, {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}.")


class _Normalize(torch.autograd.Function):
    """Joins the forward and backward loops; keeps x and per-channel vectors alone."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: Tensor,
        mean: Tensor,
        m2: Tensor,
        minimum: Tensor,
        maximum: Tensor,
        mask: Tensor | None,
        eps: float,
        slope: float | None,
    ) -> Tensor:
        moments = Moments(count, mean, m2, minimum, maximum)
        weight, bias = _in_type(weight, mean.dtype), _in_type(bias, mean.dtype)
        return kernels.normalize(x, moments, weight, bias, eps, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps, ctx.slope = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *fields, mask = ctx.saved_tensors
        moments = Moments(*fields)
        if torch.is_grad_enabled():  # create_graph=True: the gradients themselves are to be differentiated
            grads: tuple[Tensor | None, ...] = _gradients_with_graph(
                grad, x, weight, bias, moments, mask, ctx.eps, ctx.slope
            )
        else:
            dtype = moments.mean.dtype
            weight_, bias_ = _in_type(weight, dtype), _in_type(bias, dtype)
            grads = kernels.normalize_backward(grad, x, moments, weight_, bias_, ctx.eps, ctx.slope, mask)
        grad_x, grad_weight, grad_bias = grads
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_weight.to(weight.dtype) if grad_weight is not None and ctx.needs_input_grad[1] else None,
            grad_bias.to(bias.dtype) if grad_bias is not None and ctx.needs_input_grad[2] else None,
            *([None] * 8),
        )


def _in_type(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


def _gradients_with_graph(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Moments,
    mask: Tensor | None,
    eps: float,
    slope: float | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compose the forward pass from differentiable operators and differentiate it; slower, for gradient penalties."""
    dtype = moments.mean.dtype
    axes = (0, *range(2, x.dim()))
    count = kernels.per_channel(moments.count.clamp(min=1), x)
    values = x.to(dtype)
    values = values if mask is None else torch.where(mask | values.isfinite(), values, 0)
    counted = values if mask is None else torch.where(mask, values, 0)
    mean = counted.sum(axes, keepdim=True) / count
    deviation = values - mean
    counted = deviation if mask is None else torch.where(mask, deviation, 0)
    y = deviation * (counted.square().sum(axes, keepdim=True) / count + eps).rsqrt()
    y = y if weight is None else y * kernels.per_channel(weight.to(dtype), x)
    y = y if bias is None else y + kernels.per_channel(bias.to(dtype), x)
    y = kernels.activate_(y, slope)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y.to(x.dtype), wanted, grad, create_graph=True))
    x_, weight_, bias_ = (next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias))
    return x_, weight_, bias_
