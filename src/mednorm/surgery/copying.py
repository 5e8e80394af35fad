"""Copies of a network: one for the user, and one to look at."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from mednorm.errors import ConfigError


def copied(model: nn.Module, who: str) -> nn.Module:
    """Return a copy, as ``inplace=False`` asks.

    Args:
        model: the network.
        who: the caller, for the message.

    Raises:
        ConfigError: it holds what cannot be copied, as a handle to other processes.

    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a user's class does
        raise ConfigError(
            f"{who}: expected a network that can be copied, as inplace=False asks, got {type(error).__name__}: {error} "
            "Pass inplace=True."
        ) from error


def without_hooks(model: nn.Module) -> nn.Module:
    """Copy the modules and share their tensors, so that tracing meets no hook and leaves nothing in the network."""
    shared: dict[int, Any] = {}
    for module in model.modules():
        for key, value in vars(module).items():
            if re.fullmatch(r"_.*hooks.*", key) and isinstance(value, dict):
                shared[id(value)] = OrderedDict()
            if key == "process_group":  # a handle to other processes, which cannot be copied
                shared[id(value)] = value
            tensors = value.values() if key in ("_parameters", "_buffers") else (value,)
            shared |= {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    twin: nn.Module = copy.deepcopy(model, shared)
    return twin
