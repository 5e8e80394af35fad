"""The batch is normalized with the biased variance; the running variance takes the unbiased one."""

import torch

from mednorm import BatchNorm

x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(4, 1, 1)
layer = BatchNorm(1, momentum=1.0, eps=0.0)  # the running statistics become the batch's
y = layer(x)
print(f"biased {layer.batch_moments.variance.item():.2f}, unbiased {layer.running_var.item():.2f}")
print(f"variance after normalization: {y.var(unbiased=False):.2f} in training, ", end="")
print(f"{layer.eval()(x).var(unbiased=False):.2f} in evaluation")
