"""What freezing a layer means in each framework."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch

from mednorm import BatchNorm
from mednorm.keras import BNLayer

other_site = np.random.default_rng(0).normal(5, 2, (8, 3)).astype("float32")

keras_layer = BNLayer()
keras_layer.build((None, 3))
keras_layer.trainable = False
keras_layer(other_site, training=True)
print("Keras, trainable=False:        moving mean", np.round(np.array(keras_layer.get_weights()[2]), 2))

torch_layer = BatchNorm(3).requires_grad_(False)
torch_layer.train()
torch_layer(torch.tensor(other_site))
print("PyTorch, requires_grad=False: running mean", torch_layer.running_mean.numpy().round(2))

torch_layer.reset_running_stats()
torch_layer.eval()
torch_layer(torch.tensor(other_site))
print("PyTorch, eval():              running mean", torch_layer.running_mean.numpy().round(2))
