"""The exact statistics of what reaches each layer, over all batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.guards import random_state_kept
from mednorm.layers import DomainBatchNorm, RangeBatchNorm
from mednorm.layers.tracking import ProcessGroup, others_of
from mednorm.moments import Moments, broadcast_mask
from mednorm.population.batches import Batch, call, device_of
from mednorm.population.processes import summed, together

_AT_ONCE = 2**22  # values that are held in float64 beside a tensor, 32 MiB twice


@dataclass
class Seen:
    """What reached a layer.

    Attributes:
        moments: of all its values, float64; None where no batch reached it.
        sites: of the images of each site that the layer has statistics of, and how many these were.
        images: in the batches that reached it.
        batches: that reached it.
        calls: the most in one batch.

    """

    moments: Moments | None = None
    sites: dict[int, tuple[Moments, int]] = field(default_factory=dict)
    images: int = 0
    batches: int = 0
    calls: int = 0

    def add(self, layer: _BatchNorm, x: Tensor, mask: Tensor | None) -> None:
        """Pool with what one call gives to the layer."""
        self.moments = _pooled(self.moments, _measured(layer, x, mask))
        if not isinstance(layer, DomainBatchNorm) or layer.sites is None:
            return
        for site, places in layer._groups(len(x), layer.sites).items():
            if site is None or not places:
                continue
            kept = None if mask is None else broadcast_mask(mask, x, 1)[places]
            before, images = self.sites.get(site, (None, 0))
            self.sites[site] = _pooled(before, _measured(layer, x[places], kept)), images + len(places)


class _Enough(Exception):
    """What the layer gets is known; nothing behind it needs to run."""


def observe(
    network: nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, _BatchNorm],
    *,
    calls: int | None = None,
    group: ProcessGroup = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Seen]:
    """Run a network over all batches as it stands, and pool what reaches some of its layers.

    Args:
        network: the network, in the mode that it is to be seen in.
        batches: the images.
        layers: which to look at, with their names.
        calls: go on with the next batch after so many calls of a layer.
        group: processes over which to pool.
        progress: called after each batch.

    Returns:
        One for each layer, those that were called in the order of their first calls, then the others.

    """
    seen: dict[str, Seen] = {}
    counted = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            seen.setdefault(name, Seen()).add(layers[name], x.detach(), mask)
            counted[name] += 1
            if counted[name] == calls:
                raise _Enough

        return look

    def run() -> None:
        with ExitStack() as hooks, random_state_kept(network):
            for name, layer in layers.items():
                handle = layer.register_forward_pre_hook(hook(name), with_kwargs=True)
                hooks.callback(handle.remove)
            for batch in batches:
                counted.update(dict.fromkeys(layers, 0))
                with suppress(_Enough):
                    call(network, batch)
                for name, each in seen.items():
                    each.calls = max(each.calls, counted[name])
                    each.batches += counted[name] > 0
                    each.images += batch.size * (counted[name] > 0)
                if progress is not None:
                    progress()

    device = device_of(network)
    together(run, group, device)
    seen |= {name: Seen() for name in layers if name not in seen}
    if others_of(group) is not None:
        seen = {name: _over_processes(layers[name], each, group, device) for name, each in seen.items()}
    return seen


def _measured(layer: _BatchNorm, x: Tensor, mask: Tensor | None) -> Moments:
    """Measure in float64, a few samples at a time."""
    if x.device.type == "mps":  # which has no float64
        x, mask = x.cpu(), None if mask is None else mask.cpu()
    size = max(1, _AT_ONCE // max(1, x[:1].numel()))
    kept = None if mask is None else broadcast_mask(mask, x, 1)
    parts = x.split(size)
    masks = [None] * len(parts) if kept is None else kept.split(size)
    moments = Moments.pool(
        Moments.of(part, mask=some, dtype=torch.float64) for part, some in zip(parts, masks, strict=True)
    )
    # A range grows with the number of values: what the layer normalizes with is that of a batch.
    return moments.by_range() if isinstance(layer, RangeBatchNorm) else moments


def _pooled(before: Moments | None, new: Moments) -> Moments:
    return new if before is None else before.merge(new.to(before.mean.device))


def _over_processes(layer: _BatchNorm, seen: Seen, group: ProcessGroup, device: torch.device) -> Seen:
    """Pool what the layer of the same name got in every process."""
    others = others_of(group)
    none = Moments.of(torch.zeros(0, layer.num_features, dtype=torch.float64, device=device))
    sites = range(len(layer.domains)) if isinstance(layer, DomainBatchNorm) else ()
    parts = {site: seen.sites.get(site, (none, 0)) for site in sites}
    images, batches, *of_sites = summed(
        [seen.images, seen.batches, *(count for _, count in parts.values())], group, device
    )
    moments = (seen.moments or none).all_reduce(others)
    pooled = {site: (part.all_reduce(others), int(of_sites[site])) for site, (part, _) in parts.items()}
    return Seen(
        moments if int(moments.count.max()) else None,
        {site: each for site, each in pooled.items() if each[1]},
        int(images),
        int(batches),
        seen.calls,
    )
