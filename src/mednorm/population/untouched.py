"""Run a network over a loader and leave both it and the random generators as they were, whatever happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.errors import ShapeError
from mednorm.guards import evaluation_mode


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
        with random_state_kept(network), evaluation_mode(network), _uncompiled():
            yield
    finally:
        for module, named in buffers:
            module._buffers.update(named)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):  # written to only if need be: a graph may still hold it
                    tensor.copy_(value)


def _uncompiled() -> AbstractContextManager[None]:
    """Let nothing run compiled; nothing can where PyTorch's compiler, which takes seconds to import, never was."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
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
def own_statistics(layers: Mapping[str, _BatchNorm], who: str) -> Iterator[None]:
    """Let some layers in evaluation mode normalize with the statistics of the batch, each process with its own.

    Raises:
        ShapeError: inside, where a batch gives a single value per channel to one of them.

    """
    named = list(layers.items())
    kept = [(layer, layer.running_mean, layer.running_var, vars(layer).get("process_group")) for _, layer in named]
    hooks = [layer.register_forward_pre_hook(partial(_refuse_one_value, name, who)) for name, layer in named]
    try:
        for layer, *_, group in kept:
            layer.running_mean = layer.running_var = None
            if group is not None:  # processes with unequal numbers of batches would wait for each other for ever
                layer.process_group = None  # type: ignore[assignment]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mean, var, group in kept:
            layer.running_mean, layer.running_var = mean, var
            if group is not None:
                layer.process_group = group


def _refuse_one_value(name: str, who: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    if args and args[0].numel() == args[0].shape[1]:
        raise ShapeError(
            f"{who}: expected batches that give layer {name!r} at least 2 values per channel to take statistics of, "
            f"got 1 (input shape {tuple(args[0].shape)}). Use larger batches (drop_last=True), or the method that "
            "takes none of a batch: recalibrate(…, 'sequential'), adapt(…, 'statistics')."
        )
