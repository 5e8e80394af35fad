"""Images that differ from each other: what a batch sees of them, and what evaluation makes of it."""

import torch

from mednorm import BatchNorm

VOXELS, BETWEEN, WITHIN = 16 * 16 * 16, 1.0, 1.0  # half of the variance is between images, as between patients
torch.manual_seed(0)


def images(count: int) -> torch.Tensor:
    """One channel; each image has a mean of its own, and voxels that scatter around it."""
    means = BETWEEN**0.5 * torch.randn(count, 1, 1, 1, 1)
    return means + WITHIN**0.5 * torch.randn(count, 1, 16, 16, 16)


print("batch  voxels  worth  batch variance  running variance  std in training  std in evaluation")
for size in (1, 2, 4, 8, 32):
    layer, batches = BatchNorm(1, momentum=None), [images(size) for _ in range(1024 // size)]
    seen = torch.stack([layer(batch).std() for batch in batches]).mean()
    inside = torch.stack([batch.var(unbiased=False) for batch in batches]).mean()
    correlation = BETWEEN / (BETWEEN + WITHIN)
    worth = size * VOXELS / (1 + (VOXELS - 1) * correlation)
    new = layer.eval()(images(1024)).std()
    print(f"{size:5} {size * VOXELS:7} {worth:6.1f} {inside:15.2f} {layer.running_var.item():17.2f}", end="")
    print(f" {seen:16.2f} {new:18.2f}")
