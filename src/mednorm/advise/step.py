"""Whole training steps on a copy of a network, with as many images as wanted, and what they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from mednorm.advise.fit import Measured
from mednorm.advise.tensors import TensorMemory
from mednorm.errors import ConfigError
from mednorm.guards import copied
from mednorm.lean import lean_activations
from mednorm.memory import PeakMemory, in_use
from mednorm.population.batches import Batch, call, device_of

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
# Steps of a size: the first makes what later ones find, buffers, gradients and the optimizer's state, and a heap that
# is kept grows for some more. They end once as many as the fewest have raised the peak by less than a share of it.
FEWEST, MOST = 5, 16
_RISE = 0.005
_LOOKED_AT = 8  # batches, for the largest images

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": lambda parameters: SGD(parameters, lr=1e-3, momentum=0.9),
}


def optimizer_maker(given: str | MakeOptimizer | None) -> MakeOptimizer:
    """Return what makes the optimizer of some parameters.

    Raises:
        ConfigError: an unknown name, or an optimizer that is made already.

    """
    if isinstance(given, Optimizer) or not (given is None or isinstance(given, str) or callable(given)):
        raise ConfigError(
            f"optimizer: expected {', '.join(OPTIMIZERS)}, a class or a function of parameters, got "
            f"{type(given).__name__}. Pass such as torch.optim.SGD, or lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)."
        )
    if isinstance(given, str) and given not in OPTIMIZERS:
        raise ConfigError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {given!r}.")
    return OPTIMIZERS[given or "adam"] if given is None or isinstance(given, str) else given


def largest_images(batches: Iterable[Batch]) -> Batch:
    """Return that of the first batches whose images are the largest: its steps take the most."""
    return max(islice(batches, _LOOKED_AT), key=lambda batch: batch.inputs[0][0].numel())


def of_size(batch: Batch, images: int) -> Batch:
    """Copy so many images of a batch, with labels and sites; where it has fewer they come again."""
    places = torch.arange(images).remainder(batch.size)

    def taken(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or len(value) != batch.size:
            return value
        return value[places.to(value.device)]

    device = batch.inputs[0].device
    labels = tree_map(lambda value: taken(value).to(device) if isinstance(value, Tensor) else value, batch.labels)
    return Batch(tree_map(taken, batch.inputs), labels, tuple(batch.sites[place] for place in places.tolist()))


def cost_of_weights(network: nn.Module, states: int) -> int:
    """Return the bytes that gradients and so many states of the optimizer take beside the weights."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * parameter.element_size() for parameter in learning) * (1 + states)


class Trainer:
    """Trains a copy of a network, and measures its steps.

    Args:
        network: it is left as it is.
        batch: that images are taken from.
        loss: of outputs and labels; None for the mean of the outputs' squares, which takes as little as any.
        optimizer: makes it of parameters.
        lean: with lean activations.
        held: bytes that a training would begin with; None for what this process holds once warm.

    Raises:
        ConfigError: the network cannot be copied, has no weights yet, or none that learn; or a loss without labels.

    """

    def __init__(
        self,
        network: nn.Module,
        batch: Batch,
        loss: Loss | None,
        optimizer: MakeOptimizer,
        lean: bool = False,
        held: int | None = None,
    ) -> None:
        if loss is not None and batch.labels is None:
            raise ConfigError("loss: expected batches with labels, got none. Say label='…' with the key they have.")
        self._held = held
        alone = network.module if isinstance(network, DistributedDataParallel) else network  # it speaks to others
        self._network = copied(alone, "advise_batch_size")
        if not self._network.training:  # one that trains as a whole keeps the mode of each part, such as frozen ones
            self._network.train()
        learning = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        if not learning:
            raise ConfigError("advise_batch_size: expected a network that learns, got none of whose weights does.")
        self._batch, self._loss, self._lean = batch, loss, lean
        self._optimizer = optimizer(learning)
        tensors = chain(self._network.parameters(), self._network.buffers())
        self._copied = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def held(self) -> int:
        """Return the bytes that a training begins with, at the first call after a step of the smallest batch.

        That step loads libraries and compiles kernels, which stay. The copy and the optimizer's state do not count.
        """
        if self._held is None:
            device = device_of(self._network)
            for images in (1, 2):  # some networks refuse one
                try:
                    self._step(of_size(self._batch, images), device)
                except torch.OutOfMemoryError:
                    pass
                except ValueError:
                    if images == 1:
                        continue
                    raise
                break
            self._optimizer.zero_grad(set_to_none=True)
            self._held = max(0, (in_use(device) or 0) - self._copied - self.state())
        return self._held

    def state(self) -> int:
        """Return the bytes of the optimizer's state, which `held` makes; they are part of no rise."""
        leaves = tree_leaves(list(self._optimizer.state.values()))
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))

    def measure(self, images: int) -> Measured:
        """Run steps of so many images until their peak holds still.

        The peak is what a training would begin with, the optimizer's state, and the rise during these steps. So neither
        the copy counts nor what earlier sizes and the search for noise have left of free heap between its blocks.

        Raises:
            ConfigError: neither a GPU nor Linux, which alone tell the peak.

        """
        device, held = device_of(self._network), self.held()
        batch = of_size(self._batch, images)
        self._optimizer.zero_grad(set_to_none=True)
        kept = self.state()
        memory = PeakMemory(device)
        if memory.start is None:
            raise ConfigError(
                "advise_batch_size: expected a system that tells the peak memory of a process, which is Linux, or a "
                "network on a GPU; got neither."
            )
        seconds, peaks = list[float](), list[float]()
        while len(seconds) < FEWEST or (len(seconds) < MOST and peaks[-1] > (1 + _RISE) * peaks[-FEWEST]):
            seconds.append(self._step(batch, device))
            peaks.append(held + kept + 2**20 * (memory.read() or 0.0))
        with TensorMemory() as tensors:
            self._optimizer.zero_grad(set_to_none=True)
            self._step(batch, device)
        return Measured(images, int(peaks[-1]), tensors.peak, statistics.median(seconds[1:]) / images)

    def _step(self, batch: Batch, device: torch.device) -> float:
        _wait(device)
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with self._leanly():
                outputs = call(self._network, batch)
            loss = _squares(outputs) if self._loss is None else self._loss(outputs, batch.labels)
            del outputs
            loss.backward()
        self._optimizer.step()
        _wait(device)
        return time.perf_counter() - started

    def _leanly(self) -> AbstractContextManager[None]:
        return lean_activations(self._network) if self._lean else nullcontext()


def _squares(outputs: Any) -> Tensor:
    found = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not found:
        raise ConfigError(
            f"advise_batch_size: expected outputs that depend on weights, got {type(outputs).__name__} without such a "
            "tensor. Pass loss=… that takes the outputs and the labels."
        )
    return torch.stack([x.float().square().mean() for x in found]).sum()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
