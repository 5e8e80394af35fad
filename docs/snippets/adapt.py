"""The same patients seen by another scanner, before and after the network got used to it."""

import torch
from torch import nn

import mednorm

torch.manual_seed(0)
home = torch.randn(48, 1, 64, 64) + torch.randn(48, 1, 1, 1)
elsewhere = 3 * home + 2  # another gain, another offset
network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)).eval()
report = mednorm.recalibrate(network, home.split(8))
wanted = network(home)

print(f"outputs differ by {(network(elsewhere) - wanted).abs().max():.1f}")
print(mednorm.adapt(network, elsewhere.split(8)))
print(f"outputs differ by {(network(elsewhere) - wanted).abs().max():.1f}")
