"""BatchNorm on batches that are not numbers, far from zero, constant, huge or tiny."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from tests.harness import (
    CHANNELS,
    SHAPES,
    assert_equal_to,
    bytes_of,
    images,
    to_numpy,
    train,
)
from tests.oracle.batch_norm import forward

IMAGE = SHAPES[2]


@pytest.mark.parametrize("momentum", [0.1, 1.0, None], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_batch_not_finite_in_one_channel_moves_no_running_statistic_and_is_counted(bad, momentum):
    layer = BatchNorm(CHANNELS, momentum=momentum)
    layer(images(IMAGE))
    before = bytes_of(layer)
    x = images(IMAGE, seed=1)
    x[1, 2, 0, 0] = bad
    y = layer(x)
    after = bytes_of(layer)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert after[name] == before[name]
    assert layer.num_batches_skipped.item() == 1
    assert y[:, 2].isnan().any()  # a gradient scaler must see it
    assert y[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
def test_the_next_finite_batch_updates_as_if_the_bad_one_had_not_been(momentum):
    disturbed, undisturbed = BatchNorm(CHANNELS, momentum=momentum), BatchNorm(CHANNELS, momentum=momentum)
    bad = images(IMAGE)
    bad[0, 0] = torch.nan
    for layer in (disturbed, undisturbed):
        layer(images(IMAGE, seed=1))
        if layer is disturbed:
            layer(bad)
        layer(images(IMAGE, seed=2))
    ours, wanted = bytes_of(disturbed), bytes_of(undisturbed)
    skipped = {
        name: np.frombuffer(state.pop("num_batches_skipped"), np.int64)[0]
        for name, state in (("disturbed", ours), ("undisturbed", wanted))
    }
    assert ours == wanted
    assert skipped == {"disturbed": 1, "undisturbed": 0}


def test_resetting_the_running_statistics_resets_the_count_of_skipped_batches():
    layer = BatchNorm(CHANNELS)
    layer(torch.full(IMAGE, torch.nan))
    layer.reset_running_stats()
    assert layer.num_batches_skipped.item() == 0


def test_a_layer_built_on_the_meta_device_and_given_memory_starts_like_any_other():
    # to_empty leaves whatever was in memory in every buffer, also in those outside the state_dict.
    layer = BatchNorm(CHANNELS, device="meta")
    assert all(value.is_meta for value in (*layer.parameters(), *layer.buffers()))
    layer.to_empty(device="cpu")
    layer.num_batches_skipped.fill_(123456789)
    layer.reset_parameters()
    assert bytes_of(layer) == bytes_of(BatchNorm(CHANNELS))


def test_output_and_variance_far_from_zero_are_no_worse_than_torchs():
    # Mean 1e4, spread 1: float32 leaves 1e-3 between neighbours, and torch sums in float64.
    for shape, torch_layer in [((64, 3, 7, 7), nn.BatchNorm2d), ((8, 3, 64, 64), nn.BatchNorm2d)]:
        x = torch.randn(shape) + 1e4
        exact = forward(to_numpy(x))
        unbiased = exact.variance * exact.count / (exact.count - 1)
        errors = {}
        for name, layer in (("ours", BatchNorm(3, momentum=1.0)), ("torchs", torch_layer(3, momentum=1.0))):
            y = layer(x)
            errors[name] = np.abs(to_numpy(y) - exact.y).max()
            errors[name + " variance"] = np.abs(to_numpy(layer.running_var) - unbiased).max()
        assert errors["ours"] <= 1.25 * errors["torchs"]
        assert errors["ours variance"] <= max(errors["torchs variance"], 4 * torch.finfo().eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_constant_channel_gives_the_bias_and_finite_gradients(dtype):
    layer = BatchNorm(2, dtype=dtype)
    nn.init.constant_(layer.bias, 0.5)
    x = images((4, 2, 6, 6), dtype)
    x[:, 1] = 1000.1  # no binary fraction, so its mean is not exact by luck
    y, grad_x = train(layer, x, torch.randn(x.shape, dtype=dtype))
    # x and its mean, each scaled by 1/sqrt(eps), are subtracted: what is left is one rounding of that size.
    assert_equal_to(y[:, 1], torch.full((4, 6, 6), 0.5), 1000.1 / 1e-5**0.5 * torch.finfo(dtype).eps / 0.5)
    assert layer.batch_moments.variance[1] == 0
    assert grad_x.isfinite().all()


def test_values_of_1e30_are_normalized_like_any_in_float64():
    x = images(IMAGE, torch.float64) * 1e30
    assert_equal_to(BatchNorm(CHANNELS, dtype=torch.float64)(x), forward(to_numpy(x)).y, 1e-10)


def test_values_of_1e30_whose_variance_float32_cannot_hold_leave_the_running_statistics_alone():
    layer, torchs = BatchNorm(CHANNELS), nn.BatchNorm2d(CHANNELS)
    x = torch.randn(IMAGE) * 1e30
    assert torch.equal(layer(x), torchs(x))  # 0: one over an infinite spread
    assert torchs.running_var.isinf().all()  # torch's layer is lost from here on
    assert bytes_of(layer)["running_var"] == bytes_of(BatchNorm(CHANNELS))["running_var"]
    assert layer.num_batches_skipped.item() == 1


def test_tiny_values_are_held_down_by_eps_as_in_the_oracle():
    x = images(IMAGE) * 1e-20
    assert_equal_to(BatchNorm(CHANNELS)(x), forward(to_numpy(x)).y, 1e-5)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None], ids=str)
def test_a_variance_that_float16_cannot_hold_leaves_half_precision_statistics_alone_and_is_counted(momentum):
    # Variance 4e6: float32 moments are finite, but the largest float16 is 65504 and the buffer became infinite.
    layer = BatchNorm(CHANNELS, momentum=momentum, dtype=torch.float16)
    layer(images(IMAGE, torch.float16))
    before = bytes_of(layer)
    x = images(IMAGE, torch.float16, seed=1)
    x[:, 2] *= 2000 / x[:, 2].float().std().item()
    y = layer(x)
    after = bytes_of(layer)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert after[name] == before[name]
    assert layer.num_batches_skipped.item() == 1
    assert layer.batch_moments.variance[2] > torch.finfo(torch.float16).max / 0.1
    assert y.isfinite().all()


def test_after_a_skipped_overflow_the_next_batch_counts_as_the_next_one_tracked():
    disturbed, undisturbed = (BatchNorm(CHANNELS, momentum=None, dtype=torch.float16) for _ in range(2))
    for layer in (disturbed, undisturbed):
        layer(images(IMAGE, torch.float16, seed=1))
        if layer is disturbed:
            layer((images(IMAGE) * 2000).half())
        layer(images(IMAGE, torch.float16, seed=2))
    assert torch.equal(disturbed.running_var, undisturbed.running_var)
    assert torch.equal(disturbed.running_mean, undisturbed.running_mean)
    assert [layer.num_batches_tracked.item() for layer in (disturbed, undisturbed)] == [2, 2]
    assert [layer.num_batches_skipped.item() for layer in (disturbed, undisturbed)] == [1, 0]
