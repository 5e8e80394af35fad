"""Four micro-batches of two leave what one batch of eight does; without accumulation they do not."""

import torch
from torch import nn

import mednorm

torch.manual_seed(0)
scans = torch.randn(8, 1, 16, 16, 16) + torch.linspace(-3, 3, 8).view(8, 1, 1, 1, 1)  # each scan has a mean of its own


def running(*batches: torch.Tensor, accumulate: bool = False) -> str:
    network = nn.Sequential(mednorm.BatchNorm(1, momentum=1.0))
    with mednorm.accumulate(network) if accumulate else torch.enable_grad():
        for batch in batches:
            network(batch).sum().backward()
    layer = network[0]
    return f"running variance {layer.running_var.item():.3f} after {layer.num_batches_tracked.item()} update(s)"


print("one batch of 8:               ", running(scans))
print("4 batches of 2, accumulated:  ", running(*scans.split(2), accumulate=True))
print("4 batches of 2, one by one:   ", running(*scans.split(2)))
