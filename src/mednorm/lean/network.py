"""A network that is lean whenever it trains, without a block around its forward passes."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from mednorm.lean.activations import lean_activations


class LeanForward:
    """The `forward` of one network, run within `lean_activations` where gradients are recorded.

    It stands among the network's own attributes, before its class's `forward`: so module, class and state_dict stay
    as they are, and copies and pickles are lean too.

    Args:
        network: the network.

    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.before = network.__dict__.get("forward")  # what somebody else put there

    @property
    def __wrapped__(self) -> Any:
        """What is run, for those who ask for its signature."""
        return self.before or MethodType(type(self.network).forward, self.network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() or not torch.is_grad_enabled():
            return self._run(*args, **kwargs)
        with lean_activations(self.network):
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.network).forward(self.network, *args, **kwargs)


def make_lean(network: nn.Module) -> None:
    """Let a network keep less whenever it trains."""
    if not is_lean(network):
        network.__dict__["forward"] = LeanForward(network)


def is_lean(network: nn.Module) -> bool:
    """Tell whether a network does."""
    return isinstance(network.__dict__.get("forward"), LeanForward)


def make_ordinary(network: nn.Module) -> None:
    """Let a network keep again what PyTorch keeps."""
    if is_lean(network):
        before = network.__dict__.pop("forward").before
        if before is not None:
            network.__dict__["forward"] = before
