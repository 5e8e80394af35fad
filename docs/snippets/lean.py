"""What a training step keeps, and the same network made lean."""

import torch
from torch import nn

import mednorm

network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(inplace=True),
    nn.Conv2d(16, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(inplace=True),
    nn.Conv2d(16, 2, 1),
)
images = torch.randn(8, 1, 64, 64)
report = mednorm.convert(network, "batch", fuse_activation=True)
print(mednorm.activation_memory(network, images))

with mednorm.lean_activations(network):  # around forward passes
    loss = network(images).square().mean()
loss.backward()

report = mednorm.convert(network, "batch", lean=True)  # or: lean whenever it trains, from now on
network(images).square().mean().backward()
