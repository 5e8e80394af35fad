"""A running variance that was averaged over small batches, and the population's."""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import mednorm

torch.manual_seed(0)
brightness = torch.randn(40, 1, 1, 1)  # of the scans of 40 patients
scans = brightness + 0.5 * torch.randn(40, 1, 64, 64)
loader = scans.split(2)  # or any DataLoader
network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

update_bn(loader, network)  # PyTorch's: an average over batches of two
averaged = network[0].running_var.item()
report = mednorm.recalibrate(network, loader)
print(f"variance of all scans {scans.var():.2f}, averaged {averaged:.2f}, now {network[0].running_var.item():.2f}")
print(report)
report.rollback()  # gives the old statistics back, bit by bit
