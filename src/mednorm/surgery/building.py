"""Build the layer that another is to become, from what that one holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.layers import DomainBatchNorm, MovingBatchNorm
from mednorm.surgery.families import INSTANCE, OURS, TORCH, Norm


def build(norm: Norm, to: str, options: Mapping[str, Any], rank: int | None, device: torch.device) -> nn.Module:
    """Build the layer that another is to become, with its parameters and, where both have them, its statistics.

    Raises:
        ConfigError: a keyword of our layers is out of its range.

    """
    module: Any = norm.module
    tensors = _tensors(module)
    affine = module._parameters["weight"] is not None or module._parameters["bias"] is not None
    momentum = options.get("momentum", getattr(module, "momentum", norm.was.get("momentum", 0.1)))
    runs = norm.runs or (not isinstance(module, _BatchNorm) and bool(norm.was.get("runs", True)))
    common: dict[str, Any] = {
        "eps": module.eps,
        "affine": affine,
        "device": tensors[0].device if tensors else device,
        "dtype": next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None),
    }
    fresh: nn.Module
    if to in OURS:
        cls, names = OURS[to]
        own = {name: value for name, value in norm.own.items() if name in names}
        own |= {name: options[name] for name in names if name in options}
        own |= {"activation": norm.activation, "process_group": group_of(norm, to, options)}
        own["bias"] = not affine or module._parameters["bias"] is not None
        if norm.activation is not None:
            own["negative_slope"] = module.negative_slope
        fresh = cls(norm.channels, momentum=momentum, track_running_stats=runs, **own, **common)
    elif to == "torch":
        torchs = TORCH[f"BatchNorm{rank}d" if rank else "SyncBatchNorm"]
        fresh = torchs(norm.channels, momentum=momentum, track_running_stats=runs, **common)
        if isinstance(fresh, nn.SyncBatchNorm):
            fresh.process_group = None if norm.process_group == "world" else norm.process_group
    elif to == "instance":
        assert rank is not None
        runs = options.get("track_running_stats", norm.kind == "instance" and norm.runs)
        fresh = INSTANCE[rank](norm.channels, momentum=momentum, track_running_stats=runs, **common)
    else:
        groups = 1 if to == "layer" else groups_of(norm.channels, options)
        fresh = nn.GroupNorm(groups, norm.channels, **common)
    _carry_over(norm, fresh)
    return fresh


def groups_of(channels: int, options: Mapping[str, Any]) -> int:
    """Return the largest number of groups, up to the one asked for, that divides the channels."""
    most = min(channels, options.get("num_groups", 8))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def owned(norm: Norm) -> tuple[set[str], set[str], set[str]]:
    """Name the attributes, parameters and buffers that belong to the class and not to the user."""
    if norm.kind in OURS:
        blank: nn.Module = norm.base(1, **norm.own)
    else:
        blank = nn.GroupNorm(1, 1) if norm.base is nn.GroupNorm else norm.base(1)
    return set(vars(blank)) - set(vars(nn.Module())), set(blank._parameters), set(blank._buffers)


def remembered(norm: Norm) -> dict[str, Any]:
    """Return what a later conversion needs to know of this one."""
    was = dict(norm.was)
    if norm.kind == "torch" or not was.get("class"):
        was["class"] = norm.torchs
    if isinstance(norm.module, _BatchNorm):
        was |= {"momentum": norm.module.momentum, "runs": norm.runs}
    return was


def group_of(norm: Norm, to: str, options: Mapping[str, Any]) -> Any:
    """Return the processes that a layer is to share its statistics with; ``sync`` without a group means all."""
    if to == "batch":
        return None
    return options.get("process_group", norm.process_group) or ("world" if to == "sync" else None)


def _carry_over(norm: Norm, fresh: nn.Module) -> None:
    module = norm.module
    for name in ("weight", "bias"):
        fresh._parameters[name] = module._parameters[name]
    if hasattr(module, "affine"):
        fresh.affine = module.affine
    if fresh._buffers.get("running_mean") is not None and norm.runs:
        for name in ("running_mean", "running_var", "num_batches_tracked", "num_batches_skipped"):
            if name in fresh._buffers and module._buffers.get(name) is not None:
                fresh._buffers[name] = module._buffers[name]
        fresh.track_running_stats = module.track_running_stats
    both = isinstance(fresh, MovingBatchNorm) and isinstance(module, MovingBatchNorm)
    if both and (fresh.window, fresh.centering) == (module.window, module.centering):
        fresh.backward_window = module.backward_window
    if isinstance(fresh, DomainBatchNorm):
        _carry_sites_over(norm, fresh)


@torch.no_grad()
def _carry_sites_over(norm: Norm, fresh: DomainBatchNorm) -> None:
    """Start each site's γ and β at the common ones, and keep what the layer knows of sites that stay."""
    for name, common in (("domain_weight", fresh.weight), ("domain_bias", fresh.bias)):
        each = getattr(fresh, name)
        if each is not None and common is not None:
            each.copy_(common.expand_as(each)).requires_grad_(common.requires_grad)
    old = norm.module
    if not isinstance(old, DomainBatchNorm):
        return
    stay = [(fresh.domains.index(site), old.domains.index(site)) for site in fresh.domains if site in old.domains]
    for name in ("domain_mean", "domain_var", "domain_batches", "domain_weight", "domain_bias"):
        held = fresh._parameters if name in fresh._parameters else fresh._buffers
        mine, theirs = getattr(fresh, name), getattr(old, name)
        if mine is not None and theirs is not None:
            if fresh.domains == old.domains:
                held[name] = theirs
            for new, former in stay if fresh.domains != old.domains else []:
                mine[new] = theirs[former]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
