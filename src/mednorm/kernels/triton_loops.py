"""The loops in Triton's language; importing this imports Triton. `mednorm.kernels.cuda` chooses the tiles and launches.

Every tensor is seen as (outer, channels, inner), the last axis densest: (N, C, voxels) where it is contiguous,
(N·voxels, C, 1) where it is channels_last, so that one program serves both. It works on tiles of OUTER × CHANNELS ×
INNER values. What adds up does so lane by lane over the tiles of one program, then once over the lanes; each program
leaves its part, in float64, to a second kernel: no atomics, so the same order and the same result every time.

The last axis is given as `groups` of EVEN values: so Triton knows by what it can be divided, and loads as many at once.
"""

# Triton reads this source itself: its functions are no Python that a type checker could follow.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, SIM108

import torch
import triton
import triton.language as tl

ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _tile(index, block, outer, channels, inner, OUTER: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr):
    """Return a tile's offsets, which of them exist, its channels, which of those exist, and its values a channel.

    In 64 bits, which cost nothing beside 64-bit pointers: a tensor may have more than 2^31 values.
    """
    across = tl.cdiv(inner, INNER)
    first_outer = (index // across).to(tl.int64) * OUTER
    first_inner = (index % across).to(tl.int64) * INNER
    o = (first_outer + tl.arange(0, OUTER))[:, None, None]
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    i = (first_inner + tl.arange(0, INNER))[None, None, :]
    offsets = (o * channels + c[None, :, None]) * inner + i
    exists = (o < outer) & (c < channels)[None, :, None] & (i < inner)
    values = tl.minimum(outer - first_outer, OUTER) * tl.minimum(inner - first_inner, INNER)
    return offsets, exists, c, c < channels, values


@triton.jit
def _vector(pointer, c, known):
    return tl.load(pointer + c, mask=known, other=0)[None, :, None]


@triton.jit
def _over_lanes(tile):
    return tl.sum(tl.sum(tile, 2), 0)


@triton.jit
def _smallest(tile):
    """Return each channel's smallest value, NaN where there is one: `tl.min` alone would pass over it."""
    broken = tl.max(tl.max((tile != tile).to(tl.int32), 2), 0)
    return tl.where(broken > 0, float("nan"), tl.min(tl.min(tile, 2), 0))


@triton.jit
def _before_activation(x, mean, scale, bias, c, known):
    """Return x − μ and its scaled and shifted value; rounded alike in every kernel, so that all see the same sign."""
    deviation = x - _vector(mean, c, known)
    return deviation, tl.fma(deviation, _vector(scale, c, known), _vector(bias, c, known))


@triton.jit
def _through_activation(grad, before, SLOPE: tl.constexpr):
    """Return the gradient before the activation; where its input is NaN, what PyTorch gives."""
    if SLOPE is None:
        h = grad
    elif SLOPE == 0:
        h = tl.where(before <= 0, 0.0, grad)
    else:
        h = tl.where(before > 0, grad, grad * SLOPE)
    return h


@triton.jit(do_not_specialize=["outer", "tiles", "each", "count_of_parts"])
def measure(
    x, parts, outer, channels, groups, tiles, each, count_of_parts,
    EVEN: tl.constexpr, TYPE: tl.constexpr, OUTER: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Leave count, mean, sum of squared deviations, minimum and maximum of a program's tiles in `parts`, (5, parts, C).

    Deviations are taken from the mean of the first of the T tiles. That tile's values lie about it, so that the sum of
    squares from there is at most 1 + T times the one from the true mean: no more than T roundings can be lost.
    """
    inner = groups * EVEN
    part = tl.program_id(0) % count_of_parts
    block = tl.program_id(0) // count_of_parts
    start = part * each
    offsets, exists, c, known, values = _tile(start, block, outer, channels, inner, OUTER, CHANNELS, INNER)
    shift = _over_lanes(tl.load(x + offsets, mask=exists, other=0).to(TYPE)) / values.to(TYPE)
    shift = tl.where(tl.abs(shift) < float("inf"), shift, 0.0)
    total = tl.zeros([OUTER, CHANNELS, INNER], TYPE)
    squares = tl.zeros([OUTER, CHANNELS, INNER], TYPE)
    low = tl.full([OUTER, CHANNELS, INNER], float("inf"), TYPE)
    high = tl.full([OUTER, CHANNELS, INNER], float("-inf"), TYPE)
    n = values * 0
    for index in range(start, tl.minimum(start + each, tiles)):
        offsets, exists, c, known, values = _tile(index, block, outer, channels, inner, OUTER, CHANNELS, INNER)
        value = tl.load(x + offsets, mask=exists, other=0).to(TYPE)
        deviation = tl.where(exists, value - shift[None, :, None], 0.0)
        total += deviation
        squares += deviation * deviation
        low = tl.where((exists & (value < low)) | (value != value), value, low)  # nothing is smaller than NaN
        high = tl.where((exists & (value > high)) | (value != value), value, high)
        n += values
    count = tl.full([CHANNELS], 0, tl.float64) + n.to(tl.float64)
    summed = _over_lanes(total).to(tl.float64)
    m2 = _over_lanes(squares).to(tl.float64) - summed * (summed / count)
    at = parts + part * channels + c
    field = count_of_parts * channels
    tl.store(at, count, mask=known)
    tl.store(at + field, shift.to(tl.float64) + summed / count, mask=known)
    tl.store(at + 2 * field, tl.where(m2 < 0, 0.0, m2), mask=known)
    tl.store(at + 3 * field, _smallest(low).to(tl.float64), mask=known)
    tl.store(at + 4 * field, -_smallest(-high).to(tl.float64), mask=known)


@triton.jit(do_not_specialize=["channels", "count_of_parts"])
def merge(
    parts, mean, m2, minimum, maximum, channels, count_of_parts, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Pool the parts of each channel by Chan's formula."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    field = count_of_parts * channels
    n = tl.full([PARTS, CHANNELS], 0, tl.float64)
    total = tl.full([PARTS, CHANNELS], 0, tl.float64)
    low = tl.full([PARTS, CHANNELS], float("inf"), tl.float64)
    high = tl.full([PARTS, CHANNELS], float("-inf"), tl.float64)
    for first in range(0, count_of_parts, PARTS):
        p = first + tl.arange(0, PARTS)
        exists = (p < count_of_parts)[:, None] & known[None, :]
        at = parts + p[:, None] * channels + c[None, :]
        count = tl.load(at, mask=exists, other=0)
        n += count
        total += count * tl.load(at + field, mask=exists, other=0)
        smallest = tl.load(at + 3 * field, mask=exists, other=float("inf"))
        largest = tl.load(at + 4 * field, mask=exists, other=float("-inf"))
        low = tl.where((smallest < low) | (smallest != smallest), smallest, low)
        high = tl.where((largest > high) | (largest != largest), largest, high)
    center = tl.sum(total, 0) / tl.maximum(tl.sum(n, 0), 1)  # 1 where there is no channel
    squares = tl.full([PARTS, CHANNELS], 0, tl.float64)
    for first in range(0, count_of_parts, PARTS):
        p = first + tl.arange(0, PARTS)
        exists = (p < count_of_parts)[:, None] & known[None, :]
        at = parts + p[:, None] * channels + c[None, :]
        apart = tl.load(at + field, mask=exists, other=0) - center[None, :]
        within = tl.load(at + 2 * field, mask=exists, other=0)
        squares += tl.where(exists, within + tl.load(at, mask=exists, other=0) * apart * apart, 0.0)
    tl.store(mean + c, center, mask=known)
    tl.store(m2 + c, tl.sum(squares, 0), mask=known)
    tl.store(minimum + c, _smallest(low[:, :, None]), mask=known)
    tl.store(maximum + c, -_smallest(-high[:, :, None]), mask=known)


@triton.jit(do_not_specialize=["outer", "last", "blocks"])
def normalize(
    x, y, mean, scale, bias, outer, channels, groups, last, blocks, SLOPE: tl.constexpr,
    EVEN: tl.constexpr, TYPE: tl.constexpr, OUTER: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Write y = act((x − μ)·scale + bias), a tile a program."""
    inner = groups * EVEN
    tile, block = _last_first(last, blocks, inner, INNER)
    offsets, exists, c, known, _ = _tile(tile, block, outer, channels, inner, OUTER, CHANNELS, INNER)
    value = tl.load(x + offsets, mask=exists, other=0).to(TYPE)
    _, before = _before_activation(value, mean, scale, bias, c, known)
    if SLOPE is None:
        after = before
    else:
        after = tl.where(before <= 0, 0.0 if SLOPE == 0 else before * SLOPE, before)  # a selection: NaN passes
    tl.store(y + offsets, after, mask=exists)


@triton.jit(do_not_specialize=["outer", "tiles", "each", "count_of_parts"])
def sums(
    grad, x, parts, mean, scale, bias, outer, channels, groups, tiles, each, count_of_parts, SLOPE: tl.constexpr,
    EVEN: tl.constexpr, TYPE: tl.constexpr, OUTER: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Leave Σh and Σh·(x − μ) over a program's tiles in `parts`, (2, parts, C)."""
    inner = groups * EVEN
    part = tl.program_id(0) % count_of_parts
    block = tl.program_id(0) // count_of_parts
    start = part * each
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OUTER, CHANNELS, INNER], TYPE)
    products = tl.zeros([OUTER, CHANNELS, INNER], TYPE)
    for index in range(start, tl.minimum(start + each, tiles)):
        offsets, exists, c, known, _ = _tile(index, block, outer, channels, inner, OUTER, CHANNELS, INNER)
        value = tl.load(x + offsets, mask=exists, other=0).to(TYPE)
        above = tl.load(grad + offsets, mask=exists, other=0).to(TYPE)
        deviation, before = _before_activation(value, mean, scale, bias, c, known)
        h = _through_activation(above, before, SLOPE)
        total += h
        products += h * deviation  # 0 where there is no value: its gradient was loaded as 0
    at = parts + part * channels + c
    tl.store(at, _over_lanes(total).to(tl.float64), mask=c < channels)
    tl.store(at + count_of_parts * channels, _over_lanes(products).to(tl.float64), mask=c < channels)


@triton.jit(do_not_specialize=["channels", "count_of_parts"])
def add(parts, added, channels, count_of_parts, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """Add up the parts, (fields, parts, C), of each channel in their order into `added`, (fields, C)."""
    field = tl.program_id(1)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.full([PARTS, CHANNELS], 0, tl.float64)
    for first in range(0, count_of_parts, PARTS):
        p = first + tl.arange(0, PARTS)
        exists = (p < count_of_parts)[:, None] & (c < channels)[None, :]
        at = parts + (field * count_of_parts + p[:, None]) * channels + c[None, :]
        total += tl.load(at, mask=exists, other=0)
    tl.store(added + field * channels + c, tl.sum(total, 0), mask=c < channels)


@triton.jit(do_not_specialize=["outer", "last", "blocks"])
def apply(
    grad, x, grad_x, mean, scale, bias, k, m, outer, channels, groups, last, blocks, SLOPE: tl.constexpr,
    EVEN: tl.constexpr, TYPE: tl.constexpr, OUTER: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Write ∂x = scale·h − k·(x − μ) − m, a tile a program."""
    inner = groups * EVEN
    tile, block = _last_first(last, blocks, inner, INNER)
    offsets, exists, c, known, _ = _tile(tile, block, outer, channels, inner, OUTER, CHANNELS, INNER)
    value = tl.load(x + offsets, mask=exists, other=0).to(TYPE)
    above = tl.load(grad + offsets, mask=exists, other=0).to(TYPE)
    deviation, before = _before_activation(value, mean, scale, bias, c, known)
    through = _vector(scale, c, known) * _through_activation(above, before, SLOPE)
    tl.store(grad_x + offsets, through - _vector(k, c, known) * deviation - _vector(m, c, known), mask=exists)


@triton.jit
def _last_first(last, blocks, inner, INNER: tl.constexpr):
    """Return this program's tile and block of channels: in the order of memory, but from its end.

    A pass over the same tensor went before, and the cache still holds what it read last.
    """
    across = tl.cdiv(inner, INNER)
    place = last - tl.program_id(0)
    line = place // across
    return (line // blocks) * across + place % across, line % blocks
