"""Second derivatives: Hessian-vector products against differences of the oracle's gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mednorm.keras import BNLayer, RangeBNLayer
from tests.keras.backends import BACKEND, to_numpy
from tests.keras.harness import assert_equal_to, images
from tests.oracle.keras_norm import KerasOracle, RangeOracle

SHAPE, STEP = (7, 4), 1e-5


def hessian_vector_product(layer, x, vector):
    """The derivative of the gradient of Σy³ along `vector`."""
    x, vector = (keras.ops.cast(value, "float32") for value in (x, vector))
    layer.build(x.shape)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x, training=True) ** 3)
            slope = tf.reduce_sum(inner.gradient(loss, x) * vector)
        return to_numpy(outer.gradient(slope, x))
    if BACKEND == "jax":
        import jax

        state = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]

        def loss(x):
            return (layer.stateless_call(*state, x, training=True)[0] ** 3).sum()

        return to_numpy(jax.grad(lambda x: (jax.grad(loss)(x) * vector).sum())(x))
    import torch

    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad((layer(x, training=True) ** 3).sum(), x, create_graph=True)
    return to_numpy(torch.autograd.grad((slope * vector).sum(), x)[0])


@pytest.mark.parametrize(("made", "oracle"), [(BNLayer, KerasOracle), (RangeBNLayer, RangeOracle)])
def test_second_derivatives_are_the_differences_of_the_first(made, oracle):
    x, vector = images(SHAPE), np.random.default_rng(3).normal(size=SHAPE)

    def gradient(x):
        layer = oracle(SHAPE[1])
        return layer.backward(3 * layer.train(x) ** 2)[0]

    expected = (gradient(x + STEP * vector) - gradient(x - STEP * vector)) / (2 * STEP)
    assert_equal_to(hessian_vector_product(made(), x, vector), expected, 1e-4)
