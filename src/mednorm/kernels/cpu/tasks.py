"""What a thread does: it takes the next task until there is none.

A task is some units of one group, of a range of channels. Large planes go channel by channel, and the second pass over
a channel follows the first while a cache still holds some of it. Small planes and rows go in the order of memory. What
a task finds it notes at its own place, so that sums do not depend on which thread did what, nor on how many there are.
"""

from __future__ import annotations

from typing import Any

from numba import carray, types

from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu import task_backward as backward
from mednorm.kernels.cpu import task_forward as forward
from mednorm.kernels.cpu.elements import jit, ticket

SIGNATURE = types.void(types.CPointer(types.int64))


@jit
def work(data: Any, real: Any, kind: Any, places: int) -> None:
    """Do tasks of one operation until there is none."""
    a = carray(data, arg.LENGTH)
    operation = a[arg.OPERATION]
    while True:
        task = ticket(a[arg.TICKET])
        if task >= a[arg.TASKS]:
            return
        if operation == arg.MEASURE:
            forward.measure(a, task, real, kind, places)
        elif operation == arg.FORWARD:
            forward.forward(a, task, real, kind, places)
        elif operation == arg.NORMALIZE:
            forward.normalize(a, a[arg.TASKS] - 1 - task, real)
        elif operation == arg.ADD_UP:
            backward.add_up(a, task, real)
        elif operation == arg.APPLY:
            backward.apply(a, a[arg.TASKS] - 1 - task, real)
        elif operation == arg.BACKWARD:
            backward.backward(a, task, real)
        elif operation == arg.MOVE:
            forward.move(a, real)
        else:  # for each channel of each group
            group, c = task // a[arg.CHANNELS], task % a[arg.CHANNELS]
            if operation == arg.MERGE:
                forward.merge(a, group, c, real, kind, places)
                if a[arg.SCALE] != 0:
                    forward.prepare(a, group, c, real)
            elif operation == arg.PREPARE:
                forward.prepare(a, group, c, real)
            else:
                backward.collect(a, group, c, real)


def entry(real: Any, kind: Any, places: int) -> Any:
    """Return what a thread calls, for images of a type."""

    def enter(data: Any) -> None:
        work(data, real, kind, places)

    return enter
