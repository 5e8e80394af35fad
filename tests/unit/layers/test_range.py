"""RangeBatchNorm passes the suite of every layer, and gives Gaussian values unit variance at any count."""

from __future__ import annotations

import math

import pytest
import torch

from mednorm import BatchNorm, RangeBatchNorm
from mednorm.reference import range_over_std
from tests.harness import *  # noqa: F403
from tests.harness import CHANNELS, LayerSpec, assert_equal_to, images, to_numpy, train
from tests.oracle.family import RangeBatchNormOracle

SPECS = [
    LayerSpec("relu", RangeBatchNorm, RangeBatchNormOracle, {"activation": "relu"}),
    LayerSpec(
        "cumulative, without parameters",
        RangeBatchNorm,
        RangeBatchNormOracle,
        {"momentum": None, "affine": False, "eps": 1e-3},
        torch_options={"momentum": None, "affine": False, "eps": 1e-3},
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


@pytest.mark.parametrize(("count", "channels"), [(2, 100_000), (10, 20_000), (1000, 500), (1_000_000, 8)])
def test_the_scale_of_gaussian_values_is_that_of_batch_normalization(count, channels):
    # C(n) is made so that range / C(n) and the biased deviation have one mean; both are seen `channels` times.
    x = 3 * torch.randn(count, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = RangeBatchNorm(channels, eps=0.0, momentum=1.0, dtype=torch.float64)
    layer(x)
    by_range = (layer.running_var * (count - 1) / count).sqrt()
    difference = by_range - x.std(0, correction=0)
    if count == 2:
        assert_equal_to(by_range, x.std(0, correction=0), 1e-12)  # of two values, half the range is the deviation
    assert abs(difference.mean()) <= 4 * difference.std() / math.sqrt(channels) + 1e-12


@pytest.mark.parametrize(("count", "channels"), [(10, 20_000), (1000, 200)])
def test_gaussian_values_come_out_with_a_deviation_of_one_on_average(count, channels):
    x = torch.randn(count, channels, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layer = RangeBatchNorm(channels, eps=0.0, affine=False, dtype=torch.float64)
    spread = layer(x).std(0, correction=0)
    assert spread.mean().item() == pytest.approx(1, abs=0.02)  # 1 / range is convex, so a little above


def test_the_running_variance_follows_the_ranges_and_evaluation_uses_it():
    layer = RangeBatchNorm(1, momentum=0.25, eps=0.0, dtype=torch.float64)
    for extent in (4.0, 8.0):
        layer(torch.tensor([[0.0], [extent], [extent / 4], [extent / 2]], dtype=torch.float64))
    four = [(extent / range_over_std(4)) ** 2 * 4 / 3 for extent in (4.0, 8.0)]
    wanted = 0.75 * (0.75 * 1 + 0.25 * four[0]) + 0.25 * four[1]
    assert layer.running_var.item() == pytest.approx(wanted, rel=1e-12)
    x = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    assert_equal_to(layer.eval()(x), (x - layer.running_mean) / math.sqrt(wanted), 1e-12)


def test_only_the_extremes_and_the_mean_carry_the_gradient_of_the_statistics():
    layer = RangeBatchNorm(1, eps=0.0, affine=False, dtype=torch.float64)
    x = torch.tensor([[0.0], [1.0], [2.0], [6.0]], dtype=torch.float64)
    _, grad_x = train(layer, x, torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64))
    # y1 = C·(x1 − mean)/(max − min); the range is 6, the mean 2.25
    constant, of_mean, of_range = range_over_std(4) / 6, -0.25, -(1 - 2.25) / 6
    wanted = [of_mean - of_range, 1 + of_mean, of_mean, of_mean + of_range]
    assert_equal_to(grad_x, constant * torch.tensor(wanted, dtype=torch.float64)[:, None], 1e-12)


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
def test_values_that_are_equally_extreme_share_its_gradient(create_graph):
    layer, oracle = RangeBatchNorm(1, dtype=torch.float64), RangeBatchNormOracle(1)
    x = torch.tensor([[-1.0], [3.0], [3.0], [0.5], [3.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(6, 1, dtype=torch.float64)
    oracle.train(to_numpy(x))
    (grad_x,) = torch.autograd.grad(layer(x), x, grad, create_graph=create_graph)
    assert_equal_to(grad_x, oracle.backward(to_numpy(grad))[0], 1e-12)
    shares = grad_x - grad * range_over_std(6) / math.sqrt(16 + 1e-5 * range_over_std(6) ** 2)
    assert_equal_to(shares[1], shares[2], 1e-12)
    assert_equal_to(shares[0], shares[5], 1e-12)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_mask_with_another_count_in_every_channel_uses_each_channels_constant(activation):
    shape = (3, CHANNELS, 4, 5)
    layer = RangeBatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
    oracle = RangeBatchNormOracle(CHANNELS, activation=activation)
    mask = torch.zeros(shape, dtype=torch.bool)
    for channel, kept in enumerate((2, 7, 31, 60)):
        mask[:, channel] = (torch.randperm(60) < kept).view(3, 4, 5)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    y, grad_x = train(layer, x, grad, mask=mask)
    assert_equal_to(y, oracle.train(to_numpy(x), mask.numpy()), 1e-10)
    assert_equal_to(grad_x, oracle.backward(to_numpy(grad))[0], 1e-10)
    assert_equal_to(layer.running_var, oracle.running_var, 1e-12)


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
def test_a_constant_channel_comes_out_as_zero_with_a_finite_gradient(create_graph):
    layer = RangeBatchNorm(1, affine=False)
    x = torch.full((4, 1, 3), 5.0, requires_grad=True)
    y = layer(x)
    (grad_x,) = torch.autograd.grad(y, x, torch.randn(4, 1, 3), create_graph=create_graph)
    assert torch.equal(y, torch.zeros_like(y))
    assert grad_x.isfinite().all()


def test_an_outlier_that_a_mask_leaves_out_does_not_set_the_scale():
    x = images((4, CHANNELS, 6), torch.float64)
    x[0, :, 0] = 1e6
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 0] = False
    layer = RangeBatchNorm(CHANNELS, momentum=1.0, dtype=torch.float64)
    layer(x, mask)
    kept = x.transpose(0, 1).flatten(1)[:, 1:]
    extent = kept.amax(1) - kept.amin(1)
    assert_equal_to(layer.running_var, (extent / range_over_std(23)) ** 2 * 23 / 22, 1e-12)


def test_batch_moments_keep_the_batchs_own_deviations():
    ranged, plain = RangeBatchNorm(CHANNELS), BatchNorm(CHANNELS)
    x = images((4, CHANNELS, 6))
    ranged(x), plain(x)
    assert torch.equal(ranged.batch_moments.m2, plain.batch_moments.m2)
