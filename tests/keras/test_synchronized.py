"""Synchronized statistics: two replicas give the numbers of the joined batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer
from tests.keras.backends import BACKEND, to_numpy
from tests.keras.harness import SHAPES, assert_equal_to, gradients, images, moved, some_mask
from tests.oracle.keras_norm import KerasOracle

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras synchronizes on TensorFlow alone")
FIRST = 1  # images of the first replica, so that the two differ in number


@pytest.fixture(scope="module")
def strategy():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def run(strategy, layer, x, grad, mask=None):
    """One training step of two replicas: outputs and gradients of x joined, gradients of the weights summed."""
    import tensorflow as tf

    def shard(values):
        parts = (values[:FIRST], values[FIRST:])
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    def step(x, grad, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return y, tape.gradient(y, [x, layer.gamma.value, layer.beta.value], output_gradients=grad)

    mask = np.ones(x.shape[:-1], bool) if mask is None else mask
    each = [shard(values) for values in (x.astype("float32"), grad.astype("float32"), mask)]

    @tf.function
    def both():
        return strategy.run(step if layer.masked else lambda x, g, _: step(x, g, None), args=each)

    y, (grad_x, gamma, beta) = both()
    joined = [np.concatenate([v.numpy() for v in strategy.experimental_local_results(value)]) for value in (y, grad_x)]
    summed = [sum(v.numpy() for v in strategy.experimental_local_results(value)) for value in (gamma, beta)]
    return (*joined, *summed)


def build(strategy, made, masked, **options):
    with strategy.scope():
        layer = made(synchronized=True, **options)
        layer.build((None, 5, 6, 4))
    layer.masked = masked
    return layer


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_two_replicas_of_unequal_batches_are_one_replica_with_the_joined_batch(strategy, masked):
    layer, oracle = build(strategy, BNLayer, masked), KerasOracle(4)
    mask = some_mask(SHAPES[2]) if masked else None
    for step in range(3):
        x, grad = images(SHAPES[2], seed=step), gradients(SHAPES[2])
        y, grad_x, gamma, beta = run(strategy, layer, moved(x, -1), moved(grad, -1), mask)
        assert_equal_to(y, moved(oracle.train(x, mask), -1), 1e-5)
        expected = oracle.backward(grad)
        assert_equal_to(grad_x, moved(expected[0], -1), 1e-5)
        assert_equal_to(gamma, expected[1], 1e-5)
        assert_equal_to(beta, expected[2], 1e-5)
    assert_equal_to(to_numpy(layer.moving_mean), oracle.moving_mean, 1e-5)
    assert_equal_to(to_numpy(layer.moving_variance), oracle.moving_variance, 1e-5)


def test_every_number_is_that_of_keras_own_layer(strategy):
    ours, theirs = (build(strategy, made, False) for made in (BNLayer, keras.layers.BatchNormalization))
    x, grad = moved(images(SHAPES[2]), -1), moved(gradients(SHAPES[2]), -1)
    for actual, expected in zip(run(strategy, ours, x, grad), run(strategy, theirs, x, grad), strict=True):
        assert_equal_to(actual, expected, 1e-5)
    for actual, expected in zip(ours.weights, theirs.weights, strict=True):
        assert_equal_to(to_numpy(actual), to_numpy(expected), 1e-5)


def test_far_from_zero_the_joined_variance_keeps_its_digits(strategy):
    layer, oracle = build(strategy, BNLayer, False), KerasOracle(4)
    x = np.float32(images(SHAPES[2]) + 4096)
    y, *_ = run(strategy, layer, moved(x, -1), moved(gradients(SHAPES[2]), -1))
    assert_equal_to(y, moved(oracle.train(x), -1), 2e-4)


def test_a_replica_whose_mask_keeps_nothing_takes_the_others_statistics(strategy):
    layer, oracle = build(strategy, BNLayer, True), KerasOracle(4)
    x, mask = images(SHAPES[2]), np.ones((4, 5, 6), bool)
    mask[:FIRST] = False
    run(strategy, layer, moved(x, -1), moved(gradients(SHAPES[2]), -1), mask)
    oracle.train(x, mask)
    assert_equal_to(to_numpy(layer.moving_mean), oracle.moving_mean, 1e-5)


def test_renormalization_synchronizes_its_batch_too(strategy):
    layer = build(strategy, BatchRenormLayer, False, schedule_steps=100)
    twin = BNLayer()
    x, grad = moved(images(SHAPES[2]), -1), moved(gradients(SHAPES[2]), -1)
    y, *_ = run(strategy, layer, x, grad)  # the first update is batch normalization's
    assert_equal_to(y, to_numpy(twin(x, training=True)), 1e-5)


@pytest.mark.parametrize("made", [RangeBNLayer, MovingBNLayer])
def test_layers_that_cannot_synchronize_say_so(made):
    with pytest.raises(ValueError, match="Received: synchronized=True"):
        made(synchronized=True)
