"""The compiled loops as PyTorch's operators `torch.ops.mednorm`, which `torch.compile` and `torch.export` see as one.

They take x of shape (N, C, *), and take and return vectors (C,), or (G, C): one row a group of samples. Where
the loops do not run, on another device or in half precision, an operator does the same in PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mednorm.kernels import loops
from mednorm.kernels.cpu import layout
from mednorm.kernels.groups import Groups
from mednorm.moments import Moments


def _groups(x: Tensor, sizes: list[int] | None, order: Tensor | None) -> Groups | None:
    if sizes is None:
        return None
    groups = Groups(sizes, order)
    groups.check(len(x))
    return groups


@torch.library.custom_op("mednorm::measure", mutates_args=())
def measure(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the five fields of `Moments`."""
    count, mean, m2, minimum, maximum = _apart(loops.measure(x).fields())
    return count, mean, m2, minimum, maximum


@torch.library.custom_op("mednorm::forward", mutates_args=())
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    sizes: list[int] | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return x normalized with its own statistics, and the five fields of `Moments`."""
    y, moments = loops.forward(x, weight, bias, eps, slope, _groups(x, sizes, order))
    return _laid_out(y, x), *_apart(moments.fields())


@torch.library.custom_op("mednorm::normalize", mutates_args=())
def normalize(
    x: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    sizes: list[int] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Return x normalized with given statistics."""
    moments = Moments(count, mean, m2, mean, mean)
    return _laid_out(loops.normalize(x, moments, weight, bias, eps, slope, _groups(x, sizes, order)), x)


@torch.library.custom_op("mednorm::normalize_backward", mutates_args=())
def normalize_backward(
    grad: Tensor,
    x: Tensor,
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    minimum: Tensor,
    maximum: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    sizes: list[int] | None = None,
    order: Tensor | None = None,
    fixed: bool = False,
    by_range: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, and of weight and bias."""
    moments = Moments(count, mean, m2, minimum, maximum)
    grad_x, *vectors = loops.normalize_backward(
        grad, x, moments, weight, bias, eps, slope, groups=_groups(x, sizes, order), fixed=fixed, by_range=by_range
    )
    return _laid_out(grad_x, x), *_apart(vectors)


def _apart(vectors: Sequence[Tensor]) -> Any:
    """Return copies: the results of an operator share no memory."""
    return tuple(vector.clone() for vector in vectors)


def _like(x: Tensor) -> Tensor:
    return layout.like(x, layout.kind_of(x))


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """Return y with the strides that the operator promises."""
    promised = _like(x)
    return y if y.stride() == promised.stride() else promised.copy_(y)


def _like_moments(x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[1],) if sizes is None else (len(sizes), x.shape[1])
    return x.new_empty(shape, dtype=torch.int64), *(x.new_empty(shape, dtype=dtype) for _ in range(4))


@measure.register_fake
def _(x: Tensor) -> Any:
    return _like_moments(x)


@forward.register_fake
def _(x: Tensor, weight: Any, bias: Any, eps: Any, slope: Any, sizes: Any = None, *rest: Any) -> Any:
    return _like(x), *_like_moments(x, sizes)


@normalize.register_fake
def _(x: Tensor, *rest: Any) -> Any:
    return _like(x)


@normalize_backward.register_fake
def _(grad: Any, x: Tensor, *rest: Any) -> Any:
    sizes = rest[9] if len(rest) > 9 else None
    return _like(x), *_like_moments(x, sizes)[1:3]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.eps, ctx.slope, ctx.sizes, order = inputs
    ctx.save_for_backward(x, weight, bias, order, *output[1:])


def _differentiate(ctx: Any, grad: Tensor, *rest: Any) -> Any:
    x, weight, bias, order, *fields = ctx.saved_tensors
    grads = normalize_backward(grad, x, *fields, weight, bias, ctx.eps, ctx.slope, ctx.sizes, order)
    return grads[0], _to_vector(grads[1], weight), _to_vector(grads[2], bias), *([None] * 4)


def _keep_given(ctx: Any, inputs: Any, output: Any) -> None:
    x, count, mean, m2, weight, bias, ctx.eps, ctx.slope, ctx.sizes, order = inputs
    ctx.save_for_backward(x, weight, bias, order, count, mean, m2)


def _differentiate_given(ctx: Any, grad: Tensor) -> Any:
    """Differentiate with the statistics as constants."""
    x, weight, bias, order, count, mean, m2 = ctx.saved_tensors
    fields = count, mean, m2, mean, mean
    grads = normalize_backward(grad, x, *fields, weight, bias, ctx.eps, ctx.slope, ctx.sizes, order, True)
    return grads[0], None, None, None, _to_vector(grads[1], weight), _to_vector(grads[2], bias), *([None] * 4)


def _to_vector(grad: Tensor, vector: Tensor | None) -> Tensor | None:
    """Return the gradient of γ or β from the rows of its groups, which all share it unless it has rows itself."""
    return None if vector is None else grad.sum(0) if vector.dim() < grad.dim() else grad


forward.register_autograd(_differentiate, setup_context=_keep)
normalize.register_autograd(_differentiate_given, setup_context=_keep_given)
