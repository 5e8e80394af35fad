"""What the tests of `mednorm.port` share: networks after some training, their bytes, and their outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

from mednorm import BatchNorm
from mednorm.keras import BNLayer, MovingBNLayer, article_cnn
from mednorm.tasks.networks import Shape, build_network
from tests.keras.backends import BACKEND

TOLERANCE = 1e-5  # of float32 outputs around 1: some hundred roundings
IMAGES = np.random.default_rng(1).normal(size=(32, 28, 28, 1)).astype("float32")
LABELS = np.arange(32) % 10
# Keras layer, input shape without batch, and PyTorch layer of three channels.
RANKS = {
    "1-D": ((7, 3), nn.BatchNorm1d),
    "2-D": ((6, 5, 3), nn.BatchNorm2d),
    "3-D": ((4, 5, 6, 3), nn.BatchNorm3d),
    "vectors": ((3,), nn.BatchNorm1d),
    "sync": ((6, 5, 3), nn.SyncBatchNorm),
    "mednorm 2-D": ((6, 5, 3), BatchNorm),
    "mednorm 3-D": ((4, 5, 6, 3), BatchNorm),
}
ALL_RANKS = pytest.mark.parametrize(("shape", "norm"), RANKS.values(), ids=RANKS)


def trained_keras(normalization="bn", momentum=0.9):
    """The article's network after some steps, so that nothing is where it started."""
    kinds = {"bn": BNLayer, "keras": layers.BatchNormalization, "moving": MovingBNLayer}
    model = article_cnn(normalization=lambda: kinds[normalization](momentum=momentum))
    model.fit(IMAGES, LABELS, batch_size=16, epochs=2, verbose=0)
    return model


def untrained_torch():
    return build_network("article_cnn", Shape(1, (28, 28), 10), "batch", kind="classification")


def trained_torch():
    network = untrained_torch()
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(channels_to_front(IMAGES)), torch.from_numpy(LABELS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def channels_to_front(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim > 2 else x))


def probabilities(network, x=IMAGES):
    mode = network.training
    with torch.no_grad():
        y = network.eval()(channels_to_front(x)).softmax(1).numpy()
    network.train(mode)
    return y


def keras_bytes(network):
    """Every weight, random seed and metric, and what decides how the layers behave."""
    flat = network._flatten_layers()
    settings = [(getattr(layer, "epsilon", 0), getattr(layer, "momentum", 0), layer.trainable) for layer in flat]
    modes = [module.training for module in network.modules()] if BACKEND == "torch" else []
    return [np.array(keras.ops.convert_to_numpy(v)).tobytes() for v in network.variables], settings, modes


def torch_bytes(network):
    tensors = [*network.parameters(), *network.buffers()]
    settings = [(m.training, getattr(m, "eps", 0), getattr(m, "momentum", 0)) for m in network.modules()]
    return [tensor.detach().numpy().tobytes() for tensor in tensors], settings


def norm_layer(shape=(6, 5, 3), kind=BNLayer, **options):
    """A Keras layer of three channels with weights and statistics away from where they start."""
    layer = kind(**options)
    layer.build((None, *shape))
    values = [("gamma", [1.5, 0.5, -0.75]), ("beta", [0.25, -0.5, 1.0])]
    values += [("moving_mean", [5.0, -2.0, 0.5]), ("moving_variance", [4.0, 0.25, 1.5])]
    for name, value in values:
        if getattr(layer, name) is not None:
            getattr(layer, name).assign(np.array(value, "float32"))
    return layer


def torch_norm(kind=nn.BatchNorm2d, **options):
    norm = kind(3, **options)
    with torch.no_grad():
        for name, value in [("running_mean", [3.0, -1.0, 0.5]), ("running_var", [9.0, 0.5, 2.0])]:
            getattr(norm, name).copy_(torch.tensor(value))
        if norm.affine:
            norm.weight.copy_(torch.tensor([-1.0, 2.0, 0.5]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, -0.25]))
    norm.num_batches_tracked.fill_(7)
    return norm


def all_notes(report):
    return " ".join([*(note for layer in report.layers for note in layer.notes), *report.notes])
