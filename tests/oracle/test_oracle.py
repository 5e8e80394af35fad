"""The oracle is itself checked: its gradients by central differences, its statistics by exact arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.oracle import batch_norm, moments

SHAPES = [(6, 3), (4, 3, 5), (3, 2, 3, 4), (2, 2, 2, 3, 2)]
ACTIVATIONS = [None, "relu", "leaky_relu"]
STEP = 1e-6


def central_difference(function, at):
    """Derivative of a scalar function by every entry of an array."""
    slopes = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        forth, back = at.copy(), at.copy()
        forth[index] += STEP
        back[index] -= STEP
        slopes[index] = (function(forth) - function(back)) / (2 * STEP)
    return slopes


def problem(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.5, 2.0, shape)
    return x, rng.normal(1.0, 0.5, shape[1]), rng.normal(0.0, 0.5, shape[1]), rng.normal(size=shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_oracles_gradients_are_the_central_differences_of_its_forward_pass(shape, masked, activation):
    x, weight, bias, grad = problem(shape)
    mask = np.random.default_rng(7).random(shape) < 0.7 if masked else None
    options = {"mask": mask, "activation": activation, "negative_slope": 0.2}

    def loss(x, weight, bias):
        return float((batch_norm.forward(x, weight, bias, **options).y * grad).sum())

    d_x, d_weight, d_bias = batch_norm.backward(batch_norm.forward(x, weight, bias, **options), grad)
    np.testing.assert_allclose(d_x, central_difference(lambda v: loss(v, weight, bias), x), rtol=0, atol=2e-7)
    np.testing.assert_allclose(d_weight, central_difference(lambda v: loss(x, v, bias), weight), rtol=0, atol=2e-7)
    np.testing.assert_allclose(d_bias, central_difference(lambda v: loss(x, weight, v), bias), rtol=0, atol=2e-7)


def test_the_oracles_output_has_mean_bias_and_variance_weight_squared_less_what_eps_takes():
    x, weight, bias, _ = problem((50, 3, 7))
    y = batch_norm.forward(x, weight, bias, eps=1e-3).y
    variance = x.var((0, 2))
    np.testing.assert_allclose(y.mean((0, 2)), bias, atol=1e-12)
    np.testing.assert_allclose(y.var((0, 2)), weight**2 * variance / (variance + 1e-3), rtol=1e-12)


def test_the_oracles_mask_without_channel_axis_means_the_same_for_every_channel():
    x, weight, bias, _ = problem((3, 2, 3, 4))
    mask = np.random.default_rng(1).random((3, 3, 4)) < 0.6
    short = batch_norm.forward(x, weight, bias, mask=mask)
    full = batch_norm.forward(x, weight, bias, mask=np.repeat(mask[:, None], 2, axis=1))
    np.testing.assert_array_equal(short.y, full.y)
    np.testing.assert_allclose(short.mean, [x[:, c][mask].mean() for c in range(2)], rtol=1e-14)


def test_the_oracles_inference_equals_its_training_where_the_running_statistics_are_the_batchs():
    x, weight, bias, _ = problem((6, 3, 5))
    layer = batch_norm.BatchNormOracle(3, momentum=1.0, activation="relu")
    layer.weight, layer.bias = weight, bias
    trained = layer.train(x)
    layer.running_var = x.var((0, 2))  # biased, as training uses it
    np.testing.assert_allclose(layer.evaluate(x), trained, atol=1e-13)


def test_the_oracles_running_statistics_are_a_geometric_sum_of_the_batches():
    batches = np.random.default_rng(3).normal(2.0, 3.0, (4, 8, 1, 5))
    layer = batch_norm.BatchNormOracle(1, momentum=0.25)
    for batch in batches:
        layer.train(batch)
    shares = 0.25 * 0.75 ** np.arange(3, -1, -1)
    means = batches.mean((1, 2, 3))
    variances = batches.reshape(4, -1).var(1, ddof=1)
    np.testing.assert_allclose(layer.running_mean[0], shares @ means, rtol=1e-13)
    np.testing.assert_allclose(layer.running_var[0], 0.75**4 + shares @ variances, rtol=1e-13)


def test_the_oracles_cumulative_statistics_are_the_plain_average_of_the_batches():
    batches = np.random.default_rng(4).normal(2.0, 3.0, (5, 8, 1, 5))
    layer = batch_norm.BatchNormOracle(1, momentum=None)
    for batch in batches:
        layer.train(batch)
    np.testing.assert_allclose(layer.running_mean[0], batches.mean(), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var[0], batches.reshape(5, -1).var(1, ddof=1).mean(), rtol=1e-13)


def test_the_oracles_moments_by_fsum_equal_rational_arithmetic_even_far_from_zero():
    values = 1e8 + np.random.default_rng(5).normal(size=200)
    by_fsum, exact = moments.of_values(values), moments.of_values_exactly(values)
    assert by_fsum[0] == exact[0]
    assert by_fsum[3:] == exact[3:]
    assert by_fsum.mean == pytest.approx(exact.mean, rel=1e-15)
    assert by_fsum.m2 == pytest.approx(exact.m2, rel=1e-12)


def test_the_oracles_moments_of_nothing_are_the_neutral_element():
    assert moments.of_values(np.empty(0)) == (0, 0.0, 0.0, math.inf, -math.inf)


def test_the_oracles_masked_moments_are_those_of_the_values_kept():
    x = np.arange(12.0).reshape(2, 3, 2)
    mask = x % 2 == 0
    assert [channel.count for channel in moments.of_channels(x, mask=mask)] == [2, 2, 2]
    assert moments.of_channels(x, mask=mask)[1] == moments.of_values(np.array([2.0, 8.0]))
