"""How running statistics move, which processes share them, and which forward pass does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mednorm.moments import Moments

# The processes that share their statistics: None for this one alone, "world" for all there are when it is used.
ProcessGroup = dist.ProcessGroup | Literal["world"] | None
BySite = Mapping[int, Moments]  # of a batch, the statistics of each site, where a layer keeps them apart
# A running mean and variance, written to; what they move towards; the weight of that.
Move = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor | float]


@torch.no_grad()
def move(moves: Sequence[Move], allowed: Tensor) -> Tensor:
    """Move running means and variances towards those of a batch, all of them or none; return whether they moved.

    Args:
        moves: the buffers, and where they are to go.
        allowed: False keeps them where they are; so does any result that is no number.

    """
    # In the buffers' own type: a variance that float32 holds may be infinite in float16.
    new = [
        (old, ((1 - weight) * old + weight * value).to(old.dtype))
        for running, batch, weight in moves
        for old, value in zip(running, batch, strict=True)
    ]
    for _, value in new:
        allowed = allowed & value.isfinite().all()
    for buffer, value in new:
        buffer.copy_(torch.where(allowed, value, buffer))
    return allowed


def others_of(process_group: ProcessGroup) -> dist.ProcessGroup | None:
    """Return the group to share statistics with; None where there is no other process in it."""
    if process_group is None or not dist.is_initialized():
        return None
    found = dist.group.WORLD if process_group == "world" else process_group
    return found if dist.get_world_size(found) > 1 else None


def is_process_group(value: object) -> bool:
    """Tell whether a layer can take this for its processes."""
    if value is None or value == "world":
        return True
    outside = dist.GroupMember.NON_GROUP_MEMBER  # what `new_group` gives to a process that is not in it
    return isinstance(value, dist.ProcessGroup) or value == outside


def repeating_forward() -> bool:
    """Tell whether this forward pass runs inside a backward pass: activation checkpointing repeats the first one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
