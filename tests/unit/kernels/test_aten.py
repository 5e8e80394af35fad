"""The loops in PyTorch's own operators, called as `functional` calls them."""

from __future__ import annotations

import pytest
import torch

from mednorm import Moments, kernels
from tests.harness import CHANNELS, SHAPES, assert_equal_to, images, to_numpy
from tests.oracle import batch_norm as oracle

WEIGHT = torch.tensor([1.5, 0.5, -0.75, 1.0], dtype=torch.float64)
BIAS = torch.tensor([0.25, -0.5, 0.125, 1.0], dtype=torch.float64)
NAMES = {None: None, 0.0: "relu", 0.3: "leaky_relu"}


@pytest.mark.parametrize("slope", list(NAMES), ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["fused", "composed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_ways_back_give_the_oracles_gradients(shape, masked, slope):
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) < 0.7 if masked else None
    moments = Moments.of(x, mask=mask)
    done = oracle.forward(
        to_numpy(x),
        to_numpy(WEIGHT),
        to_numpy(BIAS),
        eps=1e-3,
        mask=None if mask is None else mask.numpy(),
        activation=NAMES[slope],
        negative_slope=0.3,
    )
    assert_equal_to(kernels.normalize(x, moments, WEIGHT, BIAS, 1e-3, slope), done.y, 1e-12)
    found = kernels.normalize_backward(grad, x, moments, WEIGHT, BIAS, 1e-3, slope, mask)
    for ours, wanted in zip(found, oracle.backward(done, to_numpy(grad)), strict=True):
        assert_equal_to(ours, wanted, 1e-12)


def test_the_fused_way_back_equals_the_composed_one():
    x, grad = images(SHAPES[3], torch.float64), torch.randn(SHAPES[3], dtype=torch.float64)
    arguments = (grad, x, Moments.of(x), WEIGHT, BIAS, 1e-5, 0.0)
    everything = torch.ones(x.shape, dtype=torch.bool)
    fused, composed = (kernels.normalize_backward(*arguments, mask) for mask in (None, everything))
    for ours, wanted in zip(fused, composed, strict=True):
        assert_equal_to(ours, wanted, 1e-12)


@pytest.mark.parametrize("masked", [False, True], ids=["fused", "composed"])
def test_neither_input_nor_gradient_is_written_to(masked):
    x, grad = images(SHAPES[2]), torch.randn(SHAPES[2])
    mask = torch.rand(x.shape) < 0.7 if masked else None
    before = x.clone(), grad.clone()
    moments = Moments.of(x, mask=mask)
    weight, bias = WEIGHT.float(), BIAS.float()
    kernels.normalize(x, moments, weight, bias, 1e-5, 0.3)
    kernels.normalize_backward(grad, x, moments, weight, bias, 1e-5, 0.3, mask)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])


def test_relu_cuts_minus_infinity_to_zero_and_leaky_relu_keeps_it():
    values = torch.tensor([-torch.inf, -2.0, 0.0, 3.0])
    assert kernels.activate_(values.clone(), 0.0).tolist() == [0, 0, 0, 3]
    assert kernels.activate_(values.clone(), 0.5).tolist() == [-torch.inf, -1, 0, 3]
    assert torch.equal(kernels.activate_(values.clone(), None), values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_vector_over_channels_broadcasts_along_axis_one(shape):
    vector = torch.arange(float(CHANNELS))
    spread = kernels.per_channel(vector, torch.empty(shape)).expand(shape)
    assert all(torch.equal(spread[:, c], torch.full_like(spread[:, c], c)) for c in range(CHANNELS))
