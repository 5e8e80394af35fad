"""The oracles of the small-batch family, held against finite differences, batch normalization and one another."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle.batch_norm import BatchNormOracle, along_channels
from tests.oracle.family import BatchRenormOracle, FamilyOracle, FrozenBatchNormOracle, RangeBatchNormOracle
from tests.oracle.groups import DomainBatchNormOracle, GhostBatchNormOracle
from tests.oracle.keras_norm import MovingOracle
from tests.oracle.moving import MovingBatchNormOracle
from tests.oracle.test_oracle import central_difference, problem

SHAPE = (5, 2, 3)
ACTIVATIONS = pytest.mark.parametrize("activation", [None, "leaky_relu"])
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
IDS = [0, -1, 1, 0, 1]


def a_mask(masked):
    mask = np.random.default_rng(3).random((SHAPE[0], *SHAPE[2:])) < 0.7
    mask[:, 0] = mask[:, 1] = True  # two values in every sample, which may be a group of its own
    return mask if masked else None


def where_kept(grad, masked):
    """The gradient of a masked loss. MABN's means are over the kept values, and no others' gradient enters them."""
    return np.where(a_mask(masked)[:, None], grad, 0.0) if masked else grad


def with_parameters(oracle, weight, bias):
    oracle.weight, oracle.bias = weight, bias
    return oracle


DIFFERENTIABLE = {
    "range": RangeBatchNormOracle,
    "frozen": FrozenBatchNormOracle,
    "ghost": lambda channels, **options: GhostBatchNormOracle(channels, ghost_size=2, **options),
    "domain": lambda channels, **options: DomainBatchNormOracle(channels, domains=2, **options),
    "moving from centred weights, one pass": lambda channels, **options: MovingBatchNormOracle(
        channels, momentum=1.0, window=1, centering="weights", **options
    ),
}


@ACTIVATIONS
@MASKED
@pytest.mark.parametrize("name", list(DIFFERENTIABLE))
def test_gradients_are_the_central_differences_of_the_forward_pass(name, masked, activation):
    x, weight, bias, grad = problem(SHAPE)
    made = DIFFERENTIABLE[name]
    named = {"ids": IDS} if name == "domain" else {}

    def layer(weight=weight, bias=bias):
        return with_parameters(made(SHAPE[1], activation=activation), weight, bias)

    def loss(x, weight, bias):
        return float((layer(weight, bias).train(x, a_mask(masked), **named) * grad).sum())

    if "moving" in name:
        grad = where_kept(grad, masked)
    oracle = layer()
    oracle.train(x, a_mask(masked), **named)
    d_x, d_weight, d_bias = oracle.backward(grad)
    np.testing.assert_allclose(d_x, central_difference(lambda v: loss(v, weight, bias), x), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_weight, central_difference(lambda v: loss(x, v, bias), weight), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_bias, central_difference(lambda v: loss(x, weight, v), bias), rtol=0, atol=1e-6)


@ACTIVATIONS
@MASKED
def test_renormalization_has_the_central_differences_with_r_and_d_held(masked, activation):
    x, weight, bias, grad = problem(SHAPE)
    made = {"schedule": 0, "r_max": 1.2, "d_max": 0.75, "activation": activation}
    oracle = with_parameters(BatchRenormOracle(SHAPE[1], **made), weight, bias)
    oracle.train(2 * x - 1)
    oracle.train(x, a_mask(masked))
    r, d = oracle.r, oracle.d
    assert r[0] == 1.2 > r[1]  # one channel meets the clip, the other does not
    assert d[0] == 0.75 > d[1]

    def loss(x, weight, bias):  # γ·(x̂·r + d) + β is batch normalization with γ·r and γ·d + β
        held = with_parameters(BatchNormOracle(SHAPE[1], activation=activation), weight * r, weight * d + bias)
        return float((held.train(x, a_mask(masked)) * grad).sum())

    d_x, d_weight, d_bias = oracle.backward(grad)
    np.testing.assert_allclose(d_x, central_difference(lambda v: loss(v, weight, bias), x), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_weight, central_difference(lambda v: loss(x, v, bias), weight), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_bias, central_difference(lambda v: loss(x, weight, v), bias), rtol=0, atol=1e-6)


def test_unclipped_renormalization_trains_as_it_would_evaluate_before_the_step():
    x, weight, bias, _ = problem(SHAPE)
    oracle = with_parameters(
        BatchRenormOracle(SHAPE[1], schedule=0, r_max=1e9, d_max=1e9, activation="relu"), weight, bias
    )
    oracle.train(3 * x + 1)
    expected = oracle.evaluate(x)
    np.testing.assert_allclose(oracle.train(x), expected, rtol=0, atol=1e-12)


def test_the_clips_of_renormalization_open_from_an_eighth_and_d_is_open_at_five_eighths():
    oracle = BatchRenormOracle(2, schedule=80, r_max=3.0, d_max=5.0)
    found = []
    for oracle.num_batches_tracked in (0, 10, 30, 45, 50, 80, 1000):
        found.append(oracle.clips())
    expected = [(1, 0), (1, 0), (1 + 2 * 20 / 70, 2.5), (2, 4.375), (1 + 2 * 40 / 70, 5), (3, 5), (3, 5)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(
    "made",
    [
        FamilyOracle,
        lambda channels, **options: GhostBatchNormOracle(channels, ghost_size=9, **options),
        lambda channels, **options: BatchRenormOracle(channels, r_max=1.0, d_max=0.0, schedule=0, **options),
        lambda channels, **options: DomainBatchNormOracle(channels, domains=1, **options),
    ],
    ids=["two stages", "one ghost", "r = 1 and d = 0", "one domain"],
)
@MASKED
def test_these_are_batch_normalization(made, masked):
    x, weight, bias, grad = problem(SHAPE)
    options = {"momentum": 0.3, "activation": "leaky_relu", "negative_slope": 0.2}
    oracles = [with_parameters(one(SHAPE[1], **options), weight, bias) for one in (made, BatchNormOracle)]
    named = {"ids": [0] * len(x)} if isinstance(oracles[0], DomainBatchNormOracle) else {}
    for step in range(3):
        ours = oracles[0].train(x * (1 + step) + step, a_mask(masked), **named)
        np.testing.assert_allclose(ours, oracles[1].train(x * (1 + step) + step, a_mask(masked)), rtol=0, atol=1e-12)
        for mine, wanted in zip(oracles[0].backward(grad), oracles[1].backward(grad), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(oracles[0].evaluate(x, **named), oracles[1].evaluate(x), rtol=0, atol=1e-12)
    for name, wanted in oracles[1].buffers().items():
        np.testing.assert_allclose(oracles[0].buffers()[name], wanted, rtol=1e-13)


def test_a_last_ghost_of_one_value_joins_the_one_before():
    x, weight, bias, grad = problem((7, 2))
    oracle = with_parameters(GhostBatchNormOracle(2, ghost_size=3), weight, bias)
    y = oracle.train(x)
    d_x = oracle.backward(grad)[0]
    for rows in (slice(0, 3), slice(3, 7)):
        alone = with_parameters(BatchNormOracle(2), weight, bias)
        np.testing.assert_allclose(y[rows], alone.train(x[rows]), rtol=0, atol=1e-13)
        np.testing.assert_allclose(d_x[rows], alone.backward(grad[rows])[0], rtol=0, atol=1e-13)


def test_domains_with_parameters_of_their_own_are_layers_of_their_own():
    x, _, _, grad = problem(SHAPE)
    oracle = DomainBatchNormOracle(2, domains=3, domain_affine=True, activation="relu")
    alone = [BatchNormOracle(2, activation="relu") for _ in range(4)]  # site 2 never comes; the last is the unknown
    rng = np.random.default_rng(5)
    for mine, wanted in zip([*oracle.sites, oracle], alone, strict=True):
        weight, bias = rng.normal(size=(2, 2))
        with_parameters(mine, weight, bias), with_parameters(wanted, weight, bias)
    y = oracle.train(x, ids=IDS)
    d_x, d_weight, d_bias, d_domain_weight, d_domain_bias = oracle.backward(grad)
    for site in (0, 1, -1):
        rows = np.flatnonzero(np.array(IDS) == site)
        np.testing.assert_allclose(y[rows], alone[site].train(x[rows]), rtol=0, atol=1e-13)
        of_x, of_weight, of_bias = alone[site].backward(grad[rows])
        np.testing.assert_allclose(d_x[rows], of_x, rtol=0, atol=1e-13)
        own = (d_weight, d_bias) if site < 0 else (d_domain_weight[site], d_domain_bias[site])
        np.testing.assert_allclose(own, (of_weight, of_bias), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(d_domain_weight[2], 0)
    np.testing.assert_allclose(oracle.running_mean, 0.1 * x.mean((0, 2)), rtol=1e-13)
    np.testing.assert_allclose(oracle.evaluate(x, [1] * 5), alone[1].evaluate(x), rtol=0, atol=1e-12)
    alone[2].running_mean, alone[2].running_var = oracle.running_mean, oracle.running_var
    np.testing.assert_allclose(oracle.evaluate(x, [2] * 5), alone[2].evaluate(x), rtol=0, atol=1e-12)


@ACTIVATIONS
@MASKED
def test_a_window_of_one_pass_is_unclipped_renormalization_backward(masked, activation):
    x, weight, bias, grad = problem(SHAPE)
    grad = where_kept(grad, masked)
    ours = with_parameters(MovingBatchNormOracle(2, window=1, refresh_every=2, activation=activation), weight, bias)
    ours.train(2 * x + 1)
    y = ours.train(x, a_mask(masked))
    theirs = MovingOracle(2, refresh_every=2, epsilon=1e-5)
    theirs.gamma, theirs.beta = weight, bias
    theirs.train(2 * x + 1)
    theirs.moving_mean, theirs.moving_variance = ours.running_mean, ours.running_var
    theirs.train(x, a_mask(masked))
    through = 1.0 if activation is None else np.where(y > 0, 1.0, 0.01)
    for mine, wanted in zip(ours.backward(grad), theirs.backward(grad * through), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centering", ["mean", "weights"])
def test_the_window_averages_each_mean_of_the_backward_pass_by_itself(centering):
    _, weight, bias, _ = problem(SHAPE)
    oracle = with_parameters(MovingBatchNormOracle(2, window=2, centering=centering), weight, bias)
    rng, kept = np.random.default_rng(9), []
    for _ in range(3):
        x, grad = rng.normal(1, 2, (2, *SHAPE))
        oracle.train(x)
        d_x = oracle.backward(grad)[0]
        std = np.sqrt(oracle.running_var + oracle.eps)
        normalized = (x - along_channels(oracle.running_mean, 3)) / along_channels(std, 3)
        g = along_channels(weight, 3) * grad
        kept.append([v.mean((0, 2)) for v in (g, g * normalized, normalized, normalized**2)])
    b, a, m, c = (np.mean([one[place] for one in kept[1:]], axis=0) for place in range(4))
    e = oracle.eps / std**2
    if centering == "mean":
        slope = along_channels((a - b * m) / (c - m**2 + e), 3)
        expected = g - along_channels(b, 3) - (normalized - along_channels(m, 3)) * slope
    else:
        expected = g - normalized * along_channels(a / (c + e), 3)
    np.testing.assert_allclose(d_x, expected / along_channels(std, 3), rtol=0, atol=1e-12)


def test_moving_statistics_hold_nothing_of_their_start_and_stand_still_between_refreshes():
    batches = np.random.default_rng(2).normal(3, 2, (4, *SHAPE))
    oracle = MovingBatchNormOracle(2, momentum=0.25, refresh_every=2)
    for k, batch in enumerate(batches):
        y = oracle.train(batch)
        np.testing.assert_allclose(y, oracle.evaluate(batch), rtol=0, atol=1e-12)
        assert oracle.num_batches_tracked == k // 2 + 1
    # m/(1 − (1 − m)^(t+1)): 1 at first, then 0.25 / 0.4375
    new = 0.25 / 0.4375
    means, variances = batches.mean((1, 3)), batches.var((1, 3)) * 15 / 14
    np.testing.assert_allclose(oracle.running_mean, (1 - new) * means[0] + new * means[2], rtol=1e-13)
    np.testing.assert_allclose(oracle.running_var, (1 - new) * variances[0] + new * variances[2], rtol=1e-13)


def test_centred_weights_leave_the_mean_at_zero_and_follow_the_second_moment():
    x = problem(SHAPE)[0]
    oracle = MovingBatchNormOracle(2, centering="weights")
    oracle.train(x)
    np.testing.assert_array_equal(oracle.running_mean, 0)
    np.testing.assert_allclose(oracle.running_var, (x**2).mean((0, 2)), rtol=1e-13)
