"""Ten lines: a drop-in layer, its statistics, and why pooling beats averaging."""

import torch

from mednorm import BatchNorm, Moments

torch.manual_seed(0)
scans = [site + torch.randn(4, 2, 8, 8, 8) for site in (0.0, 2.0)]  # two scanners, shifted against each other

layer = BatchNorm(2, activation="relu")  # torch.nn.BatchNorm3d and ReLU, with the same state_dict
layer(torch.cat(scans))
print(
    "batch mean, variance, range:",
    *(f"{v:.2f}" for v in (layer.batch_moments.mean[0], layer.batch_moments.variance[0], layer.batch_moments.range[0])),
)

parts = [Moments.of(scan) for scan in scans]
print(
    f"variance averaged over scans {sum(p.variance[0] for p in parts) / 2:.2f}, pooled {Moments.pool(parts).variance[0]:.2f}"
)

layer(torch.full((4, 2, 8, 8, 8), torch.nan))  # an overflow, a broken voxel
print("skipped", layer.num_batches_skipped.item(), "finite", layer.running_var.isfinite().all().item())
