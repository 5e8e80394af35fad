"""Measure what a training step keeps, on a copy, so that the network is left as it is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from mednorm.errors import ConfigError
from mednorm.guards import copied, random_state_kept
from mednorm.lean.activations import Observer, hooks_are_free
from mednorm.lean.report import ActivationMemory, LayerMemory
from mednorm.lean.saved import Saved


def activation_memory(model: nn.Module, example: Tensor | Sequence[Any]) -> ActivationMemory:
    """Measure what a training step keeps from its forward to its backward pass, ordinarily and lean.

    The network's forward pass is run twice on `example`, in training mode, on a copy that shares its parameters. Each
    stretch of memory counts once, for the layer that keeps it first; parameters and buffers do not count, as they are
    there anyway. The loss keeps something too, and is not the network's. What functions of a user's own keep without
    ``save_for_backward`` is not seen.

    Args:
        model: the network. It is left bit-identical: parameters, gradients, running statistics, modes; so are the
            random states.
        example: its input, or its positional inputs, of the size that it is to be trained on.

    Returns:
        Bytes by layer, ordinarily and within `lean_activations`.

    Raises:
        ConfigError: the network cannot be copied, has no weights yet, or hooks for saved tensors are in force or
            forbidden.

    Example:
        >>> from mednorm import BatchNorm
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 1), BatchNorm(4, activation="relu"), nn.Conv2d(4, 1, 1))
        >>> kept = activation_memory(network, torch.randn(2, 1, 16, 16))
        >>> kept.by_layer()["2"].ordinary, kept.by_layer()["2"].lean
        (8192, 32)

    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"activation_memory: expected a torch.nn.Module, got {type(model).__name__}.")
    if not hooks_are_free():
        raise ConfigError(
            "activation_memory: expected no hooks for saved tensors, got some in force or forbidden. Call it outside "
            "of lean_activations, of checkpoints and of torch.func's transforms."
        )
    model = model.module if isinstance(model, DistributedDataParallel) else model
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    ordinary, lean = (_kept(model, inputs, lean=lean) for lean in (False, True))
    kinds = {name or type(model).__name__: type(module).__name__ for name, module in model.named_modules()}
    return ActivationMemory(
        tuple(
            LayerMemory(name, kinds[name], ordinary.get(name, 0), lean.get(name, 0))
            for name in dict.fromkeys((*ordinary, *lean))
        )
    )


def _kept(model: nn.Module, inputs: tuple[Any, ...], lean: bool) -> dict[str, int]:
    """Return the bytes that each layer is the first to keep."""
    twin = copied(model, "activation_memory", model.parameters()).train()
    inside = [type(twin).__name__]
    for name, module in twin.named_modules():
        if name:
            _follow(module, name, inside)
    saved: list[tuple[str, weakref.ref[Saved]]] = []
    observer = Observer(lambda each: saved.append((inside[-1], weakref.ref(each))))
    with random_state_kept(model), ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(saved_tensors_hooks(observer.pack, Saved.get))
        if lean:
            stack.enter_context(observer)
        result = twin(*inputs)
    own = {_storage(tensor) for tensor in chain(twin.parameters(), twin.buffers())}
    sizes: dict[str, int] = {}
    for name, reference in saved:
        each = reference()
        for tensor in each.tensors() if each is not None else ():
            if (storage := _storage(tensor)) not in own:
                own.add(storage)
                sizes[name] = sizes.get(name, 0) + tensor.untyped_storage().nbytes()
    del result  # until here the graph held what it keeps
    return sizes


def _follow(module: nn.Module, name: str, inside: list[str]) -> None:
    """Let the last of the names be that of the innermost module that runs."""

    def enter(*_: Any) -> None:
        inside.append(name)

    def leave(*_: Any) -> None:
        inside.pop()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
