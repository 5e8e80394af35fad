"""Which layers of a network have running statistics that can be renewed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from mednorm.errors import ConfigError
from mednorm.layers import FrozenBatchNorm
from mednorm.surgery.conversion import NOT_ASKED_FOR, LeftLayer
from mednorm.surgery.freeze import is_frozen
from mednorm.surgery.where import Where, chosen

Layers = dict[str, _BatchNorm]


def bare(model: nn.Module, who: str) -> nn.Module:
    """Return the network that a wrapper of PyTorch's holds: compiled, or made parallel."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{who}: expected a network (torch.nn.Module), got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"{who}: expected a network whose layers are modules of PyTorch's, got a {type(model).__name__} of "
            "TorchScript. Pass the network that it was made from."
        )
    while (inner := getattr(model, "_orig_mod", None) or _parallel(model)) is not None:
        model = inner
    return model


def layers_of(network: nn.Module, where: Where | None, who: str) -> tuple[Layers, tuple[LeftLayer, ...]]:
    """Find batch normalization by type, at every rank; and say which of it is left, and why.

    Raises:
        ConfigError: no network, one without weights yet, or `where` names no module.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm3d(2), nn.BatchNorm3d(2, track_running_stats=False))
        >>> layers, left = layers_of(network, None, "recalibrate")
        >>> list(layers), left[0].reason
        (['0'], 'it keeps no running statistics')

    """
    meant = {module for _, module in chosen(network, where, who)}
    layers: Layers = {}
    left = []
    sharing = Counter(id(getattr(module, "running_mean", None)) for _, module in chosen(network, None, who))
    for name, module in chosen(network, None, who):
        if any(is_lazy(each) for each in chain(module.parameters(recurse=False), module.buffers(recurse=False))):
            raise ConfigError(
                f"{who}: expected a network with weights, got {name} ({type(module).__name__}) without: it is lazy. "
                "Call the network on a batch first."
            )
        if not isinstance(module, _BatchNorm | _InstanceNorm):
            continue
        reason = _why_not(module, sharing) if module in meant else NOT_ASKED_FOR
        if reason or not isinstance(module, _BatchNorm):
            left.append(LeftLayer(name, type(module).__name__, reason))
        else:
            layers[name] = module
    return layers, tuple(left)


def learned_by(layer: nn.Module) -> tuple[str, ...]:
    """Return the names of γ and β, without those that `mednorm.freeze` holds."""
    held = getattr(layer.__dict__.get("_mednorm_frozen"), "requires_grad", {})
    return tuple(name for name, _ in layer.named_parameters(recurse=False) if name not in held)


def _why_not(module: nn.Module, sharing: Mapping[int, int]) -> str:
    if isinstance(module, _InstanceNorm):
        return "it normalizes each image by itself"
    if getattr(module, "running_mean", None) is None or getattr(module, "running_var", None) is None:
        return "it keeps no running statistics"
    if sharing[id(module.running_mean)] > 1:
        return "it shares its running statistics with another layer, and what reaches the two differs"
    if isinstance(module, FrozenBatchNorm):
        return "its statistics never move, by its class"
    return "frozen: mednorm.unfreeze lets it go" if is_frozen(module) else ""


def _parallel(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return None
