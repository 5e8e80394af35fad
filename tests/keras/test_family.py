"""What distinguishes the range, moving and renorm layers and the network from batch normalization."""

from __future__ import annotations

from itertools import pairwise

import keras
import numpy as np
import pytest

from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer, article_cnn
from tests.keras.backends import to_numpy, train
from tests.keras.harness import SHAPES, assert_equal_to, gradients, images, moved
from tests.oracle.keras_norm import range_over_std


@pytest.mark.parametrize("count", [2, 3, 5, 20, 1000])
def test_the_range_gives_gaussian_input_unit_variance_on_average_at_any_count(count):
    channels = 200_000 // count
    x = np.random.default_rng(0).normal(7, 3, (count, channels)).astype("float32")
    y = to_numpy(RangeBNLayer(epsilon=1e-9)(x, training=True))
    assert y.std(axis=0).mean() == pytest.approx(1, abs=0.02)


def test_the_range_gives_a_million_gaussian_values_unit_variance():
    x = np.random.default_rng(0).normal(7, 3, (1000, 1000, 6)).astype("float32")
    y = to_numpy(RangeBNLayer(epsilon=1e-9)(x, training=True))
    assert y.std(axis=(0, 1)).mean() == pytest.approx(1, abs=0.03)


def test_the_range_is_trained_with_a_batch_size_known_only_in_the_graph():
    model = keras.Sequential([keras.Input((4,)), RangeBNLayer(momentum=0.0)])
    model.compile("sgd", "mse")
    x = images((50, 4))
    model.fit(x, x, batch_size=50, epochs=1, verbose=0)
    expected = ((x.max(0) - x.min(0)) / range_over_std(50)) ** 2
    assert_equal_to(to_numpy(model.layers[0].moving_variance), expected, 1e-5)


def test_moving_statistics_are_taken_at_every_kth_step_only():
    layer = MovingBNLayer(refresh_every=3)
    seen = []
    for step in range(7):
        layer(moved(images(SHAPES[2], seed=step), -1), training=True)
        seen.append(to_numpy(layer.moving_mean).tobytes())
    assert [before != after for before, after in pairwise(seen)] == [False, False, True] * 2
    assert (int(layer.num_steps), int(layer.num_updates)) == (7, 3)


def test_where_the_moving_statistics_are_the_batchs_its_training_is_batch_normalizations():
    layer, twin = MovingBNLayer(refresh_every=1, momentum=0.0), BNLayer()
    for step in range(2):
        x, grad = moved(images(SHAPES[3], seed=step), -1), moved(gradients(SHAPES[3]), -1)
        for actual, expected in zip(train(layer, x, grad)[:2], train(twin, x, grad)[:2], strict=True):
            assert_equal_to(actual, expected, 1e-5)


def test_its_training_output_is_its_inference_output():
    layer = MovingBNLayer(refresh_every=4)
    for step in range(3):
        x = moved(images(SHAPES[2], seed=step), -1)
        y = to_numpy(layer(x, training=True))
    assert_equal_to(y, to_numpy(layer(x)), 1e-6)


class Uncorrected(MovingBNLayer):
    """The same statistics, taken for constants: what Ioffe & Szegedy, Section 2, warn of."""

    def _train(self, x, mask):
        self._refresh(keras.ops.stop_gradient(x), mask)
        return self._infer(x)


def test_no_step_against_the_gradient_changes_mean_or_scale_of_what_is_normalized():
    def components(made):
        layer = made(refresh_every=8)
        layer(moved(images(SHAPES[2]), -1), training=True)
        x = moved(images(SHAPES[2], seed=1), -1) * 3 + 1  # long after the statistics were taken
        _, grad_x, _ = train(layer, x, moved(gradients(SHAPES[2]), -1))
        around = x - x.mean((0, 1, 2))
        length = np.linalg.norm(grad_x) * np.linalg.norm(around)
        return abs(grad_x.sum((0, 1, 2))).max() / np.linalg.norm(grad_x), abs((grad_x * around).sum()) / length

    assert max(components(MovingBNLayer)) < 1e-3
    assert min(components(Uncorrected)) > 1e-2


def largest_weight_after(made, steps=150):
    """Train three normalized layers by plain SGD at a rate at which instability shows; the first layer's weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((8,))]
    for _ in range(3):
        layers += [keras.layers.Dense(16, use_bias=False), made(refresh_every=1), keras.layers.ReLU()]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(4.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(32 * steps, 8)).astype("float32")
    model.fit(x, (x[:, 0] * x[:, 1] > 0).astype("int32"), batch_size=32, epochs=1, shuffle=False, verbose=0)
    return np.abs(model.get_weights()[0]).max()


@pytest.mark.slow
def test_the_corrected_gradient_keeps_the_weights_from_growing_as_the_plain_one_lets_them():
    corrected = largest_weight_after(MovingBNLayer)
    assert corrected < 10
    assert not largest_weight_after(Uncorrected) < 2 * corrected  # not a number, too, is more


@pytest.mark.parametrize("made", [MovingBNLayer, BatchRenormLayer])
def test_momentum_of_one_is_the_plain_average_of_all_batches(made):
    layer = made(momentum=1.0, **({"refresh_every": 1} if made is MovingBNLayer else {}))
    batches = [moved(images(SHAPES[2], seed=seed), -1) for seed in range(4)]
    for batch in batches:
        layer(batch, training=True)
    assert_equal_to(to_numpy(layer.moving_mean), np.mean([b.mean((0, 1, 2)) for b in batches], axis=0), 1e-5)


@pytest.mark.parametrize(("made", "counters"), [(BatchRenormLayer, (1000,)), (MovingBNLayer, (1000, 0))])
def test_it_goes_on_from_a_trained_layers_statistics_when_told_that_they_are_of_many_batches(made, counters):
    trained, layer = BNLayer(), made(momentum=0.9)
    for seed in range(3):
        trained(moved(images(SHAPES[2], seed=seed), -1), training=True)
    layer.build((None, 5, 6, 4))
    layer.set_weights([*trained.get_weights(), *map(np.array, counters)])
    batch = moved(images(SHAPES[2], seed=9), -1)
    layer(batch, training=True)
    expected = 0.9 * to_numpy(trained.moving_mean) + 0.1 * batch.mean((0, 1, 2))
    assert_equal_to(to_numpy(layer.moving_mean), expected, 1e-5)


def test_renormalization_within_its_first_eighth_is_batch_normalization():
    layer, twin = BatchRenormLayer(schedule_steps=80), BNLayer()
    for step in range(10):
        x, grad = moved(images(SHAPES[2], seed=step) * (1 + step), -1), moved(gradients(SHAPES[2]), -1)
        for actual, expected in zip(train(layer, x, grad)[:2], train(twin, x, grad)[:2], strict=True):
            assert_equal_to(actual, expected, 1e-5)


def test_the_clips_follow_the_papers_schedule():
    layer = BatchRenormLayer(schedule_steps=40_000)
    layer.build((None, 4))
    found = []
    for step in (0, 5_000, 15_000, 22_500, 25_000, 40_000, 100_000):
        layer.num_updates.assign(step)
        found.append([float(clip) for clip in layer.clips()])
    expected = [[1, 0], [1, 0], [1 + 4 / 7, 2.5], [2, 4.375], [1 + 8 / 7, 5], [3, 5], [3, 5]]
    assert_equal_to(found, expected, 1e-6)


def test_renormalization_unclipped_trains_on_what_it_infers():
    layer = BatchRenormLayer(schedule_steps=0, rmax=1e6, dmax=1e6)
    for step in range(3):
        layer(moved(images(SHAPES[2], seed=step), -1), training=True)
    x = moved(images(SHAPES[2], seed=9), -1)
    inferred = to_numpy(layer(x))
    assert_equal_to(to_numpy(layer(x, training=True)), inferred, 1e-5)


def test_the_network_has_the_articles_layers_and_is_compiled_as_in_the_article():
    model = article_cnn()
    conv1, bn1, conv2, bn2, pool, flatten, dense = model.layers
    assert (conv1.filters, conv1.kernel_size, conv1.activation.__name__) == (32, (3, 3), "relu")
    assert (conv2.filters, conv2.kernel_size, conv2.activation.__name__) == (64, (3, 3), "relu")
    assert isinstance(bn1, BNLayer)
    assert isinstance(bn2, BNLayer)
    assert (pool.pool_size, type(flatten).__name__) == ((2, 2), "Flatten")
    assert (dense.units, dense.activation.__name__) == (10, "softmax")
    assert model.input_shape == (None, 28, 28, 1)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.loss == "sparse_categorical_crossentropy"
    history = model.fit(np.zeros((4, 28, 28, 1)), np.zeros(4), verbose=0)
    assert set(history.history) == {"accuracy", "loss"}


@pytest.mark.parametrize(
    "normalization", ["bn", "keras", "range", "moving", "renorm", None, lambda: BNLayer(momentum=0.5)]
)
def test_the_network_learns_with_any_normalization(normalization):
    model = article_cnn(num_classes=2, input_shape=(12, 12, 1), normalization=normalization)
    rng = np.random.default_rng(0)
    y = np.arange(64) % 2
    x = (rng.normal(size=(64, 12, 12, 1)) + 3 * y[:, None, None, None]).astype("float32")
    model.fit(x, y, batch_size=16, epochs=8, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.9
