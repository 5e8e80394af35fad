"""Images whose variance lies between them to a known share, as a layer's input."""

from __future__ import annotations

import torch
from torch import Tensor


def scattered(count: int, between: float, *, channels: int = 8, voxels: int = 256, seed: int = 0) -> Tensor:
    """Return images (N, C, 1, voxels) of variance 1, a share of it between the images' means, whose own mean is 0."""
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(count, channels, 1, 1, generator=random, dtype=torch.float64)
    means = (means - means.mean(0)) / means.std(0)
    values = torch.randn(count, channels, 1, voxels, generator=random, dtype=torch.float64)
    values = (values - values.mean(3, keepdim=True)) / values.std(3, keepdim=True)
    return between**0.5 * means + (1 - between) ** 0.5 * values
