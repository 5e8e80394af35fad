"""normalize: the operation itself, with moments from anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mednorm import Moments, normalize
from mednorm.errors import ConfigError, ShapeError
from mednorm.functional import activation_slope
from tests.harness import CHANNELS, SHAPES, TOLERANCE, assert_equal_to, images, to_numpy
from tests.oracle import batch_norm as oracle

IMAGE = SHAPES[2]
WEIGHT = torch.tensor([1.5, 0.5, -0.75, 1.0], dtype=torch.float64)
BIAS = torch.tensor([0.25, -0.5, 0.125, 1.0], dtype=torch.float64)
CHOICES = {"neither": (None, None), "weight": (WEIGHT, None), "bias": (None, BIAS), "both": (WEIGHT, BIAS)}


def gradients(y, grad, *sources):
    return torch.autograd.grad(y, sources, grad)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("choice", list(CHOICES))
def test_weight_and_bias_may_each_be_left_out(choice, activation):
    weight, bias = (None if v is None else v.clone().requires_grad_() for v in CHOICES[choice])
    x, grad = images(IMAGE, torch.float64).requires_grad_(), torch.randn(IMAGE, dtype=torch.float64)
    y = normalize(x, Moments.of(x), weight, bias, eps=1e-2, activation=activation, negative_slope=0.3)
    given = [None if v is None else to_numpy(v) for v in (weight, bias)]
    done = oracle.forward(to_numpy(x), *given, eps=1e-2, activation=activation, negative_slope=0.3)
    assert_equal_to(y, done.y, 1e-12)
    expected = oracle.backward(done, to_numpy(grad))
    asked = [(x, expected[0]), (weight, expected[1]), (bias, expected[2])]
    asked = [(source, wanted) for source, wanted in asked if source is not None]
    for ours, (_, wanted) in zip(gradients(y, grad, *(source for source, _ in asked)), asked, strict=True):
        assert_equal_to(ours, wanted, 1e-12)


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_the_gradient_of_each_source_alone_is_the_same_as_with_the_others(needed, create_graph):
    def sources(alone):
        tensors = {"x": images(IMAGE, torch.float64), "weight": WEIGHT.clone(), "bias": BIAS.clone()}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name == needed or not alone)
        return tensors

    results = []
    for alone in (True, False):
        given = sources(alone)
        y = normalize(given["x"], Moments.of(given["x"]), given["weight"], given["bias"], activation="leaky_relu")
        results.append(torch.autograd.grad(y.sin().sum(), given[needed], create_graph=create_graph)[0])
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_gradients_kept_for_differentiation_are_the_oracles(masked, activation):
    x, grad = images(IMAGE, torch.float64).requires_grad_(), torch.randn(IMAGE, dtype=torch.float64)
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    mask = torch.rand(IMAGE) < 0.6 if masked else None
    y = normalize(x, Moments.of(x, mask=mask), weight, bias, eps=1e-2, mask=mask, activation=activation)
    done = oracle.forward(
        to_numpy(x),
        to_numpy(weight),
        to_numpy(bias),
        eps=1e-2,
        mask=None if mask is None else mask.numpy(),
        activation=activation,
    )
    found = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
    for ours, wanted in zip(found, oracle.backward(done, to_numpy(grad)), strict=True):
        assert_equal_to(ours, wanted, 1e-12)


def test_moments_in_float64_make_the_arithmetic_float64_and_keep_the_type_of_x():
    # Mean 1e4, spread 1: in float32 the error is near 1e-3; in float64 only the result is rounded.
    x = torch.randn(IMAGE) + 1e4
    y = normalize(x, Moments.of(x, dtype=torch.float64))
    assert y.dtype == torch.float32
    assert_equal_to(y, oracle.forward(to_numpy(x)).y, 1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once_at_the_end(dtype):
    x = images(IMAGE, dtype)
    exact = oracle.forward(to_numpy(x)).y
    y = normalize(x, Moments.of(x))
    assert y.dtype == dtype
    assert_equal_to(y, to_numpy(torch.tensor(exact).to(dtype)), torch.finfo(dtype).eps / 2)


def test_parameters_of_another_type_get_gradients_of_their_own_type():
    x = images(IMAGE).requires_grad_()
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.bfloat16().requires_grad_()
    y = normalize(x, Moments.of(x), weight, bias)
    grad = torch.randn(IMAGE)
    found = gradients(y, grad, x, weight, bias)
    assert [g.dtype for g in found] == [torch.float32, torch.float64, torch.bfloat16]
    expected = oracle.backward(oracle.forward(to_numpy(x), to_numpy(weight), to_numpy(bias)), to_numpy(grad))
    tolerances = (TOLERANCE[torch.float32], TOLERANCE[torch.float32], TOLERANCE[torch.bfloat16])
    for ours, wanted, tolerance in zip(found, expected, tolerances, strict=True):
        assert_equal_to(ours, wanted, tolerance)


def test_the_mask_keeps_statistics_gradient_from_the_values_it_leaves_out():
    x = images(IMAGE, torch.float64).requires_grad_()
    mask = torch.ones(IMAGE, dtype=torch.bool)
    mask[1] = False
    y = normalize(x, Moments.of(x, mask=mask), mask=mask)
    (grad,) = torch.autograd.grad(y[0].sin().sum(), x)  # only the first image is looked at
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))
    assert grad[2].abs().min() > 0


def test_a_mask_in_any_fitting_shape_gives_the_same_gradient():
    x = images(IMAGE, torch.float64).requires_grad_()
    row = torch.rand(1, 1, 1, IMAGE[-1]) < 0.5
    found = []
    for mask in (row, row.expand(IMAGE), row.expand(IMAGE)[:, 0]):
        found.append(torch.autograd.grad(normalize(x, Moments.of(x, mask=mask), mask=mask).sin().sum(), x)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_gradient_penalty_of_a_masked_rectified_normalization_has_the_finite_differences():
    x = images((3, 2, 2, 3), torch.float64).requires_grad_()
    mask = torch.rand(3, 2, 3) < 0.7
    mask[0] = True
    weight = WEIGHT[:2].clone().requires_grad_()

    def penalty(x, weight):
        y = normalize(x, Moments.of(x, mask=mask), weight, mask=mask, activation="leaky_relu")
        return torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0].square().sum()

    assert torch.autograd.gradcheck(penalty, (x, weight))


def test_functional_differentiation_gives_the_ordinary_gradient():
    x, weight = images(IMAGE, torch.float64), WEIGHT.clone()

    def loss(weight):
        return normalize(x, Moments.of(x), weight, activation="relu").sin().sum()

    weight.requires_grad_()
    (expected,) = torch.autograd.grad(loss(weight), weight)
    assert_equal_to(torch.func.grad(loss)(weight.detach()), expected, 1e-12)


def test_a_change_of_x_after_the_forward_pass_is_refused_not_used():
    x = images(IMAGE, torch.float64).requires_grad_()
    hidden = x * 1
    y = normalize(hidden, Moments.of(hidden))
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("activation", "slope"), [(None, None), ("relu", 0.0), ("leaky_relu", 0.2)], ids=["none", "relu", "leaky"]
)
def test_the_slope_below_zero_follows_from_the_activation(activation, slope):
    assert activation_slope(activation, 0.2) == slope


# --- errors say what came ---------------------------------------------------------------------------------------------


def test_an_unknown_activation_is_named():
    x = images(IMAGE)
    with pytest.raises(ConfigError, match=r"got 'gelu'\."):
        normalize(x, Moments.of(x), activation="gelu")


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)], ids=str)
def test_moments_of_another_number_of_channels_are_named_with_the_shape(shape):
    with pytest.raises(ShapeError) as caught:
        normalize(torch.zeros(shape), Moments.of(images(IMAGE)))
    assert f"expected (N, {CHANNELS}, *)" in str(caught.value)
    assert f"got {shape}." in str(caught.value)


def test_per_sample_moments_are_refused_with_their_shape():
    # Regression: with as many images as channels they passed the check and failed in a view.
    x = images((CHANNELS, CHANNELS, 6))
    with pytest.raises(ShapeError, match=rf"shape \(C,\), got \({CHANNELS}, {CHANNELS}\).*\.pooled\(\)"):
        normalize(x, Moments.of(x, per_sample=True))


def test_whole_numbers_are_refused_with_their_type():
    x = torch.randint(0, 9, IMAGE)
    with pytest.raises(ShapeError, match=r"floating-point values, got torch\.int64\. Pass `x\.float\(\)`"):
        normalize(x, Moments.of(x))


def test_a_mask_that_does_not_fit_is_named_with_its_shape():
    x = images(IMAGE)
    with pytest.raises(ShapeError, match=r"got \(4, 5, 7\)"):
        normalize(x, Moments.of(x), mask=torch.ones(4, 5, 7, dtype=torch.bool))


def test_four_numbers_are_normalized_as_by_hand():
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # mean 2.5, variance 1.25
    y = normalize(x, Moments.of(x), eps=0.0)
    assert_equal_to(y, np.array([[-1.5], [-0.5], [0.5], [1.5]]) / 1.25**0.5, 1e-6)
