"""Count, mean, M2, minimum and maximum of some numbers, by exact summation; shares no code with mednorm."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class ChannelMoments(NamedTuple):
    """The five numbers of one channel."""

    count: int
    mean: float
    m2: float
    minimum: float
    maximum: float


def of_values(values: np.ndarray) -> ChannelMoments:
    """Measure a flat array; `math.fsum` rounds once, whatever the order and the cancellation."""
    numbers = [float(value) for value in np.asarray(values).ravel()]
    if not numbers:
        return ChannelMoments(0, 0.0, 0.0, math.inf, -math.inf)
    mean = math.fsum(numbers) / len(numbers)
    m2 = math.fsum((number - mean) ** 2 for number in numbers)
    return ChannelMoments(len(numbers), mean, m2, min(numbers), max(numbers))


def of_values_exactly(values: np.ndarray) -> ChannelMoments:
    """Measure a flat array in rational arithmetic: no rounding before the last step. For few values."""
    numbers = [Fraction(float(value)) for value in np.asarray(values).ravel()]
    mean = sum(numbers, Fraction()) / len(numbers)
    m2 = sum(((number - mean) ** 2 for number in numbers), Fraction())
    return ChannelMoments(len(numbers), float(mean), float(m2), float(min(numbers)), float(max(numbers)))


def of_channels(x: np.ndarray, channel_axis: int = 1, mask: np.ndarray | None = None) -> list[ChannelMoments]:
    """Measure every channel of an array; `mask` has the array's shape."""
    planes = np.moveaxis(np.asarray(x), channel_axis, 0)
    if mask is None:
        return [of_values(plane) for plane in planes]
    kept = np.moveaxis(np.asarray(mask), channel_axis, 0)
    return [of_values(plane[keep]) for plane, keep in zip(planes, kept, strict=True)]
