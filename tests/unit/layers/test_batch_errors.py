"""BatchNorm's errors name the value that came."""

from __future__ import annotations

import pytest
import torch

from mednorm import BatchNorm
from mednorm.errors import ConfigError, ShapeError
from tests.harness import (
    CHANNELS,
    SHAPES,
    bytes_of,
    images,
)

IMAGE = SHAPES[2]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_wrong_number_of_channels_is_named_with_the_shape_that_came(training):
    layer = BatchNorm(64).train(training)
    with pytest.raises(ShapeError) as caught:
        layer(torch.zeros(2, 32, 8, 8))
    assert str(caught.value) == (
        "BatchNorm(num_features=64): expected 64 channels in dim 1, got 32 (input shape (2, 32, 8, 8)). "
        "Build it with num_features=32."
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_input_without_batch_axis_is_named_with_its_shape(training):
    with pytest.raises(
        ShapeError, match=r"expected 3 channels in dim 1, got shape \(3,\)\. Add the missing batch axis"
    ):
        BatchNorm(3).train(training)(torch.zeros(3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_whole_numbers_are_refused_with_their_type(training):
    # Regression: training rounded the normalized values to whole numbers without a word.
    with pytest.raises(ShapeError, match=r"BatchNorm\(num_features=3\): expected floating-point.*got torch\.int16"):
        BatchNorm(3).train(training)(torch.zeros(4, 3, dtype=torch.int16))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_training_with_the_count_and_shape(shape):
    with pytest.raises(ShapeError) as caught:
        BatchNorm(3)(torch.zeros(shape))
    assert "at least 2 values per channel to take statistics of, got 1" in str(caught.value)
    assert f"(input shape {shape})" in str(caught.value)


def test_one_value_per_channel_is_fine_in_evaluation():
    assert torch.equal(BatchNorm(3, eps=0.0).eval()(torch.ones(1, 3)), torch.ones(1, 3))


def test_a_refused_batch_moves_nothing():
    layer = BatchNorm(3)
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match="got 1 "):
        layer(torch.ones(1, 3))
    assert bytes_of(layer) == before
    assert layer.batch_moments is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_mask_that_is_not_boolean_is_named_with_its_type(dtype):
    with pytest.raises(ShapeError, match=rf"mask: expected a boolean tensor, got {dtype}"):
        BatchNorm(CHANNELS)(images(IMAGE), torch.ones(IMAGE, dtype=dtype))


@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 3, 5, 6), (5, 6), (4, CHANNELS, 5, 6, 1)], ids=str)
def test_a_mask_that_does_not_fit_is_named_with_its_shape_and_the_inputs(shape):
    with pytest.raises(ShapeError) as caught:
        BatchNorm(CHANNELS)(images(IMAGE), torch.ones(shape, dtype=torch.bool))
    assert f"got {shape}" in str(caught.value)
    assert f"fits the input {IMAGE}" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_mask_that_keeps_too_little_of_one_channel_is_refused_with_the_count(kept):
    mask = torch.ones(IMAGE, dtype=torch.bool)
    mask[:, 2] = False
    mask[:kept, 2, 0, 0] = True
    with pytest.raises(
        ShapeError, match=rf"2 values per channel that the mask keeps to take statistics of, got {kept} "
    ):
        BatchNorm(CHANNELS)(images(IMAGE), mask)


@pytest.mark.parametrize("num_features", [0, -2, "3", 2.5, None], ids=repr)
def test_num_features_that_is_no_positive_whole_number_is_named(num_features):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(num_features)
    assert f"num_features to be a whole number of at least 1, got {num_features!r}." in str(caught.value)


@pytest.mark.parametrize("momentum", [2, -0.1, float("nan")], ids=str)
def test_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, momentum=momentum)
    assert f"momentum in [0, 1] or None, got {momentum!r}." in str(caught.value)


@pytest.mark.parametrize("eps", [-1, float("nan"), float("inf")], ids=str)
def test_eps_out_of_range_is_named(eps):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, eps=eps)
    assert f"got {eps!r}." in str(caught.value)


@pytest.mark.parametrize("activation", ["gelu", "ReLU", ""], ids=repr)
def test_an_unknown_activation_is_named_with_the_known_ones(activation):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, activation=activation)
    assert str(caught.value) == f"activation: expected one of None, 'relu', 'leaky_relu', got {activation!r}."
