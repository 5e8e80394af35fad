"""Tasks of a backward pass: the sums over each channel, what they give for the gradient, and the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu import planes, rows
from mednorm.kernels.cpu.elements import jit
from mednorm.kernels.cpu.task_forward import epsilon_of, prepare, scale_of, slope_of
from mednorm.kernels.cpu.units import images, notes, per_channel, per_lane, place, scratch, unit_at


@jit
def add_up(a: Any, task: int, real: Any) -> None:
    """Note the sums over a task's units. With given statistics, write the gradient in the same pass."""
    group, block, c0, c1, first, last = place(a, task)
    found = notes(a, arg.PARTIAL, arg.SUMS_PARTS, np.float64)
    for part in range(arg.SUMS_PARTS):
        found[part, group, block, c0:c1] = 0
    values, grads, out = images(a, arg.X, real), images(a, arg.GRAD, real), images(a, arg.OUT, real)
    centre, scale, shift = per_lane(a, arg.CENTRE, real), per_lane(a, arg.SCALE, real), per_lane(a, arg.SHIFT, real)
    maximum, minimum = per_channel(a, arg.MAXIMUM, real), per_channel(a, arg.MINIMUM, real)
    activation, slope, zero, kinds = a[arg.ACTIVATION], slope_of(a, real), real(0), a[arg.KINDS]
    lanes = scratch(a, task, real)
    for unit in range(first, last):
        sample, start, length = unit_at(a, group, unit)
        if a[arg.LAYOUT] == arg.ROWS:
            here, size = sample * a[arg.X_SAMPLE] + start * c1, length * c1
            there, below = sample * a[arg.GRAD_SAMPLE] + start * c1, sample * a[arg.OUT_SAMPLE] + start * c1
            x, grad = values[here : here + size], grads[there : there + size]
            m, s, b = centre[group], scale[group], shift[group]
            rows.sums(grad, x, c1, m, s, b, activation, slope, zero, lanes[0], lanes[1])
            if kinds == arg.SQUARES:
                rows.squares(x, c1, m, lanes[2], lanes[3])
            elif kinds == arg.TIES:
                rows.ties(x, maximum[group], minimum[group], found[2, group, block], found[3, group, block])
            if a[arg.FIXED]:
                rows.scaled(grad, x, out[below : below + size], m, s, b, activation, slope, zero)
            for part in range(4 if kinds == arg.SQUARES else 2):
                for c in range(c1):
                    found[part, group, block, c] += np.float64(lanes[part, c])
            continue
        for c in range(c0, c1):
            here = sample * a[arg.X_SAMPLE] + c * a[arg.X_CHANNEL] + start
            there = sample * a[arg.GRAD_SAMPLE] + c * a[arg.GRAD_CHANNEL] + start
            below = sample * a[arg.OUT_SAMPLE] + c * a[arg.OUT_CHANNEL] + start
            x, grad = values[here : here + length], grads[there : there + length]
            mean, by, plus = centre[group, c], scale[group, c], shift[group, c]
            plain, weighted = planes.sums(grad, x, mean, by, plus, activation, slope, zero)
            found[0, group, block, c] += np.float64(plain)
            found[1, group, block, c] += np.float64(weighted)
            if kinds == arg.SQUARES:
                plain, weighted = planes.squares(x, mean, zero)
                found[2, group, block, c] += np.float64(plain)
                found[3, group, block, c] += np.float64(weighted)
            elif kinds == arg.TIES:
                high, low = planes.ties(x, maximum[group, c], minimum[group, c])
                found[2, group, block, c] += high
                found[3, group, block, c] += low
            if a[arg.FIXED]:
                planes.scaled(grad, x, out[below : below + length], mean, by, plus, activation, slope, zero)


@jit
def collect(a: Any, group: int, c: int, real: Any) -> None:
    """Write a channel's sums, and what goes through the statistics to the gradient of x.

    Without a place for that, the sums are wanted as they are; with it, as the gradients of the bias and the weight.
    """
    found, sums = notes(a, arg.PARTIAL, arg.SUMS_PARTS, np.float64), per_channel(a, arg.SUMS, real)
    plain = weighted = third = fourth = 0.0
    for block in range(a[arg.BLOCKS]):
        plain += found[0, group, block, c]
        weighted += found[1, group, block, c]
        third += found[2, group, block, c]
        fourth += found[3, group, block, c]
    step = a[arg.GROUPS]
    if a[arg.K] == 0 and not a[arg.FIXED]:
        sums[group, c], sums[step + group, c] = real(plain), real(weighted)
        sums[2 * step + group, c], sums[3 * step + group, c] = real(third), real(fourth)
        return
    m2, count = per_channel(a, arg.M2, real)[group, c], np.float64(per_channel(a, arg.COUNT, np.int64)[group, c])
    invstd = scale_of(m2, count, 1.0, epsilon_of(a))
    sums[group, c] = real(plain)
    sums[step + group, c] = real(weighted * invstd)
    if a[arg.FIXED]:
        return
    scale = np.float64(per_lane(a, arg.SCALE, real)[group, c])
    through = scale * weighted * invstd * invstd
    by_extremes = a[arg.KINDS] == arg.TIES
    for lane in range(c, a[arg.WIDTH], a[arg.CHANNELS]):
        per_lane(a, arg.M, real)[group, lane] = real(scale * plain / count)
        per_lane(a, arg.K, real)[group, lane] = real(0 if by_extremes else through / count)
    if by_extremes:
        high = np.float64(per_channel(a, arg.MAXIMUM, real)[group, c])
        extent = high - np.float64(per_channel(a, arg.MINIMUM, real)[group, c])
        # √(σ² + ε) grows with the range by σ²/(range·√(σ² + ε)); 0 where all values are equal.
        share = through * np.float64(m2) / count / extent if extent > 0 else 0.0
        per_channel(a, arg.AT_MAXIMUM, real)[group, c] = real(share / max(third, 1.0))
        per_channel(a, arg.AT_MINIMUM, real)[group, c] = real(share / max(fourth, 1.0))


@jit
def apply(a: Any, task: int, real: Any) -> None:
    """Write the gradient of a task's units."""
    group, _, c0, c1, first, last = place(a, task)
    values, grads, out = images(a, arg.X, real), images(a, arg.GRAD, real), images(a, arg.OUT, real)
    centre, scale, shift = per_lane(a, arg.CENTRE, real), per_lane(a, arg.SCALE, real), per_lane(a, arg.SHIFT, real)
    k, m = per_lane(a, arg.K, real), per_lane(a, arg.M, real)
    maximum, minimum = per_channel(a, arg.MAXIMUM, real), per_channel(a, arg.MINIMUM, real)
    high, low = per_channel(a, arg.AT_MAXIMUM, real), per_channel(a, arg.AT_MINIMUM, real)
    activation, slope, zero, by_extremes = a[arg.ACTIVATION], slope_of(a, real), real(0), a[arg.KINDS] == arg.TIES
    g = group
    for unit in range(first, last):
        sample, start, length = unit_at(a, group, unit)
        if a[arg.LAYOUT] == arg.ROWS:
            here, size = sample * a[arg.X_SAMPLE] + start * c1, length * c1
            there, below = sample * a[arg.GRAD_SAMPLE] + start * c1, sample * a[arg.OUT_SAMPLE] + start * c1
            x, grad, dx = values[here : here + size], grads[there : there + size], out[below : below + size]
            rows.apply(grad, x, dx, centre[g], scale[g], shift[g], k[g], m[g], activation, slope, zero)
            if by_extremes:
                rows.at_extremes(x, dx, maximum[g], high[g], minimum[g], low[g], zero)
            continue
        for c in range(c0, c1):
            here = sample * a[arg.X_SAMPLE] + c * a[arg.X_CHANNEL] + start
            there = sample * a[arg.GRAD_SAMPLE] + c * a[arg.GRAD_CHANNEL] + start
            below = sample * a[arg.OUT_SAMPLE] + c * a[arg.OUT_CHANNEL] + start
            x, grad, dx = values[here : here + length], grads[there : there + length], out[below : below + length]
            planes.apply(grad, x, dx, centre[g, c], scale[g, c], shift[g, c], k[g, c], m[g, c], activation, slope, zero)
            if by_extremes:
                planes.at_extremes(x, dx, maximum[g, c], high[g, c], minimum[g, c], low[g, c], zero)


@jit
def backward(a: Any, task: int, real: Any) -> None:
    """Do all of this for one channel of a group while it is in the cache."""
    group, _, c, _, _, _ = place(a, task)
    prepare(a, group, c, real)
    add_up(a, task, real)
    collect(a, group, c, real)
    if not a[arg.FIXED]:
        apply(a, task, real)
