"""The kinds of normalization layers, and how a layer is recognized as one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from mednorm.layers import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    NoNorm,
    RangeBatchNorm,
)

# The layers of ours by the name of the target, each with its own keywords.
OURS: dict[str, tuple[type[BatchNorm], tuple[str, ...]]] = {
    "batch": (BatchNorm, ()),
    "sync": (BatchNorm, ()),
    "renorm": (BatchRenorm, ("r_max", "d_max", "schedule", "total_steps")),
    "ghost": (GhostBatchNorm, ("ghost_size",)),
    "moving": (MovingBatchNorm, ("refresh_every", "window", "centering")),
    "range": (RangeBatchNorm, ()),
    "domain": (DomainBatchNorm, ("domains", "domain_affine")),
    "frozen": (FrozenBatchNorm, ()),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    **{to: (*own, "momentum", *(() if to == "batch" else ("process_group",))) for to, (_, own) in OURS.items()},
    "group": ("num_groups",),
    "instance": ("track_running_stats", "momentum"),
    "layer": (),
    "torch": ("momentum",),
}
NEEDS_RANK = ("torch", "instance")
NEEDS_RUNNING = ("moving", "domain", "frozen")

TORCH: dict[str, type[_BatchNorm]] = {
    cls.__name__: cls for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_KNOWN: dict[type[nn.Module], str] = {
    _BatchNorm: "torch",
    **dict.fromkeys(TORCH.values(), "torch"),
    **{cls: to for to, (cls, _) in OURS.items() if to != "sync"},
    nn.GroupNorm: "group",
    **dict.fromkeys(INSTANCE.values(), "instance"),
}
# What a subclass may define without behaving differently.
_HARMLESS = {"_check_input_dim", "extra_repr"}
_TELLING = {"__call__", "__getattr__", "__getattribute__", "__setattr__"}


@dataclass(frozen=True)
class Norm:
    """A layer that was recognized.

    Attributes:
        module: the layer.
        base: its class, or the class that its own is a harmless subclass of.
        kind: one of the targets' names.

    """

    module: nn.Module
    base: type[nn.Module]
    kind: str

    @property
    def channels(self) -> int:
        """Number of channels."""
        channels: int = getattr(self.module, "num_channels" if self.base is nn.GroupNorm else "num_features")
        return channels

    @property
    def was(self) -> Mapping[str, Any]:
        """What an earlier conversion remembered: class of torch, momentum, whether statistics ran."""
        remembered: Mapping[str, Any] = self.module.__dict__.get("_mednorm_was", {})
        return remembered

    @property
    def runs(self) -> bool:
        """Whether it has running statistics."""
        return self.module._buffers.get("running_mean") is not None

    @cached_property
    def own(self) -> dict[str, Any]:
        """Its own keywords, with its values."""
        names = OURS[self.kind][1] if self.kind in OURS else ()
        return {name: getattr(self.module, name) for name in names}

    @property
    def activation(self) -> str | None:
        """The activation inside."""
        return self.module.activation if self.kind in OURS else None  # type: ignore[return-value]

    @property
    def process_group(self) -> Any:
        """The processes it shares statistics with, as our layers name them."""
        if self.base is nn.SyncBatchNorm:
            return self.module.process_group or "world"
        return self.module.process_group if self.kind in OURS else None

    @property
    def torchs(self) -> str:
        """Name of the class of torch it is of, or was of before it was converted."""
        named = self.kind in NEEDS_RANK and self.base is not _BatchNorm
        return self.base.__name__ if named else str(self.was.get("class", ""))

    @property
    def rank(self) -> int | None:
        """Number of spatial axes that this class is for; None if it does not say."""
        digit = re.search(r"(\d)d$", self.torchs)
        return int(digit[1]) if digit else None

    def evaluation(self) -> tuple[str, int]:
        """Say what evaluation takes statistics of; layers that say the same, with the same state, are equal."""
        if self.runs:
            return "running", 0
        if self.kind in ("group", "layer"):
            return "groups", int(self.module.num_groups)  # type: ignore[arg-type]
        if self.kind == "instance":
            return "groups", self.channels
        if self.kind == "ghost":
            return "ghosts", int(self.module.ghost_size)  # type: ignore[arg-type]
        return ("range" if self.kind == "range" else "batch"), 0


def recognize(module: nn.Module) -> Norm | str | None:
    """Return a normalization layer as `Norm`, or why it is left; None for everything else."""
    cls = type(module)
    base = next((known for known in cls.__mro__ if known in _KNOWN), None)
    if base is None:
        return _why_unknown(module)
    if isinstance(module, LazyModuleMixin):
        return "not yet initialised: run one batch first"
    patched = [name for name in ("forward", "train") if name in module.__dict__]
    if patched:
        return f"its {patched[0]} was replaced"
    computed = [name for name in ("weight", "bias") if name not in module._parameters]
    if computed:
        return f"its {computed[0]} is computed (parametrized, pruned or sharded): remove that first"
    changed = _overridden(cls, base)
    if changed:
        return f"a subclass of {base.__name__} that behaves differently: {changed}"
    if base is not nn.GroupNorm and "running_mean" not in module._buffers:
        return "its running statistics are no buffers"
    kind = _KNOWN[base]
    if kind == "batch" and getattr(module, "process_group", None) is not None:
        kind = "sync"
    if kind == "group" and module.num_groups == 1:
        kind = "layer"
    return Norm(module, base, kind)


def _why_unknown(module: nn.Module) -> str | None:
    if isinstance(module, NoNorm):
        return "normalizes nothing"
    if type(module) is nn.LayerNorm:
        return "normalizes over the last axes of its input, not by channels in dim 1"
    if isinstance(module, torch.jit.ScriptModule):
        named = bool(re.search(r"Norm\d?d?$", str(module.original_name)))
        return "is scripted: convert before scripting" if named else None
    looks = re.search(r"[Nn]orm(Act)?(\d[dD])?$", type(module).__name__) and not type(module).__module__.startswith(
        "torch.nn.utils"  # weight and spectral normalization look at weights
    )
    if isinstance(module, _NormBase) or (looks and not module._modules):
        return "is of a class that mednorm does not know"
    return None


def _overridden(cls: type, base: type) -> str:
    """Say what a class, down to its known base, does otherwise than that base; empty for nothing."""
    for part in cls.__mro__[: cls.__mro__.index(base)]:
        if part.__module__.startswith("torch."):  # sharded or quantized
            return f"it is a {part.__name__} too"
        for name in vars(part):
            hidden = name.startswith("__") and name not in _TELLING
            if not hidden and name not in _HARMLESS and hasattr(base, name):
                return f"it defines {name} anew"
    return ""
