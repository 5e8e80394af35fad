"""Differentiable normalization of a tensor, given its `Moments`. Layers hold state and call this."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.kernels.groups import rows
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
    by_range: bool = False,
    fixed: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Normalize each channel with the moments of x itself, scale, shift, and optionally rectify, as one operation.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta\right)

    with :math:`\mu,\sigma^2` the mean and *biased* variance of `moments`, :math:`\gamma` the weight and :math:`\beta`
    the bias.
    The arithmetic runs in the type of the moments (float32 for half-precision input); the result has x's type.

    Args:
        x: shape ``(N, C, *)``, any strides.
        moments: those of x, shape ``(C,)``: gradients flow through them to x. With a `process_group`, those of the x
            of all its processes (`Moments.all_reduce`).
        weight: shape ``(C,)``; 1 where None.
        bias: shape ``(C,)``; 0 where None.
        eps: added to the variance.
        mask: the mask with which `moments` were measured. Values it leaves out are normalized like the others but
            did not enter the statistics, so no gradient flows through the statistics to them.
        activation: rectify in the same operation; only x is kept for the backward pass.
        negative_slope: slope of ``"leaky_relu"`` below 0.
        by_range: the moments' spread is that of their range (`Moments.by_range`), so that gradients flow to the
            extremes in the place of every deviation.
        fixed: the moments are given and not those of x: no gradient flows through them.
        process_group: add the backward pass's sums up over these processes. Every one of them takes part in every
            backward pass, also with an x without samples. The gradients of weight and bias stay each process's own.

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
    way = _Way(eps, slope, by_range, fixed, None, process_group)
    y: Tensor = _Normalize.apply(x, weight, bias, *moments.fields(), full_mask, None, way)  # type: ignore[no-untyped-call]
    return y


def batch_normalize(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    groups: kernels.Groups | None = None,
) -> tuple[Tensor, Moments]:
    """Measure x and normalize it, in fewer passes over memory than one after the other.

    Args:
        x: shape ``(N, C, *)``, any strides.
        weight: shape ``(C,)``, or ``(G, C)`` with one row a group; 1 where None.
        bias: likewise; 0 where None.
        eps: added to the variance.
        activation: rectify in the same operation; only x is kept for the backward pass.
        negative_slope: slope of ``"leaky_relu"`` below 0.
        groups: samples that share their statistics; None for all.

    Returns:
        y of x's shape and type, and the moments of x, ``(C,)``, or with `groups` ``(G, C)``. No gradient flows through
        the moments.

    Raises:
        ShapeError: x has fewer than 2 axes, or whole numbers.
        ConfigError: an unknown activation.

    Example:
        >>> import torch
        >>> y, moments = batch_normalize(torch.randn(4, 3, 5, 5))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5), moments.mean.shape
        (True, torch.Size([3]))

    Reference:
        Ioffe & Szegedy (2015), "Batch Normalization", Algorithm 1.

    """
    if x.dim() < 2 or not x.is_floating_point():
        raise ShapeError(
            f"batch_normalize: expected floating-point values of shape (N, C, *), got {x.dtype} of shape "
            f"{tuple(x.shape)}. Pass `x.float()`, with its batch axis."
        )
    if groups is not None and len(x) > 0 and not torch.compiler.is_compiling():
        groups.check(len(x))
    sizes, order = (None, None) if groups is None else groups
    way = _Way(
        eps, activation_slope(activation, negative_slope), by_range=False, fixed=False, sizes=sizes, process_group=None
    )
    y, *fields = _MeasureAndNormalize.apply(x, weight, bias, order, way)  # type: ignore[no-untyped-call]
    return y, Moments(*fields)


def activation_slope(activation: Activation | None, negative_slope: float) -> float | None:
    """Return the slope below 0: 0 for ReLU, None without an activation.

    Raises:
        ConfigError: an unknown activation, or a slope out of its range.

    """
    match activation:
        case None:
            return None
        case "relu":
            return 0.0
        case "leaky_relu" if 0 <= negative_slope < math.inf:
            return negative_slope
        case "leaky_relu":
            raise ConfigError(f"activation: expected negative_slope of at least 0 and finite, got {negative_slope!r}.")
    raise ConfigError(f"activation: expected one of None, {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}.")


class _Way(NamedTuple):
    """How to normalize: what does not depend on the values."""

    eps: float
    slope: float | None
    by_range: bool
    fixed: bool
    sizes: Sequence[int] | None
    process_group: dist.ProcessGroup | None

    def groups(self, order: Tensor | None) -> kernels.Groups | None:
        return None if self.sizes is None else kernels.Groups(self.sizes, order)


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
        order: Tensor | None,
        way: _Way,
    ) -> Tensor:
        moments = Moments(count, mean, m2, minimum, maximum)
        weight, bias = _in_type(weight, mean.dtype), _in_type(bias, mean.dtype)
        return kernels.normalize(x, moments, weight, bias, way.eps, way.slope, way.groups(order))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.way = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad), *([None] * 8)


class _MeasureAndNormalize(torch.autograd.Function):
    """The same with x's own statistics, which it returns too."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, order: Tensor | None, way: _Way
    ) -> tuple[Tensor, ...]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight, bias = _in_type(weight, dtype), _in_type(bias, dtype)
        y, moments = kernels.forward(x, weight, bias, way.eps, way.slope, way.groups(order))
        return y, *moments.fields()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, order, ctx.way = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, *output[1:], None, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_moments: None) -> tuple[Tensor | None, ...]:
        grads: Sequence[Tensor | None] = [None] * 3 if grad is None else _gradients(ctx, grad)
        return *grads, None, None


# PyTorch binds the arguments of these at every call, and would take their signatures apart each time.
for _forward in (_Normalize.forward, _MeasureAndNormalize.forward):
    vars(_forward)["__signature__"] = inspect.signature(_forward)


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients of x, of the weight and of the bias."""
    x, weight, bias, *fields, mask, order = ctx.saved_tensors
    moments, way = Moments(*fields), ctx.way
    reduce = None if way.process_group is None else _SumOver(way.process_group)
    if torch.is_grad_enabled():  # create_graph=True: the gradients themselves are to be differentiated
        found: Sequence[Tensor | None] = _gradients_with_graph(grad, x, weight, bias, moments, mask, way, order, reduce)
    else:
        dtype = moments.mean.dtype
        found = kernels.normalize_backward(
            grad,
            x,
            moments,
            _in_type(weight, dtype),
            _in_type(bias, dtype),
            way.eps,
            way.slope,
            mask,
            groups=way.groups(order),
            fixed=way.fixed,
            by_range=way.by_range,
            reduce=reduce,
        )
    return [
        _like_input(each, of) if needed and each is not None and of is not None else None
        for each, of, needed in zip(found, (x, weight, bias), ctx.needs_input_grad[:3], strict=True)
    ]


def _like_input(grad: Tensor, of: Tensor) -> Tensor:
    """Return a gradient in the type of what it is of; that of a vector which all groups share, summed over them."""
    return (grad.sum(0) if grad.dim() > of.dim() else grad).to(of.dtype)


def _in_type(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


class _SumOver:
    """Adds up a tensor over the processes of a group, as often differentiable as one likes."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, sums: Tensor) -> Tensor:
        total: Tensor = _AllReduce.apply(sums, self.group)  # type: ignore[no-untyped-call]
        return total


class _AllReduce(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of the gradients over processes."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = sums.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]


def _gradients_with_graph(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Moments,
    mask: Tensor | None,
    way: _Way,
    order: Tensor | None,
    reduce: kernels.Reduce | None,
) -> list[Tensor | None]:
    """Compose the forward pass from differentiable operators and differentiate it; slower, for gradient penalties."""
    groups = way.groups(order)
    if groups is None:
        y = _composed(x, weight, bias, moments, mask, way, reduce)
    else:
        each = zip(
            groups.split(x), rows(weight, groups), rows(bias, groups), zip(*moments.fields(), strict=True), strict=True
        )
        y = groups.join([_composed(part, w, b, Moments(*fields), None, way, None) for part, w, b, fields in each])
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)]


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Moments,
    mask: Tensor | None,
    way: _Way,
    reduce: kernels.Reduce | None,
) -> Tensor:
    dtype = moments.mean.dtype
    axes = (0, *range(2, x.dim()))
    count = kernels.per_channel(moments.count.clamp(min=1), x)
    values = x.to(dtype)
    values = values if mask is None else torch.where(mask | values.isfinite(), values, 0)
    kept = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask

    def total(summands: Tensor) -> Tensor:
        sums = summands.sum(axes, keepdim=True)
        return sums if reduce is None else reduce(sums)

    if way.fixed:
        deviation, variance = values - kernels.per_channel(moments.mean, x), kernels.per_channel(moments.variance, x)
    else:
        deviation = values - total(torch.where(kept, values, 0)) / count
        variance = total(torch.where(kept, deviation, 0).square()) / count
    if way.by_range:
        # An extreme as the mean of the values that are equal to it: so their gradient is its share, and differentiable.
        at = [(values == kernels.per_channel(e, x)) & kept for e in (moments.maximum, moments.minimum)]
        highest, lowest = (total(torch.where(where, values, 0)) / total(where.to(dtype)).clamp(min=1) for where in at)
        extent = moments.maximum - moments.minimum
        of_range = torch.where(extent > 0, moments.std / extent, 0)
        variance = (kernels.per_channel(of_range, x) * (highest - lowest)).square()
    y = deviation * (variance + way.eps).rsqrt()
    y = y if weight is None else y * kernels.per_channel(weight.to(dtype), x)
    y = y if bias is None else y + kernels.per_channel(bias.to(dtype), x)
    return kernels.activate_(y, way.slope).to(x.dtype)
