"""Loops over values of one channel that lie one behind the other, short enough to stay in the first cache.

Sums are taken in the type of the values: a few thousand at most, whose total then goes on in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mednorm.kernels.cpu.elements import activated, before_activation, jit, key_of


@jit
def moments(x: Any, bits: Any, real: Any, kind: Any, places: int) -> Any:
    """Return a value near the mean, Σd and Σd² of the deviations from it, and the keys of the extremes."""
    total = real(0)
    lowest = highest = key_of(bits[0], kind, places)
    for i in range(len(x)):
        total += x[i]
        key = key_of(bits[i], kind, places)
        lowest = min(lowest, key)
        highest = max(highest, key)
    centre = total / real(len(x))
    rest = squares = real(0)
    for i in range(len(x)):
        deviation = x[i] - centre
        rest += deviation
        squares += deviation * deviation
    return centre, rest, squares, lowest, highest


@jit
def normalize(x: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any) -> None:
    """Write act((x − centre)·scale + shift)."""
    for i in range(len(x)):
        out[i] = activated((x[i] - centre) * scale + shift, activation, slope, zero)


@jit
def sums(grad: Any, x: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any) -> Any:
    """Return Σh and Σh·d, h being the gradient before the activation and d the deviation."""
    plain = weighted = zero
    for i in range(len(x)):
        deviation = x[i] - centre
        h = before_activation(grad[i], deviation * scale + shift, activation, slope, zero)
        plain += h
        weighted += h * deviation
    return plain, weighted


@jit
def scaled(
    grad: Any, x: Any, out: Any, centre: Any, scale: Any, shift: Any, activation: int, slope: Any, zero: Any
) -> None:
    """Write the gradient where the statistics are given: scale·h."""
    for i in range(len(x)):
        value = (x[i] - centre) * scale + shift
        out[i] = scale * before_activation(grad[i], value, activation, slope, zero)


@jit
def squares(x: Any, centre: Any, zero: Any) -> Any:
    """Return Σd and Σd²."""
    plain = squared = zero
    for i in range(len(x)):
        deviation = x[i] - centre
        plain += deviation
        squared += deviation * deviation
    return plain, squared


@jit
def ties(x: Any, highest: Any, lowest: Any) -> Any:
    """Return how many values are the largest and how many the smallest."""
    high = low = np.int64(0)
    for i in range(len(x)):
        high += x[i] == highest
        low += x[i] == lowest
    return high, low


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
    for i in range(len(x)):
        deviation = x[i] - centre
        h = before_activation(grad[i], deviation * scale + shift, activation, slope, zero)
        out[i] = scale * h - k * deviation - m


@jit
def at_extremes(x: Any, out: Any, highest: Any, at_highest: Any, lowest: Any, at_lowest: Any, zero: Any) -> None:
    """Take from the gradient what goes through the largest value, and add what goes through the smallest."""
    for i in range(len(x)):
        out[i] += (at_lowest if x[i] == lowest else zero) - (at_highest if x[i] == highest else zero)
