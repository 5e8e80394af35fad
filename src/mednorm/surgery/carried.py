"""Whether a converted layer evaluates as before, and what did not carry over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mednorm.layers import BatchRenorm, DomainBatchNorm, MovingBatchNorm
from mednorm.surgery.building import groups_of
from mednorm.surgery.conversion import kind_of
from mednorm.surgery.families import Norm


def carried(norm: Norm, fresh: nn.Module, to: str, options: Mapping[str, Any], notes: list[str]) -> bool:
    """Say whether evaluation is equal, and add to the notes what the user has to know; settles moving statistics.

    Args:
        norm: the layer as it is.
        fresh: what it is to become, filled already.
        to: the target's name.
        options: what was asked for.
        notes: added to.

    """
    exact = _evaluation(norm, fresh, to, notes)
    if isinstance(fresh, MovingBatchNorm):
        exact &= _settle_moving(norm, fresh, notes)
    exact &= _sites(norm, fresh, notes)
    tracked = fresh._buffers.get("num_batches_tracked")
    if isinstance(fresh, BatchRenorm) and norm.kind != "renorm" and tracked is not None and not _all(tracked == 0):
        notes.append("Its schedule counts from num_batches_tracked, so it starts where the training before ended.")
    alone = isinstance(fresh, _BatchNorm) and getattr(fresh, "process_group", None) is None
    if norm.process_group is not None and alone and not isinstance(fresh, nn.SyncBatchNorm):
        notes.append("Statistics are no longer taken over several processes.")
    if isinstance(fresh, DomainBatchNorm) and fresh.process_group is None and _among_several_processes():
        notes.append(
            "Each process has statistics of its own sites, and DistributedDataParallel gives those of rank 0 to all: "
            'pass process_group="world".'
        )
    if norm.kind == "instance" and not isinstance(fresh, _InstanceNorm):
        notes.append(
            f"Unbatched input, such as (C, H, W), is nothing for {kind_of(fresh)}, which takes the first axis for the "
            "batch: pass x[None]."
        )
    if to == "group" and groups_of(norm.channels, options) != options.get("num_groups", 8):
        wanted, groups = options.get("num_groups", 8), groups_of(norm.channels, options)
        notes.append(f"{groups} groups: {wanted} do not divide {norm.channels} channels.")
    added = [
        name
        for name in fresh._parameters
        if name not in norm.module._parameters and fresh._parameters[name] is not None
    ]
    if added:
        notes.append(f"New parameters {', '.join(added)}: build the optimizer, or add them to it, after this.")
    if type(norm.module) is not norm.base:
        notes.append(f"Methods of {type(norm.module).__name__} are gone; its attributes stay.")
    return exact


def _evaluation(norm: Norm, fresh: nn.Module, to: str, notes: list[str]) -> bool:
    before, after = norm.evaluation(), Norm(fresh, type(fresh), to).evaluation()
    if before == after:
        return True
    if after == ("running", 0) and to == "frozen":
        notes.append(
            "γ and β carried over; the running statistics are mean 0 and variance 1, and never move: convert to "
            "'batch', train or recalibrate, and then to 'frozen'."
        )
    elif after == ("running", 0):
        notes.append(
            "γ and β carried over; the running statistics start at mean 0 and variance 1: train, or recalibrate, "
            "before evaluating."
        )
    elif before == ("running", 0):
        notes.append(
            f"γ and β carried over; the running statistics did not, as {type(fresh).__name__} has none: train before "
            "evaluating."
        )
    else:
        notes.append(
            f"γ and β carried over; {type(fresh).__name__} takes its statistics of other values than "
            f"{kind_of(norm.module)} does: train before evaluating."
        )
    return False


@torch.no_grad()
def _settle_moving(norm: Norm, fresh: MovingBatchNorm, notes: list[str]) -> bool:
    mean, var, tracked = fresh.running_mean, fresh.running_var, fresh.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert tracked is not None
    zero = _all(mean == 0)
    exact = True
    if fresh.centering == "weights" and not zero:
        # New tensors: the layer's own stay as they are until everything is ready.
        fresh.running_mean, fresh.running_var = torch.zeros_like(mean), var + mean.square()
        notes.append(
            "Its running mean is 0 by its definition: the running variance took in the mean's square. Centre the "
            "weights before it (mednorm.centralize) and train."
        )
        exact = False
    if norm.kind != "moving" and norm.runs and _all(tracked == 0) and not (zero and _all(var == 1)):
        notes.append("num_batches_tracked is 0: the first training batch replaces the running statistics.")
    return exact


def _sites(norm: Norm, fresh: nn.Module, notes: list[str]) -> bool:
    old = norm.module
    if not isinstance(old, DomainBatchNorm):
        return True
    if isinstance(fresh, DomainBatchNorm) and fresh.domains == old.domains:
        if fresh.domain_affine or not old.domain_affine:
            return True
        notes.append("Each site's own γ and β are gone: the common ones serve all.")
        return False
    kept = fresh.domains if isinstance(fresh, DomainBatchNorm) else ()
    lost = [site for site in old.domains if site not in kept]
    seen = [site for site in lost if not _all(old.domain_batches[old.domains.index(site)] == 0)]
    own = old.domain_affine and (bool(lost) or not getattr(fresh, "domain_affine", False))
    if seen:
        notes.append(f"Statistics of the sites {', '.join(seen)} are gone: those of all images together serve them.")
    if own:
        notes.append("Each site's own γ and β are gone: the common ones serve all.")
    return not seen and not own


def _among_several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all(condition: Tensor) -> bool:
    """False on the device 'meta', where there are no values."""
    return not condition.is_meta and bool(condition.all())
