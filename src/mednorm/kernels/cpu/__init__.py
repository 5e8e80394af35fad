"""The loops on a processor's cores, compiled by Numba: float32 and float64, any rank, in few passes over memory.

Each function takes x of shape (N, C, *), not empty, and vectors of shape (G, C) in its type, G being the groups of
samples that share their statistics, or (C,) where all do. No result depends on the number of threads.
"""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu import compiled, threads
from mednorm.kernels.cpu.call import Call
from mednorm.kernels.groups import Groups
from mednorm.moments import Moments


def measure(x: Tensor) -> Moments:
    """Return count, mean, squared deviations and extremes, in one pass."""
    call = Call(x, None)
    found = _place_for_moments(call)
    call.run(arg.MEASURE)
    call.per_channel_run(arg.MERGE)
    return found


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: Groups | None = None,
) -> tuple[Tensor, Moments]:
    """Return x normalized with its own statistics, and these."""
    call = Call(x, groups, eps, slope)
    found = _place_for_moments(call)
    _learned(call, weight, bias)
    y = call.out()
    if call.plan.large:
        call.run(arg.FORWARD)
    else:
        call.run(arg.MEASURE)
        call.per_channel_run(arg.MERGE)
        call.run(arg.NORMALIZE)
    return y, found


def normalize(
    x: Tensor,
    given: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: Groups | None = None,
) -> Tensor:
    """Return act(γ·(x − μ)/√(σ² + ε) + β) with given statistics."""
    call = Call(x, groups, eps, slope)
    _prepared(call, given, weight, bias)
    y = call.out()
    call.run(arg.NORMALIZE)
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    given: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    groups: Groups | None = None,
    *,
    fixed: bool = False,
    by_range: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the weight and of the bias.

    `fixed` says that the statistics are no function of x, `by_range` that σ² is that of its range.
    """
    call = Call(x, groups, eps, slope)
    call.set(arg.FIXED, fixed)
    if by_range:
        call.set(arg.KINDS, arg.TIES)
        call.given(arg.MAXIMUM, given.maximum)
        call.given(arg.MINIMUM, given.minimum)
        call.per_channel(arg.AT_MAXIMUM, arg.AT_MINIMUM)
    call.image(arg.GRAD, grad)
    grad_x, sums = call.out(), x.new_empty((2, *call.shape))
    call.vector(arg.SUMS, sums)
    if not fixed:
        call.lanes(arg.K, arg.M)
    if call.plan.large:
        _learned(call, weight, bias)
        _statistics(call, given)
        call.run(arg.BACKWARD)
    else:
        _prepared(call, given, weight, bias)
        call.run(arg.ADD_UP)
        call.per_channel_run(arg.COLLECT)
        if not fixed:
            call.run(arg.APPLY)
    return grad_x, sums[1].clone(), sums[0].clone()  # apart, as gradients that are kept and written to have to be


def sums(
    grad: Tensor,
    x: Tensor,
    given: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    *,
    squares: bool = False,
) -> Tensor:
    """Return Σh and Σh·d, h being the gradient before the activation and d = x − μ; with `squares` also Σd and Σd².

    Returns:
        (2, C) or (4, C).

    """
    call = Call(x, None, eps, slope)
    call.set(arg.KINDS, arg.SQUARES if squares else arg.GRADIENTS)
    call.image(arg.GRAD, grad)
    _prepared(call, given, weight, bias)
    found = x.new_empty((arg.SUMS_PARTS, *call.shape))
    call.vector(arg.SUMS, found)
    call.run(arg.ADD_UP)
    call.per_channel_run(arg.COLLECT)
    return found[: 4 if squares else 2]


def apply(
    grad: Tensor,
    x: Tensor,
    given: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    k: Tensor,
    m: Tensor,
) -> Tensor:
    """Return the gradient γ/√(σ² + ε)·h − k·d − m of x, for k and m of shape (C,)."""
    call = Call(x, None, eps, slope)
    call.image(arg.GRAD, grad)
    _prepared(call, given, weight, bias)
    repeated = call.plan.width // call.channels
    call.vector(arg.K, k.to(x.dtype).repeat(repeated))
    call.vector(arg.M, m.to(x.dtype).repeat(repeated))
    grad_x = call.out()
    call.run(arg.APPLY)
    return grad_x


def move(
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor,
    skipped: Tensor,
    moments: Moments,
    momentum: float | None,
) -> None:
    """Move running statistics in place towards the mean and unbiased variance of a batch, and count it.

    A batch that is empty in any channel moves nothing; so does one of which any result would be no number, which counts
    as skipped. Without `momentum`, the weight of the batch is 1 over how many there are.
    """
    block, weight = array("q", bytes(8 * arg.LENGTH)), array("d", [0.0, 0.0, -1.0 if momentum is None else momentum])
    ticket = array("q", [0])
    for place, value in (
        (arg.OPERATION, arg.MOVE),
        (arg.TICKET, ticket.buffer_info()[0]),
        (arg.TASKS, 1),
        (arg.GROUPS, 1),
        (arg.CHANNELS, len(running_mean)),
        (arg.EPSILON, weight.buffer_info()[0]),
        (arg.COUNT, moments.count.data_ptr()),
        (arg.MEAN, moments.mean.data_ptr()),
        (arg.M2, moments.m2.data_ptr()),
        (arg.RUNNING_MEAN, running_mean.data_ptr()),
        (arg.RUNNING_VAR, running_var.data_ptr()),
        (arg.TRACKED, tracked.data_ptr()),
        (arg.SKIPPED, skipped.data_ptr()),
    ):
        block[place] = value
    threads.run(compiled.address_of(running_mean.dtype), block.buffer_info()[0], 1)
    for written in (running_mean, running_var, tracked, skipped):
        if not written.is_inference():
            torch.autograd.graph.increment_version(written)


def _place_for_moments(call: Call) -> Moments:
    """Give the call room for what it measures."""
    call.vector(arg.EXTREMES, call.x.new_empty(2 * call.groups * call.plan.blocks * call.channels, dtype=torch.int64))
    count = call.x.new_empty(call.shape, dtype=torch.int64)
    call.vector(arg.COUNT, count)
    return Moments(count, *call.per_channel(arg.MEAN, arg.M2, arg.MINIMUM, arg.MAXIMUM))


def _learned(call: Call, weight: Tensor | None, bias: Tensor | None) -> None:
    """Give γ and β, and room for what is made of them."""
    for place, vector in ((arg.WEIGHT, weight), (arg.BIAS, bias)):
        call.given(place, vector)
    call.lanes(arg.CENTRE, arg.SCALE, arg.SHIFT)


def _statistics(call: Call, given: Moments) -> None:
    for place, vector in ((arg.COUNT, given.count), (arg.MEAN, given.mean), (arg.M2, given.m2)):
        call.given(place, vector)


def _prepared(call: Call, given: Moments, weight: Tensor | None, bias: Tensor | None) -> None:
    _learned(call, weight, bias)
    _statistics(call, given)
    call.per_channel_run(arg.PREPARE)
