"""How much memory a forward pass leaves behind for its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the bytes of the tensors that autograd saves in a forward pass, without parameters; each storage once.

    Example:
        >>> relu_keeps_its_output = saved_bytes(nn.ReLU(), torch.zeros(4, requires_grad=True))
        >>> relu_keeps_its_output
        16

    """
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}
    storages: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        kept = network(images)  # until they are counted, so that no address is used twice
    del kept
    return sum(storages.values())


def live_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass took from PyTorch's allocator and did not give back: the graph and output.

    Counted by PyTorch's profiler, so that no hook is asked what it keeps.

    Example:
        >>> live_bytes(nn.ReLU(), torch.zeros(4, requires_grad=True))
        16

    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = network(images)
    del kept
    events = seen.profiler.kineto_results.events() if seen.profiler else []
    return int(sum(event.nbytes() for event in events if event.name() == "[memory]"))
