"""What a layer saw: the batch's mean, variance and range, per channel."""

import torch

from mednorm import BatchNorm

torch.manual_seed(0)
layer = BatchNorm(2)
images = torch.randn(8, 2, 32, 32) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1) + 5
normalized = layer(images)

seen = layer.batch_moments
for channel in range(2):
    mean, variance, extent = (float(value[channel]) for value in (seen.mean, seen.variance, seen.range))
    print(f"channel {channel}: mean {mean:.2f}, variance {variance:.2f}, range {extent:.2f}", end=" → ")
    print(f"mean {abs(normalized[:, channel].mean()):.2f}, variance {normalized[:, channel].var(unbiased=False):.2f}")
