"""Other layers, flattened features, nested networks, and what the report says of them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

from mednorm import port
from mednorm.errors import ConfigError
from mednorm.keras import BNLayer
from tests.keras.backends import to_numpy
from tests.keras.porting import (
    IMAGES,
    TOLERANCE,
    all_notes,
    channels_to_front,
    norm_layer,
    torch_norm,
    trained_keras,
    untrained_torch,
)


@pytest.mark.parametrize("way", ["to PyTorch", "to Keras"])
@pytest.mark.parametrize(
    ("layer", "module", "channels"),
    [
        (lambda: layers.Conv1D(4, 3), lambda: nn.Conv1d(2, 4, 3), (7, 2)),
        (lambda: layers.Conv2D(4, (3, 2), strides=(1, 2)), lambda: nn.Conv2d(2, 4, (3, 2), (1, 2)), (7, 6, 2)),
        (lambda: layers.Conv3D(4, (1, 2, 3)), lambda: nn.Conv3d(2, 4, (1, 2, 3)), (3, 5, 7, 2)),
        (lambda: layers.Conv2D(6, 3, groups=2), lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 5, 4)),
        (lambda: layers.Conv2D(4, 3, dilation_rate=2), lambda: nn.Conv2d(2, 4, 3, dilation=2), (7, 6, 2)),
        (lambda: layers.Conv2D(4, 3, use_bias=False), lambda: nn.Conv2d(2, 4, 3), (7, 6, 2)),
        (lambda: layers.Dense(4), lambda: nn.Linear(2, 4), (2,)),
    ],
    ids=["1-D", "2-D", "3-D", "groups", "dilation", "no bias", "dense"],
)
def test_convolutions_and_dense_layers_alone_are_equal(layer, module, channels, way):
    layer, module = layer(), module()
    layer.build((None, *channels))
    if way == "to Keras" and not getattr(layer, "use_bias", True):
        nn.init.zeros_(module.bias)
    report = port(layer, module) if way == "to PyTorch" else port(module, layer)
    assert report.max_difference < TOLERANCE
    assert report.scale > 0.1
    x = np.random.default_rng(5).normal(size=(2, *channels)).astype("float32")
    with torch.no_grad():
        y = module(channels_to_front(x))
    assert np.abs(channels_to_front(to_numpy(layer(x))).numpy() - y.numpy()).max() < TOLERANCE


def flattening(first):
    """Convolution, Flatten, normalization of the vector, dropout, dense, in both frameworks, of a map 4 by 3."""
    shape, order = ((2, 4, 3), "channels_first") if first else ((4, 3, 2), "channels_last")
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.BatchNormalization(axis=1 if first else -1),
            layers.Flatten(data_format=order),
            layers.Dropout(0.5),
            BNLayer(),
            layers.ReLU(),
            layers.Dense(5),
        ]
    )
    parts = [nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 5)]
    return model, nn.Sequential(*parts)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_what_follows_a_flatten_gets_its_features_in_pytorchs_order(first):
    model, network = flattening(first)
    for index, weight in enumerate(model.weights):  # every feature its own
        weight.assign(np.random.default_rng(index).uniform(0.5, 2, weight.shape))
    assert port(model, network).max_difference < TOLERANCE
    again, _ = flattening(first)
    port(network, again)
    for weight, restored in zip(model.weights, again.weights, strict=True):
        assert to_numpy(weight).tobytes() == to_numpy(restored).tobytes()


def test_a_plain_flatten_of_channels_first_needs_no_other_order():
    model = keras.Sequential([keras.Input((2, 3)), BNLayer(axis=1), layers.Flatten(), layers.Dense(4)])
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(6, 4))
    assert port(model, network).max_difference < TOLERANCE
    kernel = to_numpy(model.layers[-1].kernel)
    assert network[2].weight.detach().numpy().tolist() == kernel.T.tolist()


def test_nested_and_branching_networks_are_paired_in_order():
    inputs = keras.Input((6, 6, 2))
    backbone = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3), BNLayer()], name="backbone")
    features = backbone(inputs)
    maps, branch = layers.ReLU()(features), layers.Conv2D(3, 1)(features)
    vector = layers.Flatten()(layers.Add()([maps, branch]))
    model = keras.Model(inputs, layers.Dense(2, activation="sigmoid")(layers.Activation("tanh")(vector)))

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
            self.branch, self.head = nn.Conv2d(3, 3, 1), nn.Linear(48, 2)

        def forward(self, x):
            x = self.backbone(x)
            return self.head((x.relu() + self.branch(x)).flatten(1).tanh())

    report = port(model, Branching())
    assert report.max_difference < TOLERANCE
    assert report.layers[0].source.startswith("backbone/conv2d")
    assert [layer.target for layer in report.layers] == ["backbone.0", "backbone.1", "branch", "head"]
    assert "sigmoid of them was compared" in report.notes[0]


def test_a_network_of_a_class_of_its_own_is_compared_on_the_example():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.flat, self.dense = layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)

        def call(self, x, training=False):
            return self.dense(self.flat(self.conv(x)))

    model, network = Own(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 3))
    example = np.random.default_rng(0).normal(size=(2, 6, 5, 1))
    with pytest.raises(ConfigError, match=r"conv2d\S* \(Conv2D\) of the Keras side has no weights yet"):
        port(model, network, example=example)
    model(example)
    with pytest.raises(ConfigError, match=r"got input shape None\. Pass example="):
        port(model, network)
    report = port(model, network, example=example)
    assert report.max_difference < TOLERANCE
    assert report.input_shape == (2, 6, 5, 1)


def test_an_input_of_unknown_size_needs_an_example():
    model = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 3), BNLayer()])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r"got input shape \(None, None, None, 1\)\. Pass example="):
        port(model, network)
    report = port(model, network, example=IMAGES[:2])
    assert report.equivalent
    assert report.scale > 1


def test_a_difference_that_is_not_in_the_weights_is_reported_and_not_raised():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, activation="relu"), BNLayer()])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    report = port(model, network)
    assert not report.equivalent
    assert report.max_difference > 0.1
    assert "another activation" in report.notes[-1]
    assert "DIFFER" in str(report)


def test_the_target_keeps_its_type_and_the_rounding_is_said():
    layer, norm = norm_layer(), nn.BatchNorm2d(3, dtype=torch.float64)
    report = port(layer, norm)
    assert {tensor.dtype for tensor in (norm.weight, norm.running_var)} == {torch.float64}
    assert "Rounded" not in all_notes(report)
    report = port(torch_norm(dtype=torch.float64), layer)
    assert layer.moving_mean.dtype == "float32"
    assert "Rounded from float64 to float32" in all_notes(report)


def test_the_report_reads_as_a_table_and_as_json():
    report = port(trained_keras(), untrained_torch())
    lines = str(report).splitlines()
    assert lines[0].startswith("5 layers ported; outputs equal: they differ by at most ")
    assert lines[2].split() == [report.layers[1].source, "->", "norm1", "batch", "normalization", "[1,", "2]"]
    assert lines[6].strip() == "1. " + report.layers[1].notes[0]
    found = json.loads(json.dumps(report.to_dict()))
    assert found["layers"][1]["target"] == "norm1"
    assert found["equivalent"] is True
    assert found["input_shape"] == [4, 28, 28, 1]
