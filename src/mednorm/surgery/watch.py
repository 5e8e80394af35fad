"""Watch what a network does while it runs: which operation takes which tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mednorm.guards import evaluation_mode
from mednorm.surgery.flow import Flow, Graph, Step, named


def watched(model: nn.Module, leaves: set[str], example: Sequence[Any]) -> Flow:
    """Run a network in evaluation mode and note each call of a leaf, and each operation outside of the leaves.

    The network is left as it is. Every tensor between the layers lives until the end, as in training.
    """
    inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tuple(example))
    watch = _Watch(model, leaves, inputs)
    modules = [(name, module) for name, module in model.named_modules() if name in leaves]
    handles = []
    try:
        for name, module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: watch.enter()))
            handles.append(
                module.register_forward_hook(
                    lambda module, args, kwargs, output, name=name: watch.leave(name, module, args, kwargs, output),
                    with_kwargs=True,
                )
            )
        with evaluation_mode(model), same_random_numbers(model), watch:
            result = model(*inputs)
        watch.step(None, f"the output of {named(model, '')}", result)
    finally:
        for handle in handles:
            handle.remove()
    return Flow([Graph(watch.steps)], read=watch.read)


@contextmanager
def same_random_numbers(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Let a network that draws random numbers draw these, and leave the generators as they were."""
    devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(seed)
        yield


class _Watch(TorchDispatchMode):
    """Sees every operation, also those that views, in-place methods and functions of torch are made of."""

    def __init__(self, model: nn.Module, leaves: set[str], example: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.read: set[str] = set()
        self.depth = 0
        self.places: dict[int, int] = {}
        self.alive: list[Tensor] = []  # a tensor that was freed could give its id to another
        self.owners = {
            id(tensor): name
            for name, module in model.named_modules()
            if name in leaves
            for tensor in (*module.parameters(), *module.buffers())
        }
        self._made(example, self.step(None, f"the input of {named(model, '')}", quiet=True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.depth:
            taken = (args, kwargs or {})
            self.read |= {self.owners[id(t)] for t in tree_leaves(taken) if id(t) in self.owners}
            self._made(result, self.step(None, func.overloadpacket.__name__.strip("_"), taken))
        return result

    def enter(self) -> None:
        self.depth += 1

    def leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.depth -= 1
        if self.depth:  # a layer that another is made of
            return
        values = [*args, *(value for key, value in kwargs.items() if key == "input")]
        plain = len(values) == len(args) + len(kwargs) == 1 and isinstance(values[0], Tensor)
        self._made(output, self.step(name, named(module, name), (args, kwargs), plain))

    def step(self, layer: str | None, text: str, taken: Any = (), plain: bool = False, quiet: bool = False) -> int:
        """Note a step; return its place."""
        inputs = (self.places[id(tensor)] for tensor in tree_leaves(taken) if id(tensor) in self.places)
        self.steps.append(Step(layer, text, tuple(dict.fromkeys(inputs)), plain, quiet))
        return len(self.steps) - 1

    def _made(self, result: Any, place: int) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.places[id(tensor)] = place
                self.alive.append(tensor)
