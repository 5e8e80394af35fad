"""Count how often running statistics move in one training step, on a copy of the network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from mednorm.examine.gap import channels_of
from mednorm.guards import random_state_kept, uncompiled
from mednorm.memory import available
from mednorm.population.batches import Batch, call, device_of

_HELD = 6  # memory that a training step holds at once, over that of what reaches its normalization layers


def few(batch: Batch, images: int = 2) -> Batch:
    """Copy the first images of a batch, beginning again with the first where there are fewer; without labels."""
    places = torch.arange(images).remainder(batch.size).tolist()

    def taken(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x[places] if x.dim() and len(x) == batch.size else x.clone()

    return Batch(tree_map(taken, batch.inputs), None, tuple(batch.sites[place] for place in places))


def updates_in_a_step(network: nn.Module, batch: Batch, values: Mapping[str, int]) -> dict[str, int]:
    """Train a copy of a network for one forward and backward pass, and count the moves of its running statistics.

    The loss is the sum of squares of the outputs. So a layer that is called twice shows, or one that activation
    checkpointing runs again in the backward pass. A network that is in training mode as a whole keeps the mode of
    each of its modules; another is put in training mode.

    Args:
        network: left as it is.
        batch: a small one.
        values: that reach each layer of one image, for the memory that the step takes.

    Returns:
        Moves by the layer's name, of layers that have running statistics; nothing where the network cannot be copied,
        where its step fails, or where less than half of the memory there is would be left.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> updates_in_a_step(nn.Sequential(layer, layer), Batch((torch.randn(4, 1),), None, (None,) * 4), {})
        {'0': 2}

    """
    if not fits(network, batch, values):
        return {}
    try:
        with random_state_kept(network), warnings.catch_warnings(), uncompiled():
            warnings.simplefilter("ignore")  # as of a checkpoint whose inputs need no gradient
            return _counted(network, batch)
    except Exception:  # whatever the network's own code does
        return {}


def fits(network: nn.Module, batch: Batch, values: Mapping[str, int]) -> bool:
    """Whether a training step would leave half of the memory there is, as far as that is known."""
    free = available(device_of(network))
    return free is None or 2 * 4 * _HELD * batch.size * sum(values.values()) <= free


def _counted(network: nn.Module, batch: Batch) -> dict[str, int]:
    alone = network.module if isinstance(network, DistributedDataParallel) else network  # it speaks to others
    groups = [vars(module).get("process_group") for module in alone.modules()]
    twin: nn.Module = copy.deepcopy(alone, {id(group): group for group in groups if group is not None})
    if not twin.training:
        twin.train()
    counters = [_Counter(module) for module in twin.modules() if isinstance(module, _BatchNorm)]
    with torch.enable_grad():
        outputs = [x for x in channels_of(call(twin, batch)) if x.requires_grad]
        if outputs:
            torch.stack([x.double().square().sum().to(outputs[0].device) for x in outputs]).sum().backward()
    names = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    moves = {name: counter.moves() for name, counter in zip(names, counters, strict=True)}
    return {name: count for name, count in moves.items() if count is not None}


class _Counter:
    """Looks at the running statistics before each call of a layer, and at the end.

    Not after each call: one that a checkpoint repeats may end with an exception, once it has computed enough.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer, self.count = layer, 0
        self.last = self._held()
        layer.register_forward_pre_hook(lambda *_: self._look())

    def moves(self) -> int | None:
        self._look()
        return None if self.layer.running_mean is None else self.count

    def _look(self) -> None:
        now = self._held()
        self.count += any(not torch.equal(a, b) for a, b in zip(self.last, now, strict=True))
        self.last = now

    def _held(self) -> list[Tensor]:
        layer = self.layer
        held = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        return [tensor.detach().nan_to_num(torch.pi).clone() for tensor in held if tensor is not None]
