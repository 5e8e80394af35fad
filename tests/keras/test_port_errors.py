"""What `mednorm.port` refuses; each error leaves the target as it was."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import mednorm
from mednorm import port
from mednorm.errors import ConfigError, DataError, ShapeError
from mednorm.keras import BNLayer
from tests.keras.porting import (
    keras_bytes,
    norm_layer,
    torch_bytes,
    torch_norm,
)


def assert_refused(error, match, source, target, **options):
    sides = {True: keras_bytes, False: torch_bytes}
    read = [sides[isinstance(thing, keras.Layer)] for thing in (source, target)]
    before = read[0](source), read[1](target)
    with pytest.raises(error, match=match):
        port(source, target, **options)
    assert (read[0](source), read[1](target)) == before


def test_two_of_one_framework_are_refused():
    for source, target, got in [
        (norm_layer(), norm_layer(), r"source BNLayer \(Keras\) and target BNLayer \(Keras\)"),
        (torch_norm(), torch_norm(), r"source BatchNorm2d \(PyTorch\) and target BatchNorm2d \(PyTorch\)"),
        (norm_layer(), "model.pt", r"source BNLayer \(Keras\) and target str \(neither\)"),
    ]:
        with pytest.raises(ConfigError, match=got):
            port(source, target)


def test_layers_with_weights_of_other_kinds_are_refused_by_name():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.DepthwiseConv2D(3), layers.LayerNormalization()])
    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.GroupNorm(1, 1))
    assert_refused(ConfigError, r"depthwise_conv2d\S* \(DepthwiseConv2D\) with kernel, bias", model, network)
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(1, 3), BNLayer()])
    assert_refused(ConfigError, r"got 1 \(GroupNorm\) with weight, bias in the PyTorch network", model, network)


def test_weights_beside_the_layers_are_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)
            self.shift = self.add_weight(shape=(2,), name="shift")

        def call(self, x, training=False):
            return self.dense(x) + self.shift

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ConfigError, match=r"belong to one of its `.layers`, got \S*shift"):
        port(model, nn.Linear(3, 2), example=np.ones((1, 3)))
    network = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    layer = layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(ConfigError, match="got ParametrizedLinear with a weight that is computed"):
        port(network, layer)


def test_other_numbers_of_layers_other_kinds_and_other_shapes_are_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, name="c"), BNLayer(name="b")])
    conv, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    fewer = r"got 2 in the source \(c, b\) and 1 in the target \(0\)"
    assert_refused(ConfigError, fewer, model, nn.Sequential(conv))
    swapped = nn.Sequential(norm, conv)
    assert_refused(ConfigError, "got c, a 2-D convolution, and 0, a batch normalization", model, swapped)
    other = nn.Sequential(nn.Conv2d(1, 2, 5), norm)
    shapes = r"weight of 0 and of c to have one shape, got \(2, 1, 5, 5\) and \(2, 1, 3, 3\)"
    assert_refused(ShapeError, shapes, model, other)
    assert_refused(ShapeError, r"weight of c and of 0 .* got \(2, 1, 3, 3\) and \(2, 1, 5, 5\)", other, model)
    assert_refused(ConfigError, "got two networks without any", keras.Sequential([keras.Input((2,))]), nn.ReLU())


def test_outputs_of_other_shapes_are_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, padding="same")])
    shapes = r"got \(4, 6, 6, 2\) from Keras and \(4, 4, 4, 2\) from PyTorch"
    assert_refused(ConfigError, shapes, model, nn.Conv2d(1, 2, 3))


def test_input_that_the_other_side_cannot_take_is_refused():
    assert_refused(ConfigError, r"PyTorch side to take input of shape \(4, 3\)", norm_layer((3,)), torch_norm())
    wrong = {"example": np.ones((2, 6, 5, 2))}
    assert_refused(ConfigError, r"side to take input of shape \(2, 6, 5, 2\)", norm_layer(), torch_norm(), **wrong)


def test_numbers_that_are_not_finite_are_refused():
    norm = torch_norm()
    norm.running_var[1] = float("nan")
    assert_refused(DataError, "got 1 that are not in running_var of BatchNorm2d", norm, norm_layer())
    layer = norm_layer()
    layer.beta.assign(np.array([np.inf, 0, -np.inf], "float32"))
    assert_refused(DataError, r"got 2 that are not in bias of bn_layer", layer, torch_norm())
    example = np.full((2, 6, 5, 3), np.nan)
    assert_refused(DataError, r"got shape \(2, 6, 5, 3\) with 180", norm_layer(), torch_norm(), example=example)


def test_numbers_too_large_for_the_target_are_refused():
    layer = norm_layer()
    layer.moving_variance.assign(np.array([1e6, 1, 1], "float32"))
    narrow = nn.BatchNorm2d(3, dtype=torch.float16)
    assert_refused(DataError, r"of float16, which ends at 65504, got 1e\+06", layer, narrow)


def test_layers_without_running_statistics_are_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert_refused(ConfigError, "got BatchNorm2d with track_running_stats=False", norm, norm_layer())
    assert_refused(ConfigError, "with track_running_stats=False", norm_layer(), norm)
    always = norm_layer(training=True)
    assert_refused(ConfigError, r"got bn_layer\S* with training=True", always, torch_norm())


def test_layers_without_weights_yet_are_refused():
    lazy = nn.Sequential(nn.LazyConv2d(2, 3))
    layer = layers.Conv2D(2, 3)
    with pytest.raises(
        ConfigError, match=r"conv2d\S* \(Conv2D\) of the Keras side has no weights yet: it is not built"
    ):
        port(layer, nn.Conv2d(1, 2, 3))
    layer.build((None, 6, 6, 1))
    with pytest.raises(ConfigError, match=r"0 \(LazyConv2d\) of the PyTorch side has no weights yet"):
        port(lazy, layer)
    with pytest.raises(ConfigError, match="of the PyTorch side has no weights yet"):
        port(nn.Conv2d(1, 2, 3, device="meta"), layer)
    with pytest.raises(ConfigError, match="it is not built"):
        port(keras.Sequential([layers.Conv2D(2, 3), BNLayer()]), nn.Conv2d(1, 2, 3))


def test_channels_on_an_axis_between_are_refused():
    with pytest.raises(ConfigError, match=r"axis=2 for input of 4 axes"):
        port(norm_layer((6, 3, 5), axis=2), torch_norm())


def test_an_epsilon_that_keras_cannot_have_is_refused():
    assert_refused(ConfigError, r"`epsilon` should be a number above 0.*epsilon=0", torch_norm(eps=0), norm_layer())


@pytest.mark.parametrize("count", [1, 2.5, True, "many"])
def test_a_number_of_values_that_gives_no_variance_is_refused(count):
    said = f"whole number of at least 2.*got {count!r}"
    assert_refused(ConfigError, said, norm_layer(), torch_norm(), values_per_channel=count)


def test_a_mapping_that_names_no_layer_is_refused():
    given = {"values_per_channel": {"norm": 4}}
    assert_refused(ConfigError, r"got norm\. There are: BatchNorm2d, bn_layer", norm_layer(), torch_norm(), **given)


def test_several_inputs_or_outputs_are_refused():
    one, two = keras.Input((3,)), keras.Input((3,))
    both = keras.Model([one, two], layers.Dense(2)(layers.Add()([one, two])))
    assert_refused(ConfigError, "a Keras network with one input, got 2", both, nn.Linear(3, 2))
    split = keras.Model(one, [layers.Dense(2)(one), layers.Dense(2)(one)])
    pair = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ShapeError):
        port(split, pair)
    split = keras.Model(one, [layers.Dense(3)(one), layers.Dense(3)(one)])
    pair = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert_refused(ConfigError, "a Keras network with one output, got list", split, pair)


def test_asking_for_port_imports_no_keras_and_neither_does_refusing():
    code = """
import sys, torch, mednorm
try:
    mednorm.port(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
except mednorm.MednormError:
    print("keras" in sys.modules, mednorm.PortReport.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "mednorm.surgery.report"]
    assert mednorm.port is port
