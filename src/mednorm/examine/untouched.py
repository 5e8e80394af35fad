"""Look at a network while it runs over a loader; afterwards the network and the random generators are as before."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import numpy as np
import torch
from torch import nn

from mednorm.guards import evaluation_mode


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and give back whatever happens modes, buffers and random states, bit by bit.

    What was compiled runs uncompiled meanwhile: its code would not see hooks.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
        >>> with untouched(network):
        ...     _ = network.train()(torch.ones(2, 1, 4, 4))
        >>> network[0].running_mean, network[0].num_batches_tracked
        (tensor([0.]), tensor(0))

    """
    kept = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        with random_state_kept(network), evaluation_mode(network), uncompiled():
            yield
    finally:
        for module, name, buffer, value in kept:
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
            module._buffers[name] = buffer


def uncompiled() -> AbstractContextManager[object]:
    """Let what was compiled run as it was written, so that hooks in it are called."""
    if "torch._dynamo" not in sys.modules:  # whose import takes seconds; without it nothing was compiled
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def random_state_kept(network: nn.Module) -> Iterator[None]:
    """Give every generator its state back, whatever happens."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {tensor.device.index for tensor in chain(network.parameters(), network.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
