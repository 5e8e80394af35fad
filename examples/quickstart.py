"""A drop-in layer, its statistics, and why pooling beats averaging."""

import torch

from mednorm import BatchNorm, Moments

torch.manual_seed(0)
scans = [site + torch.randn(4, 2, 8, 8, 8) for site in (0.0, 2.0)]  # two scanners, shifted against each other

layer = BatchNorm(2, activation="relu")  # torch.nn.BatchNorm3d and ReLU, with the same state_dict
layer(torch.cat(scans))
batch = layer.batch_moments
print(f"batch: mean {batch.mean[0]:.2f}, variance {batch.variance[0]:.2f}, range {batch.range[0]:.2f}")

parts = [Moments.of(scan) for scan in scans]
averaged = sum(part.variance[0] for part in parts) / len(parts)
print(f"variance: averaged over scans {averaged:.2f}, pooled {Moments.pool(parts).variance[0]:.2f}")

layer(torch.full((4, 2, 8, 8, 8), torch.nan))  # an overflow, or a broken voxel
print(f"skipped {int(layer.num_batches_skipped)} batch, running variance {layer.running_var[0]:.2f}")
