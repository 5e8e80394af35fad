"""The loops behind a normalization, whichever run; `functional` and the layers have none of their own.

x has the shape (N, C, *), per-channel vectors (C,), or (G, C) where `groups` of samples have statistics of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mednorm.kernels import aten, choice, cpu, cuda
from mednorm.kernels.affine import Affine
from mednorm.kernels.aten import Reduce
from mednorm.kernels.groups import Groups, rows
from mednorm.moments import Moments


def measure(x: Tensor, mask: Tensor | None = None) -> Moments:
    """Return what `Moments.of` returns."""
    if mask is None and choice.on_cpu(x):
        return Moments(*_ops().measure(x.detach())) if torch.compiler.is_compiling() else cpu.measure(x)
    if mask is None and choice.on_cuda(x):
        found = cuda.measure(x)
        return Moments(torch.full_like(found[0], x.numel() // x.shape[1], dtype=torch.int64), *found)
    return Moments.of(x, mask=mask)


def prepare(dtype: torch.dtype = torch.float32) -> None:
    """Compile the loops for images of a type on the CPU now, where they are compiled at all.

    Example:
        >>> from mednorm import kernels
        >>> kernels.prepare()
        >>> kernels.info().kernels == "aten" or "float32" in kernels.info().compiled
        True

    """
    measure(torch.zeros((2, 1, 2), dtype=dtype, device="cpu"))


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: Groups | None = None,
) -> tuple[Tensor, Moments]:
    """Return x normalized with its own statistics, and these, (C,) or (G, C)."""
    if choice.on_cpu(x):
        if torch.compiler.is_compiling():
            y, *fields = _ops().forward(x, weight, bias, eps, slope, *_spelt(groups))
            found = Moments(*fields)
        else:
            y, found = cpu.forward(x, weight, bias, eps, slope, groups)
        return y, found
    if groups is not None:
        vectors = zip(groups.split(x), rows(weight, groups), rows(bias, groups), strict=True)
        parts = [forward(part, w, b, eps, slope) for part, w, b in vectors]
        fields = (torch.stack(field) for field in zip(*(moments.fields() for _, moments in parts), strict=True))
        return groups.join([y for y, _ in parts]), Moments(*fields)
    moments = measure(x)
    return normalize(x, moments, weight, bias, eps, slope), moments


def normalize(
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: Groups | None = None,
) -> Tensor:
    """Return act(γ·(x − μ)/√(σ² + ε) + β), bit by bit that of `forward` where it gave the moments."""
    if choice.on_cpu(x) and moments.mean.dtype == x.dtype:
        if torch.compiler.is_compiling():
            return _ops().normalize(x, *moments.fields()[:3], weight, bias, eps, slope, *_spelt(groups))  # type: ignore[no-any-return]
        return cpu.normalize(x, moments, weight, bias, eps, slope, groups)
    if groups is not None:
        vectors = zip(groups.split(x), _each(moments), rows(weight, groups), rows(bias, groups), strict=True)
        return groups.join([normalize(part, own, w, b, eps, slope) for part, own, w, b in vectors])
    if choice.on_cuda(x):
        return cuda.normalize(x, _affine(moments, weight, bias, eps, slope))
    return aten.normalize(x, moments, weight, bias, eps, slope)


def normalize_backward(
    grad: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    mask: Tensor | None = None,
    *,
    groups: Groups | None = None,
    fixed: bool = False,
    by_range: bool = False,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `aten.normalize_backward` does, the gradients of weight and bias (G, C) where there are groups."""
    alone = mask is None and reduce is None and (torch.compiler.is_compiling() or choice.plain(grad))
    if alone and choice.on_cpu(x) and moments.mean.dtype == x.dtype:
        learned = weight, bias, eps, slope
        if torch.compiler.is_compiling():
            spelt = *learned, *_spelt(groups), fixed, by_range
            return _ops().normalize_backward(grad.to(x.dtype), x, *moments.fields(), *spelt)  # type: ignore[no-any-return]
        return cpu.backward(grad.to(x.dtype), x, moments, *learned, groups, fixed=fixed, by_range=by_range)
    if groups is not None:
        split = groups.split(grad), groups.split(x), _each(moments), rows(weight, groups), rows(bias, groups)
        parts = [
            normalize_backward(g, part, own, w, b, eps, slope, fixed=fixed, by_range=by_range)
            for g, part, own, w, b in zip(*split, strict=True)
        ]
        grads_x, grads_weight, grads_bias = zip(*parts, strict=True)
        return groups.join(grads_x), torch.stack(grads_weight), torch.stack(grads_bias)
    if (
        mask is None
        and not by_range
        and has_sums(x)
        and choice.plain(grad)
        and (x.is_cuda or moments.mean.dtype == x.dtype)
    ):
        return _by_sums(grad, x, moments, weight, bias, eps, slope, fixed, reduce)
    return aten.normalize_backward(
        grad, x, moments, weight, bias, eps, slope, mask, fixed=fixed, by_range=by_range, reduce=reduce
    )


def has_sums(x: Tensor, squares: bool = False) -> bool:
    """Tell whether `sums` and `apply` take x."""
    if choice.on_cuda(x):
        return not squares
    return not torch.compiler.is_compiling() and choice.on_cpu(x)


def sums(
    grad: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    squares: bool = False,
) -> Tensor:
    """Return Σh and Σh·d, h being the gradient before the activation and d = x − μ; with `squares` also Σd and Σd²."""
    if choice.on_cuda(x):
        return cuda.sums(grad, x, _affine(moments, weight, bias, eps, slope))
    return cpu.sums(grad.to(x.dtype), x, moments, weight, bias, eps, slope, squares=squares)


def apply(
    grad: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    k: Tensor,
    m: Tensor,
) -> Tensor:
    """Return the gradient γ/√(σ² + ε)·h − k·d − m of x."""
    if choice.on_cuda(x):
        return cuda.apply(grad, x, _affine(moments, weight, bias, eps, slope), k, m)
    return cpu.apply(grad.to(x.dtype), x, moments, weight, bias, eps, slope, k, m)


def can_move(running: tuple[Tensor, Tensor], counts: tuple[Tensor, Tensor], moments: Moments) -> bool:
    """Tell whether `move` takes these: it writes to memory, so they must be what they seem."""
    if torch.compiler.is_compiling():
        return False
    like = moments.mean
    return all(
        choice.on_cpu(each) and (each.dtype, each.shape) == (like.dtype, like.shape) and each.is_contiguous()
        for each in (*running, like, moments.m2)
    ) and all(
        each.device.type == "cpu" and each.dtype == torch.int64 and each.is_contiguous() and each.shape == shape
        for each, shape in ((counts[0], ()), (counts[1], ()), (moments.count, like.shape))
    )


move = cpu.move


def _by_sums(
    grad: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    fixed: bool,
    reduce: Reduce | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the sums, add them up over processes, and apply them."""
    given = grad, x, moments, weight, bias, eps, slope
    invstd = (moments.variance + eps).rsqrt()
    grad_bias, products = sums(*given)
    grad_weight = products * invstd
    k = m = torch.zeros_like(invstd)
    if not fixed:
        total = torch.stack((grad_bias, grad_weight))
        total_bias, total_weight = total if reduce is None else reduce(total)
        scale = invstd if weight is None else invstd * weight
        m = scale * total_bias / moments.count
        k = scale * invstd * total_weight / moments.count
    return apply(*given, k, m), grad_weight, grad_bias


def _affine(moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float | None) -> Affine:
    invstd = (moments.variance + eps).rsqrt()
    return Affine(
        moments.mean,
        invstd if weight is None else invstd * weight,
        torch.zeros_like(invstd) if bias is None else bias,
        slope,
    )


def _ops() -> Any:
    return torch.ops.mednorm


def _spelt(groups: Groups | None) -> tuple[list[int] | None, Tensor | None]:
    """Return groups as an operator takes them."""
    return (None, None) if groups is None else (list(groups.sizes), groups.order)


def _each(moments: Moments) -> list[Moments]:
    return [Moments(*fields) for fields in zip(*moments.fields(), strict=True)]
