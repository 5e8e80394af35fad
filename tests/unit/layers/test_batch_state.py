"""What a BatchNorm holds: types, devices, memory, the moments of the last batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm, Moments
from tests.harness import (
    CHANNELS,
    SHAPES,
    assert_equal_to,
    images,
    to_numpy,
)
from tests.oracle.batch_norm import BatchNormOracle

IMAGE = SHAPES[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parameters_and_buffers_have_the_type_asked_for(dtype):
    layer = BatchNorm(CHANNELS, dtype=dtype)
    assert {value.dtype for value in (*layer.parameters(), layer.running_mean, layer.running_var)} == {dtype}
    assert layer.num_batches_tracked.dtype == layer.num_batches_skipped.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_buffers_follow_torchs_to_one_rounding(dtype):
    ours, theirs = BatchNorm(CHANNELS).to(dtype), nn.BatchNorm2d(CHANNELS).to(dtype)
    step = torch.finfo(dtype).eps
    for seed in range(3):
        x = images(IMAGE, dtype, seed=seed)
        assert_equal_to(ours(x), theirs(x), 2 * step)
    assert ours.running_var.dtype == dtype
    assert_equal_to(ours.running_mean, theirs.running_mean, 2 * step)
    assert_equal_to(ours.running_var, theirs.running_var, 2 * step)
    assert_equal_to(ours.eval()(x), theirs.eval()(x), 2 * step)


@pytest.mark.parametrize("parameters", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("values", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_whatever_types_train_together_also_evaluate_together(values, parameters):
    # Regression: torch's kernel refuses mixed types, so that such a network trained and then failed in validation.
    layer = BatchNorm(CHANNELS, momentum=1.0, dtype=parameters)
    oracle = BatchNormOracle(CHANNELS, momentum=1.0)
    x = images(IMAGE, values)
    y = layer(x)
    oracle.train(to_numpy(x))
    oracle.running_mean, oracle.running_var = to_numpy(layer.running_mean), to_numpy(layer.running_var)
    evaluated = layer.eval()(x)
    assert y.dtype == evaluated.dtype == values
    assert_equal_to(evaluated, oracle.evaluate(to_numpy(x)), max(1e-6, torch.finfo(values).eps))


def test_the_backward_pass_keeps_the_input_and_vectors_alone():
    kept = []
    layer = BatchNorm(CHANNELS, activation="relu")
    x = images((4, CHANNELS, 8, 8)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert [t.data_ptr() for t in kept if t.numel() > CHANNELS] == [x.data_ptr()]


def test_batch_moments_hold_mean_variance_and_range_of_the_last_batch():
    layer = BatchNorm(CHANNELS, dtype=torch.float64)
    assert layer.batch_moments is None
    layer(images(IMAGE, torch.float64))
    x = images(IMAGE, torch.float64, seed=1)
    layer(x)
    flat = to_numpy(x).transpose(1, 0, 2, 3).reshape(CHANNELS, -1)
    assert isinstance(layer.batch_moments, Moments)
    assert_equal_to(layer.batch_moments.mean, flat.mean(1), 1e-12)
    assert_equal_to(layer.batch_moments.variance, flat.var(1), 1e-12)
    assert_equal_to(layer.batch_moments.range, np.ptp(flat, 1), 1e-12)


def test_batch_moments_keep_no_graph_alive():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE).requires_grad_())
    assert not any(field.requires_grad for field in layer.batch_moments.fields())


def test_batch_moments_survive_pickling():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE))
    assert torch.equal(pickle.loads(pickle.dumps(layer)).batch_moments.m2, layer.batch_moments.m2)


def test_the_printed_layer_names_its_activation():
    assert repr(BatchNorm(3, activation="relu")).endswith("track_running_stats=True, activation='relu')")
    assert "activation" not in repr(BatchNorm(3))
