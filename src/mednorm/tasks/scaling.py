"""How images are scaled before the network sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from mednorm.moments import Moments

Scaling = Literal["image", "training"]  # standardize each image by itself, or all by the training images


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

    def fit(self, images: Iterable[Tensor]) -> None:
        """Measure the training images: (N, C, *), or volumes (C, *) that may differ in size."""
        own = Moments.of(images) if isinstance(images, Tensor) else Moments.pool(Moments.of(i[None]) for i in images)
        self.mean.copy_(own.mean)
        self.std.copy_(own.std.clamp(min=1e-6))

    def forward(self, images: Tensor) -> Tensor:
        """Standardize with the kept numbers, the same in training and evaluation."""
        view = (1, -1, *([1] * (images.dim() - 2)))
        return (images - self.mean.view(view)) / self.std.view(view)


def fit_input_scaling(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Measure the training images, where the network's input scaling rests on them."""
    for module in network.modules():
        if isinstance(module, StandardizeByTraining):
            module.fit(images)
