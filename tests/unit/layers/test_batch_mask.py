"""BatchNorm with a mask: what it leaves out is normalized but not counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from tests.harness import (
    CHANNELS,
    SHAPES,
    assert_equal_to,
    images,
    to_numpy,
)
from tests.oracle.batch_norm import BatchNormOracle

IMAGE = SHAPES[2]


def masks(shape, with_channels):
    drawn = torch.rand(shape if with_channels else (shape[0], *shape[2:])) < 0.7
    drawn[:2] = True  # at least two values in every channel
    return drawn


WITH_AND_WITHOUT_CHANNELS = pytest.mark.parametrize("with_channels", [True, False], ids=["channels", "no channels"])


@WITH_AND_WITHOUT_CHANNELS
def test_a_mask_of_ones_is_no_mask(with_channels):
    layers = [BatchNorm(CHANNELS, activation="relu") for _ in range(2)]
    x, grad = images(IMAGE), torch.randn(IMAGE)
    ones = torch.ones(IMAGE if with_channels else (4, 5, 6), dtype=torch.bool)
    results = []
    for layer, mask in zip(layers, (None, ones), strict=True):
        results.append(train_masked(layer, x, mask, grad))
    for masked, plain in zip(results[1], results[0], strict=True):
        assert_equal_to(masked, plain, 1e-6)
    assert_equal_to(layers[1].running_mean, layers[0].running_mean, 1e-6)
    assert_equal_to(layers[1].running_var, layers[0].running_var, 1e-6)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@WITH_AND_WITHOUT_CHANNELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_output_gradients_and_running_statistics_are_the_oracles(shape, with_channels, activation):
    layer = BatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    oracle = BatchNormOracle(CHANNELS, activation=activation)
    oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    mask = masks(shape, with_channels)
    y, grad_x = train_masked(layer, x, mask, grad)
    assert_equal_to(y, oracle.train(to_numpy(x), mask.numpy()), 1e-10)
    expected = oracle.backward(to_numpy(grad))
    for ours, wanted in zip((grad_x, layer.weight.grad, layer.bias.grad), expected, strict=True):
        assert_equal_to(ours, wanted, 1e-10)
    for name, wanted in oracle.buffers().items():
        assert_equal_to(getattr(layer, name), wanted, 1e-10)


def train_masked(layer, x, mask, grad):
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x, mask)
    y.backward(grad)
    return y.detach(), x.grad


@WITH_AND_WITHOUT_CHANNELS
def test_masked_gradients_are_the_finite_differences_to_second_order(with_channels):
    layer = BatchNorm(2, activation="leaky_relu", dtype=torch.float64)
    mask = masks((3, 2, 3), with_channels)
    mask[2] = False
    x = images((3, 2, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: layer(v, mask), x)
    assert torch.autograd.gradgradcheck(lambda v: layer(v, mask), x)


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nan_and_infinity_outside_the_mask_do_not_reach_what_is_kept(activation, garbage, create_graph):
    mask = masks(IMAGE, with_channels=False)
    kept = mask.unsqueeze(1).expand(IMAGE)
    clean = images(IMAGE, torch.float64).masked_fill(~kept, 0)
    results = []
    for x in (clean, clean.masked_fill(~kept, garbage)):
        layer = BatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
        x = x.requires_grad_()
        y = layer(x, mask)
        loss = y[kept].square().sum()  # as a masked loss does
        grads = torch.autograd.grad(loss, (x, layer.weight, layer.bias), create_graph=create_graph)
        results.append((y[kept], grads[0][kept], *grads[1:], layer.running_mean, layer.running_var))
    for with_garbage, without in zip(results[1], results[0], strict=True):
        assert_equal_to(with_garbage, without, 1e-12)


def test_evaluation_needs_no_mask_and_does_not_change_with_one():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE))
    layer.eval()
    x = images(IMAGE, seed=1)
    assert torch.equal(layer(x, masks(IMAGE, with_channels=False)), layer(x))
