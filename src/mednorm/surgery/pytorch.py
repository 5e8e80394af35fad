"""The PyTorch half of `mednorm.port`: layers with weights as NumPy, and back. Imports Keras only when called."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from mednorm.errors import ConfigError
from mednorm.guards import evaluation_mode

if TYPE_CHECKING:
    from mednorm.keras.portable import Norm, Part

Array = NDArray[Any]

_KINDS: dict[type[nn.Module], str] = {
    nn.Conv1d: "1-D convolution",
    nn.Conv2d: "2-D convolution",
    nn.Conv3d: "3-D convolution",
    nn.Linear: "dense layer",
    _BatchNorm: "batch normalization",
}
_COUNTERS = {"num_batches_tracked", "num_batches_skipped"}


def parts_of(network: nn.Module) -> list[Part]:
    """List the layers with weights, in the order they were registered.

    Raises:
        ConfigError: a layer has weights and is of no kind that can be ported, or has no weights yet.

    """
    parts = (_part(module, name or type(module).__name__) for name, module in network.named_modules())
    return [part for part in parts if part is not None]


def write(part: Part, arrays: Mapping[str, Array], norm: Norm | None) -> None:
    """Give a layer its weights, and batch normalization its constants and counter; device and type stay."""
    with torch.no_grad():
        for name in part.arrays:
            getattr(part.layer, name).copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
        if norm is not None:
            part.layer.eps, part.layer.momentum = norm.eps, norm.momentum
            if norm.updates is not None:
                part.layer.num_batches_tracked.fill_(norm.updates)


def run(network: nn.Module, x: Array) -> Array:
    """Return the output in inference; the network is left as it is, whatever happens.

    Raises:
        ConfigError: it is more than one tensor.

    """
    tensors = chain(network.parameters(), network.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    with evaluation_mode(network):
        y = network(torch.from_numpy(np.array(x)).to(like.device, like.dtype))
    if not isinstance(y, Tensor):
        raise ConfigError(f"port: expected a PyTorch network with one output, got {type(y).__name__}.")
    return _numpy(y)


def _part(module: nn.Module, name: str) -> Part | None:
    from mednorm.keras.portable import Part

    parameters = dict(module.named_parameters(recurse=False))
    own = parameters | dict(module.named_buffers(recurse=False))
    kind = next((kind for of_type, kind in _KINDS.items() if isinstance(module, of_type)), None)
    who = name if name == type(module).__name__ else f"{name} ({type(module).__name__})"
    if any(is_lazy(tensor) or tensor.is_meta for tensor in own.values()):
        raise ConfigError(
            f"port: {who} of the PyTorch side has no weights yet: it is lazy or on the device 'meta'. "
            "Call the network on a batch first, or give it its weights."
        )
    norm = isinstance(module, _BatchNorm)
    known = {"weight", "bias", "running_mean", "running_var"} if norm else {"weight", "bias"}
    unknown = [key for key in (parameters if norm else own) if key not in known]
    computed = kind is not None and not norm and "weight" not in own
    if (own and kind is None) or unknown or computed:
        got = ", ".join(unknown) or ("a weight that is computed" if computed else ", ".join(own))
        raise ConfigError(
            f"port: expected convolutions, dense layers and batch normalization alone to have weights, got {who} "
            f"with {got} in the PyTorch network. Nothing was written."
        )
    if kind is None:
        return None
    arrays = {key: _numpy(own[key]) for key in own if key in known}
    dtypes = {key: str(own[key].dtype).removeprefix("torch.") for key in arrays}
    if not isinstance(module, _BatchNorm):
        return Part(module, name, kind, arrays, dtypes)
    constants, notes = _norm(module, own, who)
    return Part(module, name, kind, arrays, dtypes, constants, notes)


def _norm(layer: _BatchNorm, own: Mapping[str, Tensor], who: str) -> tuple[Norm, tuple[str, ...]]:
    from mednorm.keras.portable import Norm

    if "running_mean" not in own or "running_var" not in own:
        raise ConfigError(
            f"port: expected batch normalization with running statistics, got {who} with track_running_stats=False: "
            "it normalizes by the batch in inference too, and Keras's layer does not. Nothing was written."
        )
    tracked = own.get("num_batches_tracked")
    notes = []
    if getattr(layer, "activation", None):
        notes.append(f"{who} applies {layer.activation} itself: in Keras that is a layer of its own after it.")
    others = own.keys() - _COUNTERS - {"weight", "bias", "running_mean", "running_var"}
    if others:
        notes.append(f"{who} has more state, {', '.join(sorted(others))}, without a counterpart: it stays as it is.")
    updates = None if tracked is None else int(tracked)
    return Norm(float(layer.eps), layer.momentum, updates, biased=False), tuple(notes)


def _numpy(tensor: Tensor) -> Array:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    array: Array = tensor.detach().to("cpu", wide).numpy().copy()
    return array
