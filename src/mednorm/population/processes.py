"""Several processes, each with images of its own, that come to one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from mednorm.errors import RunError
from mednorm.layers.tracking import ProcessGroup, others_of

T = TypeVar("T")


def summed(values: Sequence[float], group: ProcessGroup, device: torch.device) -> list[float]:
    """Add numbers up over the processes of a group; the numbers themselves where there are no others."""
    others = others_of(group)
    if others is None:
        return list(values)
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    each = [torch.empty_like(mine) for _ in range(dist.get_world_size(others))]
    dist.all_gather(each, mine, group=others)
    total: list[float] = torch.stack(each).sum(0).tolist()
    return total


def together(work: Callable[[], T], group: ProcessGroup, device: torch.device) -> T:
    """Do something in every process; where it fails in one of them it fails in all, instead of being waited for.

    Raises:
        RunError: it failed in another process.

    """
    try:
        done = work()
    except BaseException:
        summed([1], group, device)
        raise
    if summed([0], group, device) != [0]:
        raise RunError("process_group: expected every process to read its images, got an error in another: see there.")
    return done
