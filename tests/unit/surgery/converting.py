"""What the tests of `convert` share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.harness import images

OPTIONS = {"domain": {"domains": ["Basel", "Lund"]}, "ghost": {"ghost_size": 2}}
RUNNING = ["batch", "sync", "renorm", "ghost", "moving", "range", "domain", "frozen", "torch"]
WITHOUT = ["group", "instance", "layer"]
EVERY = pytest.mark.parametrize("to", [to for to in RUNNING + WITHOUT if to != "torch"])
SHAPES = {1: (4, 6, 7), 2: (4, 6, 5, 6), 3: (4, 6, 3, 4, 5)}


def settled(layer, shape=SHAPES[2]):
    """A layer with statistics, γ and β that all matter."""
    for seed in range(3):
        layer(images(shape, next(iter(layer.buffers())).dtype, seed=seed))
    if layer.weight is not None:
        with torch.no_grad():
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-1, 1)
    return layer


def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), settled(nn.BatchNorm2d(6)), nn.ReLU(), nn.Conv2d(6, 6, 3), settled(nn.BatchNorm2d(6))
    )


def scan():
    return torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(5))
