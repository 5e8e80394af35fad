"""One batch through both frameworks' layers, with their defaults."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch

from mednorm import BatchNorm
from mednorm.keras import BNLayer

# Two images after global pooling: two values a channel, where the bias of the variance shows most.
x = np.array([[1.0], [5.0]], dtype="float32")
keras_layer, torch_layer = BNLayer(), BatchNorm(1)
keras_layer(x, training=True)
torch_layer(torch.tensor(x))

print("            momentum    epsilon   mean  variance   after a batch of mean 3, variance 4")
for name, layer, mean, variance, eps in (
    ("Keras", keras_layer, keras_layer.moving_mean, keras_layer.moving_variance, keras_layer.epsilon),
    ("PyTorch", torch_layer, torch_layer.running_mean, torch_layer.running_var, torch_layer.eps),
):
    print(f"{name:10}{layer.momentum:10} {eps:10g} {float(mean[0]):6.2f} {float(variance[0]):9.2f}")
