"""Loops over rows that hold every channel, one row behind the other: channels last, or no spatial axis.

The channels are repeated to so many lanes that few of them too fill the processor's vectors: lane i is channel i modulo
their number, and vectors per channel are repeated likewise. Each lane adds up a few values, in their type.

The innermost loops see a row of lanes at a time and few arrays: the compiler makes vectors of them if it can see that
no index is negative and can check at run time that none of a handful of arrays overlap.
"""

from __future__ import annotations

from typing import Any

from mednorm.kernels.cpu.elements import activated, before_activation, jit, key_of


@jit
def centres(x: Any, bits: Any, channels: int, centre: Any, lowest: Any, highest: Any, kind: Any, places: int) -> None:
    """Write for each lane a value near its channel's mean, and for each channel's lane the keys of the extremes."""
    width = len(centre)
    for start in range(0, width, channels):
        for i in range(channels):
            centre[start + i] = 0
            lowest[start + i] = highest[start + i] = key_of(bits[i], kind, places)
    for start in range(0, len(x), width):
        _add(x[start : start + width], centre)
        _widen(bits[start : start + width], lowest, highest, kind, places)
    share = channels / len(x)
    fold(centre, channels)
    for i in range(channels):
        centre[i] *= share
    for start in range(channels, width, channels):
        for i in range(channels):
            centre[start + i] = centre[i]
            lowest[i] = min(lowest[i], lowest[start + i])
            highest[i] = max(highest[i], highest[start + i])


@jit
def fold(lanes: Any, channels: int) -> None:
    """Add the repeated lanes to those of the channels."""
    for start in range(channels, len(lanes), channels):
        for i in range(channels):
            lanes[i] += lanes[start + i]


@jit
def _add(row: Any, total: Any) -> None:
    for i in range(len(row)):
        total[i] += row[i]


@jit
def _widen(row: Any, lowest: Any, highest: Any, kind: Any, places: int) -> None:
    for i in range(len(row)):
        key = key_of(row[i], kind, places)
        lowest[i] = min(lowest[i], key)
        highest[i] = max(highest[i], key)


@jit
def squares(x: Any, channels: int, centre: Any, rest: Any, squared: Any) -> None:
    """Write Σd and Σd² of each channel."""
    width = len(centre)
    rest[:] = 0
    squared[:] = 0
    for start in range(0, len(x), width):
        _add_squares(x[start : start + width], centre, rest, squared)
    fold(rest, channels)
    fold(squared, channels)


@jit
def _add_squares(row: Any, centre: Any, rest: Any, squared: Any) -> None:
    for i in range(len(row)):
        deviation = row[i] - centre[i]
        rest[i] += deviation
        squared[i] += deviation * deviation


@jit
def normalize(x: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any) -> None:
    """Write act((x − centre)·scale + shift)."""
    width = len(centre)
    for start in range(0, len(x), width):
        _normalize_row(
            x[start : start + width], out[start : start + width], centre, scale, shift, activation, slope, zero
        )


@jit
def _normalize_row(
    row: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any
) -> None:
    for i in range(len(row)):
        out[i] = activated((row[i] - centre[i]) * scale[i] + shift[i], activation, slope, zero)


@jit
def sums(
    grad: Any,
    x: Any,
    channels: int,
    centre: Any,
    scale: Any,
    shift: Any,
    activation: int,
    slope: Any,
    zero: Any,
    plain: Any,
    weighted: Any,
) -> None:
    """Write Σh and Σh·d of each channel."""
    width = len(centre)
    plain[:] = 0
    weighted[:] = 0
    for start in range(0, len(x), width):
        grads, row = grad[start : start + width], x[start : start + width]
        _add_gradients(grads, row, centre, scale, shift, activation, slope, zero, plain)
        _add_weighted(grads, row, centre, scale, shift, activation, slope, zero, weighted)
    fold(plain, channels)
    fold(weighted, channels)


@jit
def _add_gradients(
    grad: Any, row: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any, total: Any
) -> None:
    for i in range(len(row)):
        value = (row[i] - centre[i]) * scale[i] + shift[i]
        total[i] += before_activation(grad[i], value, activation, slope, zero)


@jit
def _add_weighted(
    grad: Any, row: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any, total: Any
) -> None:
    for i in range(len(row)):
        deviation = row[i] - centre[i]
        value = deviation * scale[i] + shift[i]
        total[i] += deviation * before_activation(grad[i], value, activation, slope, zero)


@jit
def scaled(
    grad: Any, x: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any
) -> None:
    """Write the gradient where the statistics are given: scale·h."""
    width = len(centre)
    for start in range(0, len(x), width):
        stop = start + width
        _scale_row(grad[start:stop], x[start:stop], out[start:stop], centre, scale, shift, activation, slope, zero)


@jit
def _scale_row(
    grad: Any, row: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any
) -> None:
    for i in range(len(row)):
        value = (row[i] - centre[i]) * scale[i] + shift[i]
        out[i] = scale[i] * before_activation(grad[i], value, activation, slope, zero)


@jit
def ties(x: Any, highest: Any, lowest: Any, high: Any, low: Any) -> None:
    """Add how many values are the largest and how many the smallest of each channel."""
    for start in range(0, len(x), len(highest)):
        row = x[start : start + len(highest)]
        for i in range(len(row)):
            high[i] += row[i] == highest[i]
            low[i] += row[i] == lowest[i]


@jit
def apply(
    grad: Any,
    x: Any,
    out: Any,
    centre: Any,
    scale: Any,
    shift: Any,
    k: Any,
    m: Any,
    activation: int,
    slope: Any,
    zero: Any,
) -> None:
    """Write the gradient scale·h − k·d − m."""
    width = len(centre)
    for start in range(0, len(x), width):
        stop = start + width
        _apply_row(
            grad[start:stop], x[start:stop], out[start:stop], centre, scale, shift, k, m, activation, slope, zero
        )


@jit
def _apply_row(
    grad: Any,
    row: Any,
    out: Any,
    centre: Any,
    scale: Any,
    shift: Any,
    k: Any,
    m: Any,
    activation: int,
    slope: Any,
    zero: Any,
) -> None:
    for i in range(len(row)):
        deviation = row[i] - centre[i]
        h = before_activation(grad[i], deviation * scale[i] + shift[i], activation, slope, zero)
        out[i] = scale[i] * h - k[i] * deviation - m[i]


@jit
def at_extremes(x: Any, out: Any, highest: Any, at_highest: Any, lowest: Any, at_lowest: Any, zero: Any) -> None:
    """Take from the gradient what goes through the largest values, and add what goes through the smallest."""
    for start in range(0, len(x), len(highest)):
        row, changed = x[start : start + len(highest)], out[start : start + len(highest)]
        for i in range(len(row)):
            gained = at_lowest[i] if row[i] == lowest[i] else zero
            changed[i] += gained - (at_highest[i] if row[i] == highest[i] else zero)
