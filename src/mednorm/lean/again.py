"""Which functions are computed again, and how: those that are cheap, and give the same bits for the same input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mednorm import kernels
from mednorm.functional import activation_slope, batch_normalize, normalize
from mednorm.kernels import choice
from mednorm.layers.projection import NormalizeProjected
from mednorm.moments import Moments


class Call(NamedTuple):
    """A call that was made, to be made again.

    Attributes:
        result: what it gave.
        inputs: the tensors that it is computed from.
        function: of the inputs, giving the result again.
        constants: what the function holds in memory.
        fresh: the function gives memory that is nobody else's.
        overwriting: the function, written into its input; None where there is no such form.

    """

    result: Tensor
    inputs: Sequence[Tensor]
    function: Callable[..., Tensor]
    constants: Sequence[Tensor] = ()
    fresh: bool = False
    overwriting: Callable[[Tensor], Tensor] | None = None


def is_made_again(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Tell whether calls of a function are computed again."""
    return bool(args) and (function in _AGAIN or function in _TAKEN_APART)


def may_keep(function: Callable[..., Any]) -> bool:
    """Tell whether an input that nobody else keeps may be kept in the result's place, where that is smaller."""
    return function in _CONCATENATIONS or function is F.interpolate


def call_again(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call | None:
    """Take a call apart; None for one whose result or arguments are of another kind than a network's."""
    if function in _TAKEN_APART:
        return _TAKEN_APART[function](result, *args, **kwargs)
    if not isinstance(args[0], Tensor):
        return None
    held = [*args[1:], *(value for name, value in kwargs.items() if name not in _OF_THE_GRADIENT)]
    if not isinstance(result, Tensor) or any(isinstance(value, Tensor) and value.dim() > 1 for value in held):
        return None
    constants: list[Tensor] = []
    rest = [_held(value, constants) for value in args[1:]]
    named = {name: _held(value, constants) for name, value in kwargs.items() if name not in _OF_THE_GRADIENT}
    again = _AGAIN[function]
    in_place = _IN_PLACE.get(again)
    return Call(
        result,
        args[:1],
        _by_the_same_loops(lambda x: again(x, *rest, **named)),
        constants,
        fresh=again in (normalize, _batch_norm),
        overwriting=None if in_place is None else lambda x: in_place(x, *rest, **named),
    )


def _held(value: Any, constants: list[Tensor]) -> Any:
    """Copy what a step of the optimizer or the next batch may write into: vectors over channels."""
    if isinstance(value, Moments):
        return Moments(*(_held(field, constants) for field in value.fields()))
    if not isinstance(value, Tensor):
        return value
    constants.append(value.detach().clone())
    return constants[-1]


def _by_the_same_loops(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute by the loops that are chosen now, whichever are then: others round differently."""
    loops = choice.chosen()

    def again(*inputs: Tensor) -> Tensor:
        if choice.chosen() == loops:
            return function(*inputs)
        with kernels.use(loops):
            return function(*inputs)

    return again


def _batch_normalize(
    found: tuple[Tensor, Moments],
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: Any = None,
    negative_slope: float = 0.01,
    groups: kernels.Groups | None = None,
) -> Call:
    y, moments = found
    return _normalized(y, x, moments, weight, bias, eps, activation_slope(activation, negative_slope), groups)


def _projected(
    y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    means: Tensor,
    passes: Tensor,
    eps: float,
    slope: float | None,
    *of_the_gradient: Any,
) -> Call:
    return _normalized(y, x, Moments.given(mean, variance), weight, bias, eps, slope)


def _normalized(
    y: Tensor,
    x: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: kernels.Groups | None = None,
) -> Call:
    """Normalize by the loops alone, whose bits are those of the functions that measure, or project gradients."""
    fields = [field.detach() for field in moments.fields()]
    vectors = [None if v is None else v.detach().to(fields[1].dtype, copy=True) for v in (weight, bias)]

    def again(x: Tensor) -> Tensor:
        return kernels.normalize(x, Moments(*fields), vectors[0], vectors[1], eps, slope, groups)

    constants = [*fields, *(vector for vector in vectors if vector is not None)]
    return Call(y, [x], _by_the_same_loops(again), constants, fresh=True)


def _concatenation(
    result: Any, tensors: Any, dim: int = 0, *, out: Tensor | None = None, axis: int | None = None
) -> Call | None:
    if out is not None or not all(isinstance(part, Tensor) for part in tensors):
        return None
    along = dim if axis is None else axis
    return Call(result, list(tensors), lambda *parts: torch.cat(parts, along))


def _batch_norm(
    x: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    mean, var = (None, None) if training else (mean, var)  # which have moved, and must not move again
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute the like of an activation out of place."""

    def apply(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return function(x, *(value for value in args if not isinstance(value, bool)), **kwargs)

    return apply


# What changes the gradient of a call alone, or where its result is written.
_OF_THE_GRADIENT = ("mask", "process_group", "inplace")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_TAKEN_APART: dict[Any, Callable[..., Call | None]] = {
    batch_normalize: _batch_normalize,
    NormalizeProjected.apply: _projected,
    **dict.fromkeys(_CONCATENATIONS, _concatenation),
}
_RELU, _LEAKY = _plain(torch.relu), _plain(F.leaky_relu)
_IN_PLACE: dict[Any, Callable[..., Tensor]] = {_RELU: _plain(torch.relu_), _LEAKY: _plain(F.leaky_relu_)}
_AGAIN: dict[Any, Callable[..., Tensor]] = {
    normalize: normalize,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _RELU),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _LEAKY),
    **{function: _plain(function) for function in (F.elu, F.silu, F.mish, F.hardswish, F.relu6)},
    **{function: function for function in (F.gelu, torch.prelu, torch.sigmoid, torch.tanh)},
    # No pooling: its output is an eighth of its input, or a quarter, and takes all of the input to compute.
    **{function: function for function in (F.pad, F.interpolate, Tensor.to)},
    Tensor.__getitem__: Tensor.__getitem__,
}
