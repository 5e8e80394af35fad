"""Networks with PyTorch's batch normalization, and what the peers make of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_RELU = ("RELU", {"inplace": True})
_UNET_FEATURES = (16, 16, 32, 64, 128, 16)


def _basicunet(dims: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(dims, 1, 2, features=_UNET_FEATURES, norm="batch", act=_RELU)


def _segresnet(dims: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(dims, init_filters=16, in_channels=1, out_channels=2, norm="batch", act=_RELU)


def _densenet121(dims: int) -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(dims, 1, 2)


def _article(dims: int) -> nn.Module:
    from mednorm.tasks.networks import NETWORKS, Shape

    return NETWORKS["article_cnn"].build(Shape(1, (28, 28), 2), "batch")  # MONAI's name: PyTorch's layer


class Network(NamedTuple):
    """How a network is built for a number of axes, the shape of a batch, and a small one."""

    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    small: tuple[int, ...]


NETWORKS = {
    "BasicUNet 3-D": Network(_basicunet, (2, 1, 64, 64, 64), (2, 1, 16, 16, 16)),
    "BasicUNet 2-D": Network(_basicunet, (8, 1, 128, 128), (2, 1, 32, 32)),
    "SegResNet 3-D": Network(_segresnet, (1, 1, 64, 64, 64), (2, 1, 16, 16, 16)),
    "DenseNet121 2-D": Network(_densenet121, (16, 1, 96, 96), (2, 1, 64, 64)),
    "article's CNN": Network(_article, (32, 1, 28, 28), (4, 1, 28, 28)),
}


def build_network(name: str, shape: list[int], seed: int = 0) -> nn.Module:
    """Build a network as PyTorch and MONAI give it, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name].build(len(shape) - 2)


def batch(shape: list[int], classes: bool) -> tuple[Tensor, Tensor]:
    """Return images with a structure to learn, and targets: a class of each image, or of each voxel."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(shape, generator=generator)
    return images, (images.flatten(1).mean(1) > 0).long() if classes else (images[:, 0] > 0).long()


def given(network: nn.Module, peer: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Make of a network what a peer would train; return the context in which it runs."""
    import mednorm

    if peer == "torch":
        return contextlib.nullcontext
    mednorm.convert(network, "batch", fuse_activation=True)
    if peer == "mednorm":
        return contextlib.nullcontext
    return partial(mednorm.lean_activations, network)


def loss_of(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of a classification or segmentation."""
    return functional.cross_entropy(network(images), targets)
