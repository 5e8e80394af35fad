"""Where a task's values are: which units it has, and views of memory at the addresses it was given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu.elements import jit, pointer


@jit
def images(a: Any, which: int, real: Any) -> Any:
    """View an image tensor as what lies behind its address; slices of it are taken by their offsets."""
    return carray(pointer(a[which], real), 1 << 60)


@jit
def per_channel(a: Any, which: int, real: Any) -> Any:
    """View a vector per group: groups × channels."""
    return carray(pointer(a[which], real), (a[arg.GROUPS], a[arg.CHANNELS]))


@jit
def per_lane(a: Any, which: int, real: Any) -> Any:
    """View a vector per group: groups × lanes."""
    return carray(pointer(a[which], real), (a[arg.GROUPS], a[arg.WIDTH]))


@jit
def notes(a: Any, which: int, parts: int, kind: Any) -> Any:
    """View what the tasks note: parts × groups × blocks × channels."""
    return carray(pointer(a[which], kind), (parts, a[arg.GROUPS], a[arg.BLOCKS], a[arg.CHANNELS]))


@jit
def scratch(a: Any, task: int, real: Any) -> Any:
    """View a task's own lanes."""
    every = carray(pointer(a[arg.SCRATCH], real), (a[arg.TASKS], arg.SCRATCH_LANES, a[arg.WIDTH]))
    return every[task]


@jit
def place(a: Any, task: int) -> Any:
    """Return group, block, first channel and the one after the last, first unit and the one after the last."""
    ranges = (a[arg.CHANNELS] + a[arg.TASK_CHANNELS] - 1) // a[arg.TASK_CHANNELS]
    first_channel = task % ranges * a[arg.TASK_CHANNELS]
    last_channel = min(first_channel + a[arg.TASK_CHANNELS], a[arg.CHANNELS])
    block = task // ranges % a[arg.BLOCKS]
    group = task // ranges // a[arg.BLOCKS]
    runs = carray(pointer(a[arg.GROUP_RUNS], np.int64), a[arg.GROUPS] + 1)
    units = (runs[group + 1] - runs[group]) * units_of(a, group)
    first, last = units * block // a[arg.BLOCKS], units * (block + 1) // a[arg.BLOCKS]
    return group, block, first_channel, last_channel, first, last


@jit
def units_of(a: Any, group: int) -> Any:
    """Return into how many units each run of a group is cut; its runs are of one length."""
    runs = carray(pointer(a[arg.GROUP_RUNS], np.int64), a[arg.GROUPS] + 1)
    lengths = carray(pointer(a[arg.RUN_LENGTH], np.int64), runs[a[arg.GROUPS]])
    return (lengths[runs[group]] + a[arg.UNIT] - 1) // a[arg.UNIT] if runs[group + 1] > runs[group] else 1


@jit
def unit_at(a: Any, group: int, unit: int) -> Any:
    """Return the sample in which a unit begins, where it begins there, and its length."""
    runs = carray(pointer(a[arg.GROUP_RUNS], np.int64), a[arg.GROUPS] + 1)
    samples = carray(pointer(a[arg.RUN_SAMPLE], np.int64), runs[a[arg.GROUPS]])
    lengths = carray(pointer(a[arg.RUN_LENGTH], np.int64), runs[a[arg.GROUPS]])
    each = units_of(a, group)
    run = runs[group] + unit // each
    start = unit % each * a[arg.UNIT]
    return samples[run], start, min(a[arg.UNIT], lengths[run] - start)
