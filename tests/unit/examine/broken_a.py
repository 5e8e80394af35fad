"""Networks that were broken on purpose, each in the way that one of the rules MN001-MN004, MN013, MN014 is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from tests.unit.examine.networks import ARCHITECTURES, loader_of, scans, size_of, trained, trained_at_sites

Built = tuple[nn.Module, list[dict[str, Any]]]


@dataclass(frozen=True)
class Broken:
    """A broken network: what is wrong, which rule must say so first, and what is told to `mednorm.examine`."""

    name: str
    code: str
    build: Callable[[], Built]
    told: dict[str, Any] = field(default_factory=dict)


def other_images(arch: str, dims: int, *, gain: float, offset: float) -> Built:
    """Take the running statistics from images of another contrast than those it is used on."""
    network, loader = trained(arch, dims, 0)
    _recompute(network, [gain * batch["image"] + offset for batch in loader])
    return network, loader


def started_anew(arch: str, dims: int, updates: int) -> Built:
    """Forget the running statistics after training, and let so many batches move them."""
    network, loader = trained(arch, dims, 0)
    for layer in _norms(network):
        layer.reset_running_stats()
    network.train()
    with torch.no_grad():
        for batch in loader[:updates]:
            network(batch["image"])
    return network.eval(), loader


def with_momentum(arch: str, dims: int, momentum: float) -> Built:
    """Train with a momentum that another library means the other way round."""
    return trained(arch, dims, 0, momentum=momentum)


def in_small_batches(arch: str, dims: int, batch_size: int) -> Built:
    """Train in batches of a few images."""
    return trained(arch, dims, 0, batch_size=batch_size)


def at_a_new_site(arch: str, dims: int, *, gain: float = 1.0, offset: float = 0.0) -> Built:
    """Train on two sites, and look at a third too, whose scanner has another gain or offset."""
    network, mixed = trained_at_sites(arch, dims)
    new = scans(16, dims, 3, size=size_of(arch, dims), site="Porto")
    shifted = [{**scan, "image": gain * scan["image"] + offset} for scan in new]
    every = [*mixed, *shifted]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    return network, loader_of([every[number] for number in order], 8, ARCHITECTURES[arch][1])


def averaged(arch: str, dims: int, batch_size: int) -> Built:
    """Let `torch.optim.swa_utils.update_bn` average the variances of batches of a few images."""
    network, loader = trained(arch, dims, 0)
    update_bn([few for batch in loader for few in batch["image"].split(batch_size)], network)
    return network.eval(), loader


def _recompute(network: nn.Module, images: list[torch.Tensor]) -> None:
    update_bn(images, network)
    network.eval()


def _norms(network: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


BROKEN: tuple[Broken, ...] = (
    Broken("statistics of darker images", "MN001", lambda: other_images("stack", 2, gain=0.5, offset=-1.0)),
    Broken("statistics of brighter volumes", "MN001", lambda: other_images("unet", 3, gain=3.0, offset=1.0)),
    Broken("statistics of 3 updates", "MN002", lambda: started_anew("stack", 2, 3)),
    Broken("statistics of 3 updates, 3-D", "MN002", lambda: started_anew("segresnet", 3, 3)),
    Broken("statistics never updated", "MN002", lambda: started_anew("resnet", 2, 0)),
    Broken("momentum 0.001", "MN002", lambda: with_momentum("unet", 2, 0.001)),
    Broken("momentum 0.001, 3-D", "MN002", lambda: with_momentum("stack", 3, 0.001)),
    Broken("momentum 0.99", "MN002", lambda: with_momentum("stack", 2, 0.99)),
    Broken("momentum 0.99, 3-D", "MN002", lambda: with_momentum("unet", 3, 0.99)),
    Broken("batch of 1", "MN003", lambda: in_small_batches("stack", 2, 1)),
    Broken("batch of 1, 3-D", "MN003", lambda: in_small_batches("unet", 3, 1)),
    Broken("batch of 2, 3-D", "MN003", lambda: in_small_batches("resnet", 3, 2)),
    Broken("one scanner's gain × 3", "MN004", lambda: at_a_new_site("stack", 2, gain=3.0)),
    Broken("one scanner's gain × 3, 3-D", "MN004", lambda: at_a_new_site("segresnet", 3, gain=3.0)),
    Broken("one scanner's offset, 3-D", "MN004", lambda: at_a_new_site("stack", 3, offset=2.0)),
    Broken("8 devices of 1", "MN013", lambda: in_small_batches("stack", 2, 1), {"devices": 8}),
    Broken("8 devices of 2, 3-D", "MN013", lambda: in_small_batches("resnet", 3, 2), {"devices": 8}),
    Broken("variances averaged one by one", "MN014", lambda: averaged("stack", 2, 1)),
    Broken("variances averaged one by one, 3-D", "MN014", lambda: averaged("unet", 3, 1)),
    Broken("variances averaged by two", "MN014", lambda: averaged("densenet", 2, 2)),
)
