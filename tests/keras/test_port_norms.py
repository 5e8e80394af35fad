"""Batch normalization alone, from Keras to PyTorch and back: statistics, constants, counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

from mednorm import BatchNorm, port
from mednorm.errors import ConfigError
from mednorm.keras import BatchRenormLayer, MovingBNLayer, RangeBNLayer
from tests.keras.backends import to_numpy
from tests.keras.porting import (
    ALL_RANKS,
    TOLERANCE,
    all_notes,
    channels_to_front,
    keras_bytes,
    norm_layer,
    torch_norm,
    trained_keras,
    untrained_torch,
)
from tests.oracle.batch_norm import BatchNormOracle


@ALL_RANKS
def test_batch_normalization_of_any_rank_equals_the_oracle_after_the_port(shape, norm):
    layer, target = norm_layer(shape, epsilon=0.125), norm(3)
    report = port(layer, target)
    oracle = BatchNormOracle(3, eps=0.125)
    oracle.weight, oracle.bias = to_numpy(layer.gamma), to_numpy(layer.beta)
    oracle.running_mean, oracle.running_var = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    x = channels_to_front(np.random.default_rng(0).normal(size=(4, *shape)).astype("float32"))
    with torch.no_grad():
        y = target.eval()(x).numpy()
    expected = oracle.evaluate(x.numpy())
    assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()
    assert report.equivalent
    assert report.layers[0].kind == "batch normalization"
    assert (target.eps, target.momentum) == (0.125, 0.01)


@ALL_RANKS
def test_batch_normalization_of_any_rank_equals_the_oracle_after_the_port_to_keras(shape, norm):
    source, layer = torch_norm(norm, eps=0.125, momentum=0.1), norm_layer(shape)
    report = port(source, layer)
    oracle = BatchNormOracle(3, eps=0.125)
    oracle.weight, oracle.bias = source.weight.detach().numpy(), source.bias.detach().numpy()
    oracle.running_mean, oracle.running_var = source.running_mean.numpy(), source.running_var.numpy()
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    expected = oracle.evaluate(channels_to_front(x).numpy())
    y = channels_to_front(to_numpy(layer(x, training=False))).numpy()
    assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()
    assert report.equivalent
    assert (layer.epsilon, layer.momentum) == (0.125, 0.9)


def test_channels_first_is_respected():
    layer, norm = norm_layer((3, 6, 5), axis=1), nn.BatchNorm2d(3)
    assert port(layer, norm).equivalent
    assert norm.running_mean.tolist() == [5.0, -2.0, 0.5]
    assert port(torch_norm(), layer).input_shape == (4, 3, 5, 6)


def test_scale_and_shift_that_are_missing_are_ones_and_zeros():
    layer, norm = norm_layer(center=False, scale=False), torch_norm()
    report = port(layer, norm)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1.0] * 3, [0.0] * 3)
    assert "weight is 1 throughout" in all_notes(report)
    assert report.equivalent
    assert port(torch_norm(affine=False), norm_layer()).equivalent


def test_scale_and_shift_without_a_place_are_refused_unless_they_do_nothing():
    for lacking in ({"center": False}, {"scale": False}):
        layer = norm_layer(**lacking)
        before = keras_bytes(layer)
        with pytest.raises(ConfigError, match=r"expected a (weight|bias) in bn_layer\S*, which has none"):
            port(torch_norm(), layer)
        assert keras_bytes(layer) == before
    with pytest.raises(ConfigError, match="expected a weight in BatchNorm2d"):
        port(norm_layer(), torch_norm(affine=False))
    plain = torch_norm()
    nn.init.ones_(plain.weight)
    nn.init.zeros_(plain.bias)
    assert port(plain, norm_layer(center=False, scale=False)).equivalent


def test_the_plain_average_of_pytorch_leaves_the_momentum_of_keras_and_says_so():
    layer = norm_layer(momentum=0.95)
    report = port(torch_norm(momentum=None), layer)
    assert layer.momentum == 0.95
    assert "momentum None, the plain average, has no counterpart: Keras's stays 0.95" in all_notes(report)


def test_what_was_tracked_without_a_counter_in_keras_is_said():
    norm = torch_norm()
    assert "num_batches_tracked is left as it is" in all_notes(port(norm_layer(), norm))
    assert norm.num_batches_tracked == 7
    assert "num_batches_tracked is left behind" in all_notes(port(norm, norm_layer()))


@pytest.mark.parametrize("kind", [MovingBNLayer, BatchRenormLayer])
def test_the_count_of_batches_is_carried_both_ways(kind):
    layer, norm = norm_layer(kind=kind), torch_norm()
    assert "Batches counted: 7" in all_notes(port(norm, layer))
    assert int(layer.num_updates) == 7
    layer.num_updates.assign(11)
    port(layer, norm)
    assert norm.num_batches_tracked == 11


def test_statistics_that_were_loaded_uncounted_survive_the_next_batch_in_keras():
    layer, norm = norm_layer(kind=BatchRenormLayer, momentum=0.5), torch_norm(momentum=0.25)
    norm.num_batches_tracked.zero_()
    report = port(norm, layer)
    assert "num_updates is 58" in all_notes(report)  # 0.75^58 < 2^-24 <= 0.75^57
    x = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype("float32")
    layer(x, training=True)
    expected = 0.75 * np.array([3.0, -1.0, 0.5]) + 0.25 * x.mean((0, 1, 2))
    assert to_numpy(layer.moving_mean) == pytest.approx(expected, rel=1e-6)


def test_a_counter_starts_at_zero_where_the_statistics_do():
    layer = norm_layer(kind=BatchRenormLayer)
    port(nn.BatchNorm2d(3), layer)
    assert int(layer.num_updates) == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (RangeBNLayer, "normalizes by the range of the batch"),
        (MovingBNLayer, "normalizes by the moving statistics"),
        (BatchRenormLayer, "corrects the batch's statistics"),
    ],
)
def test_layers_that_train_otherwise_are_equal_in_inference_and_say_so(kind, said):
    report = port(norm_layer(kind=kind), nn.BatchNorm2d(3))
    assert report.equivalent
    assert said in all_notes(report)
    assert "inference is equal, training is not" in all_notes(report)
    assert said not in all_notes(port(norm_layer(), nn.BatchNorm2d(3)))


def test_the_renorm_of_keras_itself_gets_all_of_its_statistics():
    layer = norm_layer(kind=layers.BatchNormalization, renorm=True, epsilon=0.5)
    norm = torch_norm(eps=0.25)
    assert port(norm, layer).equivalent
    std = np.sqrt(np.array([9.0, 0.5, 2.0]) + 0.25)
    assert to_numpy(layer.renorm_mean) == pytest.approx([3.0, -1.0, 0.5])
    for weight in (layer.moving_stddev, layer.renorm_stddev):
        assert to_numpy(weight) == pytest.approx(std, rel=1e-6)
    layer(np.zeros((2, 6, 5, 3), "float32"), training=True)  # moves the variance as it should: 1 % towards 0
    assert to_numpy(layer.moving_variance) == pytest.approx([9.0, 0.5, 2.0], rel=0.2)


def test_a_frozen_layer_is_ported_and_said_to_be_frozen():
    layer = norm_layer()
    layer.trainable = False
    assert "only after `.eval()`" in all_notes(port(layer, nn.BatchNorm2d(3)))


def test_a_fused_activation_is_named_and_seen_in_the_outputs():
    report = port(norm_layer(), BatchNorm(3, activation="relu"))
    assert "applies relu itself" in all_notes(report)
    assert not report.equivalent
    assert report.max_difference > 0.1
    assert "another activation" in report.notes[-1]


def test_variances_are_converted_only_where_the_mapping_names_a_layer():
    model, network = trained_keras(), untrained_torch()
    report = port(model, network, values_per_channel={"norm2": 17})
    stored = to_numpy(model.layers[3].moving_variance)
    assert network.norm1.running_var.numpy().tolist() == to_numpy(model.layers[1].moving_variance).tolist()
    assert network.norm2.running_var.numpy() == pytest.approx(stored * 17 / 16, rel=1e-6)
    assert [("multiplied" in " ".join(layer.notes)) for layer in report.layers] == [False, False, False, True, False]
    assert not report.equivalent  # 6 % of a variance is seen
    assert "were converted for training on, which alone makes the outputs differ" in all_notes(report)


def test_variances_are_converted_to_keras_by_the_inverse():
    layer = norm_layer()
    report = port(torch_norm(), layer, values_per_channel=5)
    assert to_numpy(layer.moving_variance) == pytest.approx(np.array([9.0, 0.5, 2.0]) * 4 / 5, rel=1e-6)
    assert "multiplied by 0.8, unbiased to biased" in all_notes(report)


def test_a_variance_from_the_range_is_not_converted():
    norm = nn.BatchNorm2d(3)
    report = port(norm_layer(kind=RangeBNLayer), norm, values_per_channel=5)
    assert norm.running_var.tolist() == [4.0, 0.25, 1.5]
    assert "copied in spite of values_per_channel" in all_notes(report)
