"""Networks that nothing is wrong with: no rule may call any of them an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.unit.examine.networks import ARCHITECTURES, loader_of, trained, trained_at_sites


@dataclass(frozen=True)
class Healthy:
    """A network that was trained long enough in batches large enough, and the images to look at it with."""

    name: str
    build: Callable[[], tuple[nn.Module, list[dict[str, Any]]]]


def at_two_sites(arch: str, dims: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train on two sites that have the same scanner."""
    network, samples = trained_at_sites(arch, dims)
    return network, loader_of(samples, 8, ARCHITECTURES[arch][1])


HEALTHY: tuple[Healthy, ...] = (
    Healthy("three convolutions, 2-D", lambda: trained("stack", 2, 0)),
    Healthy("three convolutions, 3-D", lambda: trained("stack", 3, 1, batch_size=16)),
    Healthy("two sites, 2-D", lambda: at_two_sites("stack", 2)),
    Healthy("two sites, 3-D", lambda: at_two_sites("segresnet", 3)),
    Healthy("the article's network", lambda: trained("article", 2, 0)),
    Healthy("ResNet18, 2-D", lambda: trained("resnet", 2, 0)),
    Healthy("DenseNet, 2-D", lambda: trained("densenet", 2, 0)),
    Healthy("DenseNet, 3-D", lambda: trained("densenet", 3, 0, batch_size=16, steps=40)),
    Healthy("BasicUNet, 2-D", lambda: trained("basicunet", 2, 0)),
    Healthy("UNet, 2-D", lambda: trained("unet", 2, 1)),
    Healthy("UNet, 3-D", lambda: trained("unet", 3, 0)),
    Healthy("SegResNet, 2-D", lambda: trained("segresnet", 2, 1, batch_size=16)),
    Healthy("SegResNet, 3-D", lambda: trained("segresnet", 3, 0)),
)
