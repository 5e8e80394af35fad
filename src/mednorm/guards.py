"""Ways to look at a network that leave it bit-identical, whatever happens while one looks."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from mednorm.errors import ConfigError


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode without gradients, and give every module its own mode back whatever happens.

    So it does with the moments of the last batch, which our batch normalization remembers.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
        >>> with evaluation_mode(network):
        ...     [module.training for module in network]
        [False, False]
        >>> [module.training for module in network]
        [True, False]
    """
    modes = {module: module.training for module in network.modules()}
    try:
        with _moments_kept(network), torch.no_grad():
            network.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def untouched(network: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Put a network in evaluation mode without gradients, and give everything back: modes, buffers, random states.

    What was compiled runs uncompiled meanwhile: its code would not see hooks.

    Args:
        network: the network.
        parameters: those that may be changed inside, to be given back too.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
        >>> with untouched(network):
        ...     network[0].running_mean.fill_(3), network[1].training
        (tensor([3.]), False)
        >>> network[0].running_mean, network[1].training
        (tensor([0.]), True)

    """
    buffers = [(module, dict(module._buffers)) for module in network.modules()]
    tensors = [buffer for _, named in buffers for buffer in named.values() if buffer is not None]
    values = [(tensor, tensor.detach().clone()) for tensor in (*tensors, *parameters)]
    try:
        with random_state_kept(network), evaluation_mode(network), uncompiled():
            yield
    finally:
        for module, named in buffers:
            module._buffers.clear()  # also of what a forward pass has registered
            module._buffers.update(named)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):  # written to only if need be: a graph may still hold it
                    tensor.copy_(value)


def uncompiled() -> AbstractContextManager[object]:
    """Let nothing run compiled; nothing can where PyTorch's compiler, which takes seconds to import, never was."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def random_state_kept(network: nn.Module) -> Iterator[None]:
    """Give every random generator its state back: passes in a row then see the same crops in the same order."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {tensor.device.index for tensor in chain(network.parameters(), network.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch normalization in evaluation mode take its statistics from the batch; nothing moves, all comes back.

    Every other module, dropout first of all, stays in the mode it is in. So two passes over the same images, without
    and within this guard, differ in the statistics alone: their difference is the train/eval gap.

    Example:
        >>> layer = nn.BatchNorm2d(1).eval()
        >>> x = 5 + torch.randn(4, 1, 8, 8)
        >>> with batch_statistics(layer):
        ...     round(layer(x).mean().item(), 3)
        0.0
        >>> layer.running_mean
        tensor([0.])
    """
    layers = norms_with_running_statistics(network)
    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        with _moments_kept(network):
            for layer in layers:  # without them, evaluation uses the batch, here and in PyTorch
                layer.running_mean = None
                layer.running_var = None
            yield
    finally:
        for layer, (mean, var) in zip(layers, kept, strict=True):
            layer.running_mean = mean
            layer.running_var = var


@contextmanager
def _moments_kept(network: nn.Module) -> Iterator[None]:
    """Give back to each of our layers what it remembered of its last batch."""
    kept = [(module, module.batch_moments) for module in network.modules() if hasattr(module, "batch_moments")]
    try:
        yield
    finally:
        for module, moments in kept:
            module.batch_moments = moments


def norms_with_running_statistics(network: nn.Module) -> list[_BatchNorm]:
    """List the batch normalization layers, found by type, whose evaluation mode uses running statistics."""
    return [
        module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def copied(network: nn.Module, who: str, shared: Iterable[Any] = ()) -> nn.Module:
    """Copy a network, but for its handles to other processes and whatever else the copy is to share.

    Raises:
        ConfigError: it cannot be copied, or has no weights yet.

    """
    same = {id(each): each for each in shared}
    for name, module in network.named_modules():
        if any(is_lazy(tensor) for tensor in chain(module._parameters.values(), module._buffers.values())):
            raise ConfigError(
                f"{who}: expected a network with weights, got {name or 'the network'} ({type(module).__name__}) "
                "without: it is lazy. Call the network on a batch first."
            )
        if (group := vars(module).get("process_group")) is not None:
            same[id(group)] = group
    try:
        twin: nn.Module = copy.deepcopy(network, same)
    except Exception as error:  # whatever a user's class does
        raise ConfigError(
            f"{who}: expected a network that can be copied, got {type(error).__name__}: {error}"
        ) from error
    return twin
