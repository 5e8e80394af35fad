"""What is left of the initial running statistics after k updates, under each convention's default momentum."""

import torch

from mednorm import BatchNorm

UPDATES = (1, 10, 50, 100, 500, 1000)


def left_after(weight_of_new: float) -> str:
    """A running mean that starts at 1 and sees batches of mean 0 holds what is left of its start."""
    layer = BatchNorm(1, momentum=weight_of_new)
    layer.running_mean.fill_(1.0)
    shares = {}
    for update in range(1, UPDATES[-1] + 1):
        layer(torch.zeros(2, 1, 4, 4))
        shares[update] = layer.running_mean.item()
    return "".join(f"{shares[update]:9.1%}" for update in UPDATES)


print("updates              " + "".join(f"{update:>9}" for update in UPDATES))
print("PyTorch, 0.1 of new  " + left_after(0.1))
print("ONNX, 0.9 of old     " + left_after(1 - 0.9))
print("Keras, 0.99 of old   " + left_after(1 - 0.99))
