"""The oracles of the Keras layers, held against finite differences and one another."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle.keras_norm import KerasOracle, MovingOracle, RangeOracle, RenormOracle
from tests.oracle.test_oracle import SHAPES, central_difference, problem

UNCLIPPED = {"rmax": 1e9, "dmax": 1e9, "schedule_steps": 0}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("made", [KerasOracle, RangeOracle])
def test_gradients_are_the_central_differences_of_the_forward_pass(made, shape, masked):
    x, gamma, beta, grad = problem(shape)
    mask = np.random.default_rng(7).random((shape[0], *shape[2:])) < 0.8 if masked else None

    def layer(gamma=gamma, beta=beta):
        oracle = made(shape[1])
        oracle.gamma, oracle.beta = gamma, beta
        return oracle

    def loss(x, gamma, beta):
        return float((layer(gamma, beta).train(x, mask) * grad).sum())

    oracle = layer()
    oracle.train(x, mask)
    d_x, d_gamma, d_beta = oracle.backward(grad)
    np.testing.assert_allclose(d_x, central_difference(lambda v: loss(v, gamma, beta), x), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_gamma, central_difference(lambda v: loss(x, v, beta), gamma), rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_beta, central_difference(lambda v: loss(x, gamma, v), beta), rtol=0, atol=1e-6)


def test_renormalization_with_r_and_d_held_has_their_central_differences():
    x, gamma, beta, grad = problem(SHAPES[2])
    first = problem(SHAPES[2])[0] * 2 - 1

    def trained(x, held=None):
        oracle = RenormOracle(x.shape[1], rmax=1.5, dmax=0.3, schedule_steps=0)
        oracle.gamma, oracle.beta = gamma, beta
        oracle.train(first)
        y = oracle.train(x)
        if held is None:
            return oracle, y
        r, d = (value.reshape(1, -1, 1, 1) for value in held)
        batch = KerasOracle(x.shape[1])
        return oracle, gamma.reshape(1, -1, 1, 1) * (batch.train(x) * r + d) + beta.reshape(1, -1, 1, 1)

    oracle, _ = trained(x)
    held = oracle.r, oracle.d
    expected = central_difference(lambda v: float((trained(v, held)[1] * grad).sum()), x)
    np.testing.assert_allclose(oracle.backward(grad)[0], expected, rtol=0, atol=1e-6)


def test_moving_statistics_are_renormalization_unclipped_but_for_when_they_move():
    x, gamma, beta, grad = problem(SHAPES[2])
    moving, renorm = MovingOracle(x.shape[1], refresh_every=2), RenormOracle(x.shape[1], momentum=0.9, **UNCLIPPED)
    for oracle in (moving, renorm):
        oracle.gamma, oracle.beta = gamma, beta
        oracle.train(x * 3 + 1)
    np.testing.assert_allclose(moving.train(x), renorm.train(x), rtol=0, atol=1e-12)
    for ours, theirs in zip(moving.backward(grad), renorm.backward(grad), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
