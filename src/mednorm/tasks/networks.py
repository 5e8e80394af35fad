"""The networks of the tasks, with the normalization and the dropout left to the arm."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError
from mednorm.moments import Moments
from mednorm.monai import register_norms

# What MONAI's networks and `get_norm_layer` take; batch normalization is ours.
NORMS: dict[str, Any] = {
    "none": None,
    "batch": "mednorm_batch",
    "group": ("group", {"num_groups": 8}),
    "instance": ("instance", {"affine": True}),
}


@dataclass(frozen=True)
class Shape:
    """What a network is built for: image channels and size, and the number of classes."""

    channels: int
    size: tuple[int, ...]
    classes: int


def article_cnn(shape: Shape, norm: str, dropout: float) -> nn.Sequential:
    """Build the article's network: Conv 32, norm, Conv 64, norm, max-pool, dense; convolutions 3×3 with ReLU.

    Dropout, where asked for, stands before the dense layer, that is after the last normalization.

    Raises:
        ConfigError: the images are not 2-D or smaller than 6×6.

    """
    if len(shape.size) != 2 or min(shape.size) < 6:
        raise ConfigError(f"article_cnn: expected 2-D images of at least 6×6 pixels, got size {shape.size}.")
    height, width = ((side - 4) // 2 for side in shape.size)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(shape.channels, 32, 3)),
        ("relu1", nn.ReLU()),
        ("norm1", _norm_layer(norm, 32)),
        ("conv2", nn.Conv2d(32, 64, 3)),
        ("relu2", nn.ReLU()),
        ("norm2", _norm_layer(norm, 64)),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(dropout)),
        ("dense", nn.Linear(64 * height * width, shape.classes)),
    ]
    absent = {"dropout"} if dropout == 0 else set()
    absent |= {"norm1", "norm2"} if norm == "none" else set()
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers if name not in absent))


def unet(shape: Shape, norm: str, dropout: float) -> nn.Module:
    """Build MONAI's UNet with 8, 16, 32, 64 channels: seven convolutions, six of them followed by the norm.

    Raises:
        ConfigError: a side of the images is not a multiple of 8.

    """
    from monai.networks.nets import UNet

    if any(side % 8 for side in shape.size):
        raise ConfigError(
            f"unet: expected every side of the images to be a multiple of 8, got {shape.size}. Use --image-size."
        )
    register_norms()
    return UNet(
        spatial_dims=len(shape.size),
        in_channels=shape.channels,
        out_channels=shape.classes,
        channels=(8, 16, 32, 64),
        strides=(2, 2, 2),
        act="relu",
        norm=NORMS[norm],
        dropout=dropout,
    )


class StandardizeEach(nn.Module):
    """Give each channel of each image mean 0 and variance 1, as is usual for MR, whose intensities have no unit.

    Shape: (N, C, *) to the same. A constant image becomes 0.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Standardize each image by itself, the same in training and evaluation."""
        own = Moments.of(images, per_sample=True)
        view = (*own.mean.shape, *([1] * (images.dim() - 2)))
        return (images - own.mean.view(view)) / own.std.clamp(min=1e-6).view(view)


class StandardizeByTraining(nn.Module):
    """Standardize by the mean and standard deviation of all training images, kept as buffers with the network.

    Shape: (N, C, *) to the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def fit(self, images: Tensor) -> None:
        """Measure the training images (N, C, *)."""
        own = Moments.of(images)
        self.mean.copy_(own.mean)
        self.std.copy_(own.std.clamp(min=1e-6))

    def forward(self, images: Tensor) -> Tensor:
        """Standardize with the kept numbers, the same in training and evaluation."""
        view = (1, -1, *([1] * (images.dim() - 2)))
        return (images - self.mean.view(view)) / self.std.view(view)


def fit_input_scaling(network: nn.Module, images: Tensor) -> None:
    """Measure the training images, where the network's input scaling rests on them."""
    for module in network.modules():
        if isinstance(module, StandardizeByTraining):
            module.fit(images)


def _norm_layer(norm: str, channels: int) -> nn.Module:
    from monai.networks.layers.utils import get_norm_layer

    register_norms()
    layer: nn.Module = get_norm_layer(NORMS[norm], spatial_dims=2, channels=channels) if NORMS[norm] else nn.Identity()
    return layer
