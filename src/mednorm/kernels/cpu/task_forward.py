"""Tasks of a forward pass: moments, what is prepared from them, and the normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu import planes, rows
from mednorm.kernels.cpu.elements import jit, key_of, pointer
from mednorm.kernels.cpu.units import images, notes, per_channel, per_lane, place, scratch, unit_at


@jit
def scale_of(m2: Any, count: int, weight: Any, epsilon: float) -> Any:
    """Return γ/√(σ² + ε) in float64, from what is kept of σ²."""
    return np.float64(weight) / np.sqrt(np.float64(m2) / np.float64(count) + epsilon)


@jit
def epsilon_of(a: Any) -> Any:
    """Return ε in float64."""
    return carray(pointer(a[arg.EPSILON], np.float64), 2)[0]


@jit
def slope_of(a: Any, real: Any) -> Any:
    """Return the slope of the activation below 0."""
    return real(carray(pointer(a[arg.EPSILON], np.float64), 2)[1])


@jit
def measure(a: Any, task: int, real: Any, kind: Any, places: int) -> None:
    """Note the count, mean and squared deviations of a task's units, merged one after the other, and the extremes."""
    group, block, c0, c1, first, last = place(a, task)
    found, extremes = notes(a, arg.PARTIAL, arg.MOMENTS_PARTS, np.float64), notes(a, arg.EXTREMES, 2, np.int64)
    for c in range(c0, c1):
        found[0, group, block, c] = found[1, group, block, c] = found[2, group, block, c] = 0
        extremes[0, group, block, c] = (1 << 63) - 1
        extremes[1, group, block, c] = -(1 << 63)
    values, bits = images(a, arg.X, real), images(a, arg.X, kind)
    lanes, keys = scratch(a, task, real), scratch(a, task, kind)
    done = np.int64(0)
    for unit in range(first, last):
        sample, start, length = unit_at(a, group, unit)
        share = length / (done + length)
        offset = sample * a[arg.X_SAMPLE]
        if a[arg.LAYOUT] == arg.ROWS:
            here = offset + start * c1
            x = values[here : here + length * c1]
            rows.centres(x, bits[here : here + length * c1], c1, lanes[0], keys[3], keys[4], kind, places)
            rows.squares(x, c1, lanes[0], lanes[1], lanes[2])
        for c in range(c0, c1):
            if a[arg.LAYOUT] == arg.PLANES:
                here = offset + c * a[arg.X_CHANNEL] + start
                centre, rest, squared, low, high = planes.moments(
                    values[here : here + length], bits[here : here + length], real, kind, places
                )
            else:
                centre, rest, squared, low, high = lanes[0, c], lanes[1, c], lanes[2, c], keys[3, c], keys[4, c]
            aside = np.float64(rest) / length
            apart = np.float64(centre) + aside - found[1, group, block, c]
            found[1, group, block, c] += apart * share
            within = np.float64(squared) - np.float64(rest) * aside
            found[2, group, block, c] += within + apart * apart * share * done
            extremes[0, group, block, c] = min(extremes[0, group, block, c], np.int64(low))
            extremes[1, group, block, c] = max(extremes[1, group, block, c], np.int64(high))
        done += length
    for c in range(c0, c1):
        found[0, group, block, c] = done


@jit
def merge(a: Any, group: int, c: int, real: Any, kind: Any, places: int) -> None:
    """Write the moments of a channel from what the tasks noted of it."""
    found, extremes = notes(a, arg.PARTIAL, arg.MOMENTS_PARTS, np.float64), notes(a, arg.EXTREMES, 2, np.int64)
    count = mean = m2 = 0.0
    low, high = extremes[0, group, 0, c], extremes[1, group, 0, c]
    for block in range(a[arg.BLOCKS]):
        more = found[0, group, block, c]
        if more == 0:
            continue
        apart = found[1, group, block, c] - mean
        share = more / (count + more)
        mean += apart * share
        m2 += found[2, group, block, c] + apart * apart * share * count
        count += more
        low, high = min(low, extremes[0, group, block, c]), max(high, extremes[1, group, block, c])
    # The bits are written where the floats they are of are wanted.
    per_channel(a, arg.MINIMUM, kind)[group, c] = key_of(kind(low), kind, places)
    per_channel(a, arg.MAXIMUM, kind)[group, c] = key_of(kind(high), kind, places)
    minimum, maximum = per_channel(a, arg.MINIMUM, real), per_channel(a, arg.MAXIMUM, real)
    lowest, highest = minimum[group, c], maximum[group, c]
    if np.isnan(lowest) or np.isnan(highest):  # only one of them is, where the other sign of NaN does not occur
        minimum[group, c] = maximum[group, c] = real(np.nan)
    if low == high and np.isfinite(minimum[group, c]):  # the mean of equal values, whatever rounding makes of their sum
        mean, m2 = np.float64(minimum[group, c]), 0.0
    per_channel(a, arg.MEAN, real)[group, c] = real(mean)
    per_channel(a, arg.M2, real)[group, c] = real(max(m2, 0.0) if m2 == m2 else m2)
    per_channel(a, arg.COUNT, np.int64)[group, c] = np.int64(count)


@jit
def prepare(a: Any, group: int, c: int, real: Any) -> None:
    """Write what the loops of a normalization take, repeated over the lanes."""
    mean, m2, count = per_channel(a, arg.MEAN, real), per_channel(a, arg.M2, real), per_channel(a, arg.COUNT, np.int64)
    centre, scale, shift = per_lane(a, arg.CENTRE, real), per_lane(a, arg.SCALE, real), per_lane(a, arg.SHIFT, real)
    for lane in range(c, a[arg.WIDTH], a[arg.CHANNELS]):
        centre[group, lane] = mean[group, c]
        scale[group, lane] = scale_of(m2[group, c], count[group, c], weight_of(a, group, c, real), epsilon_of(a))
        shift[group, lane] = shift_of(a, group, c, real)


@jit
def weight_of(a: Any, group: int, c: int, real: Any) -> Any:
    """Return γ, 1 where there is none."""
    return per_channel(a, arg.WEIGHT, real)[group, c] if a[arg.WEIGHT] != 0 else real(1)


@jit
def shift_of(a: Any, group: int, c: int, real: Any) -> Any:
    """Return β, 0 where there is none."""
    return per_channel(a, arg.BIAS, real)[group, c] if a[arg.BIAS] != 0 else real(0)


@jit
def normalize(a: Any, task: int, real: Any) -> None:
    """Normalize a task's units."""
    group, _, c0, c1, first, last = place(a, task)
    values, out = images(a, arg.X, real), images(a, arg.OUT, real)
    centre, scale, shift = per_lane(a, arg.CENTRE, real), per_lane(a, arg.SCALE, real), per_lane(a, arg.SHIFT, real)
    activation, slope, zero = a[arg.ACTIVATION], slope_of(a, real), real(0)
    for unit in range(first, last):
        sample, start, length = unit_at(a, group, unit)
        if a[arg.LAYOUT] == arg.ROWS:
            here, there = sample * a[arg.X_SAMPLE] + start * c1, sample * a[arg.OUT_SAMPLE] + start * c1
            x, y = values[here : here + length * c1], out[there : there + length * c1]
            rows.normalize(x, y, centre[group], scale[group], shift[group], activation, slope, zero)
            continue
        for c in range(c0, c1):
            here = sample * a[arg.X_SAMPLE] + c * a[arg.X_CHANNEL] + start
            there = sample * a[arg.OUT_SAMPLE] + c * a[arg.OUT_CHANNEL] + start
            x, y = values[here : here + length], out[there : there + length]
            planes.normalize(x, y, centre[group, c], scale[group, c], shift[group, c], activation, slope, zero)


@jit
def move(a: Any, real: Any) -> None:
    """Move running statistics towards a batch's, all of them or none, and count the batch."""
    running_mean, running_var = per_channel(a, arg.RUNNING_MEAN, real), per_channel(a, arg.RUNNING_VAR, real)
    mean, m2, count = per_channel(a, arg.MEAN, real), per_channel(a, arg.M2, real), per_channel(a, arg.COUNT, np.int64)
    tracked = carray(pointer(a[arg.TRACKED], np.int64), 1)
    weight = carray(pointer(a[arg.EPSILON], np.float64), 3)[2]
    weight = 1.0 / (tracked[0] + 1) if weight < 0 else weight
    some = finite = True
    for writing in range(2):
        for c in range(a[arg.CHANNELS]):
            unbiased = np.float64(m2[0, c]) / (count[0, c] - 1)
            new_mean = real((1 - weight) * running_mean[0, c] + weight * mean[0, c])
            new_var = real((1 - weight) * running_var[0, c] + weight * unbiased)
            if writing:
                running_mean[0, c], running_var[0, c] = new_mean, new_var
            else:
                some &= count[0, c] > 0
                finite &= np.isfinite(mean[0, c]) and np.isfinite(m2[0, c]) and count[0, c] > 1
                finite &= np.isfinite(new_mean) and np.isfinite(new_var)
        if not (some and finite):
            break
    if some and finite:
        tracked[0] += 1
    elif some:
        carray(pointer(a[arg.SKIPPED], np.int64), 1)[0] += 1


@jit
def forward(a: Any, task: int, real: Any, kind: Any, places: int) -> None:
    """Measure one channel of a group, all its units, and normalize it while it is in the cache."""
    group, _, c, _, _, _ = place(a, task)
    measure(a, task, real, kind, places)
    merge(a, group, c, real, kind, places)
    prepare(a, group, c, real)
    normalize(a, task, real)
