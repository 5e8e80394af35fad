"""Let normalization layers take in the activation after them, and give it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mednorm.surgery.chains import followers, is_identity, replace
from mednorm.surgery.families import Norm
from mednorm.surgery.flow import named

_FUSABLE = (nn.ReLU, nn.LeakyReLU)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Fusion:
    """An activation that a normalization layer is to take in."""

    activation: nn.Module

    def into(self, fresh: nn.Module) -> None:
        """Give a layer that is being prepared the activation."""
        fresh.activation = "relu" if type(self.activation) is nn.ReLU else "leaky_relu"  # type: ignore[assignment]
        if isinstance(self.activation, nn.LeakyReLU):
            fresh.negative_slope = self.activation.negative_slope  # type: ignore[assignment]

    def apply(self, norm: nn.Module) -> None:
        """Make the module of the activation an ``nn.Identity``, which the layer remembers."""
        state = self.activation.__dict__
        # In a tuple: as an attribute it would be a part of the layer.
        norm.__dict__["_mednorm_absorbed"] = (self.activation, state.pop("inplace", False))
        state.pop("negative_slope", None)
        self.activation.__class__ = nn.Identity


@dataclass
class Fusions:
    """What can be fused in a network.

    Attributes:
        by_norm: the fusion of a layer, by the layer's id.
        reasons: why a layer takes in none, by its name.
        left: activations that stay, each with the reason.
        notes: parts of the network that could not be looked into, and what was assumed.

    """

    by_norm: dict[int, Fusion] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    left: list[tuple[nn.Module, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def find_fusions(model: nn.Module, norms: Sequence[Norm], example: Sequence[Any] | None) -> Fusions:
    """Find the activations that follow these layers, and nothing else; changes nothing."""
    ready = {id(norm.module) for norm in norms if norm.activation is None}
    chains = followers(
        model, lambda m: id(m) in ready, _is_fusable, example=example, through=_is_through, both_modes=True
    )
    modules = dict(model.named_modules())
    found = Fusions(notes=chains.notes)
    for first, second in chains.pairs:
        reason = _why_not_taken_in(modules[second])
        if reason:
            found.left.append((modules[second], f"not taken in: {reason}"))
            found.reasons[first] = f"{named(modules[second], second)} cannot be taken in: {reason}"
        else:
            found.by_norm[id(modules[first])] = Fusion(modules[second])
    for name, reason in chains.reasons.items():
        if _is_fusable(modules[name]):
            found.left.append((modules[name], f"not taken in: {reason}"))
        else:
            found.reasons[name] = reason
    return found


def release(model: nn.Module, norm: nn.Module, activation: str, slope: float) -> tuple[nn.Module, str]:
    """Make the activation of a layer, which has no place for it any more, a module again.

    It goes where it came from; where it came from nowhere, or that is gone, behind the layer in an ``nn.Sequential``.

    Returns:
        The network, another object if it was the layer itself, and what to say.

    """
    absorbed, inplace = norm.__dict__.pop("_mednorm_absorbed", (None, False))
    if absorbed is not None and is_identity(absorbed) and any(absorbed is module for module in model.modules()):
        absorbed.__class__ = nn.ReLU if activation == "relu" else nn.LeakyReLU
        absorbed.inplace = inplace
        if activation == "leaky_relu":
            absorbed.negative_slope = slope
        return model, "Gave the activation back to the module it came from."
    layer: nn.Module = nn.ReLU() if activation == "relu" else nn.LeakyReLU(slope)
    both = nn.Sequential()
    both.add_module("norm", norm)
    both.add_module("activation", layer)
    both.train(norm.training)
    if model is norm:
        return both, "Its activation follows it in an nn.Sequential, which is a new object: use report.model."
    replace(model, norm, both)
    return model, "Its activation follows it in an nn.Sequential: its keys in the state_dict have 'norm.' in them now."


def _is_fusable(module: nn.Module) -> bool:
    return type(module) in _FUSABLE


def _why_not_taken_in(activation: nn.Module) -> str:
    slope: Any = getattr(activation, "negative_slope", 0.0)
    # Our layers tell from the sign of their output on which side of 0 it was before.
    return "" if 0 <= slope < math.inf else f"its negative_slope is {slope!r}, and ours take one of at least 0"


def _is_through(module: nn.Module) -> bool:
    return is_identity(module) or (isinstance(module, _DROPOUTS) and module.p == 0)
