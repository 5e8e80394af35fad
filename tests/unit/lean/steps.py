"""Training steps, ordinary and lean, for the tests that compare them."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from mednorm import BatchNorm, lean_activations


class UNet(nn.Module):
    """One level of a U-Net, the skip taken before and after pooling, in any rank."""

    def __init__(self, rank=2, act="relu"):
        super().__init__()
        self.rank = rank
        conv = getattr(nn, f"Conv{rank}d")
        self.first, self.norm1 = conv(1, 4, 3, padding=1), BatchNorm(4, activation=act)
        self.down, self.norm2 = conv(4, 6, 3, padding=1), BatchNorm(6, activation=act)
        self.up = getattr(nn, f"ConvTranspose{rank}d")(6, 4, 2, 2)
        self.join, self.norm3 = conv(8, 4, 3, padding=1), BatchNorm(4, activation=act)
        self.head = conv(4, 1, 1)

    def forward(self, x):
        skip = self.norm1(self.first(x))
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.rank - 1]
        deep = self.norm2(self.down(pool(skip, 2)))
        up = F.pad(self.up(deep), [0] * 2 * self.rank, "replicate")
        return self.head(self.norm3(self.join(torch.cat([skip, up], dim=1))))


def scan(rank=2, size=8, channels=1):
    return torch.randn(3, channels, *[size] * rank, generator=torch.Generator().manual_seed(7))


def after_a_step(network, x, lean, *, run=None, inside=False):
    """The output, every gradient and every buffer after one step of a copy of a network."""
    network, x = copy.deepcopy(network), x.detach().clone().requires_grad_()
    torch.manual_seed(3)
    with lean_activations(network) if lean else nullcontext():
        y = (run or type(network).__call__)(network, x)
        loss = y.float().square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return {
        "output": y.detach(),
        "input": x.grad,
        **{name: parameter.grad for name, parameter in network.named_parameters()},
        **dict(network.named_buffers()),
    }


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    different = [
        name
        for name, tensor in wanted.items()
        if (tensor is None) != (found[name] is None) or (tensor is not None and not torch.equal(found[name], tensor))
    ]
    assert different == []
