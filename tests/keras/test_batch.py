"""BNLayer in the place of keras.layers.BatchNormalization: the same numbers, the same users' code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.layers import BatchNormalization

from mednorm.keras import BNLayer, article_cnn
from mednorm.keras.arguments import mask_axis
from tests.keras.backends import BACKEND, to_numpy, train, wide
from tests.keras.harness import SHAPES, assert_equal_to, gradients, images, moved, some_mask

OPTIONS = [
    {},
    {"momentum": 0.5, "epsilon": 1e-5, "center": False},
    {
        "scale": False,
        "moving_mean_initializer": "ones",
        "moving_variance_initializer": keras.initializers.Constant(3.0),
    },
    {"gamma_initializer": keras.initializers.Constant(0.3), "gamma_regularizer": "l2", "beta_constraint": "non_neg"},
    {"dtype": "mixed_float16"},
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float16"},
    *([{"dtype": "float64"}] if wide() else []),
]
# Rounding the same number twice in half precision may end on two neighbours.
ONE_ROUNDING = {"mixed_float16": 2.0**-10, "float16": 2.0**-9, "mixed_bfloat16": 2.0**-7}


def mask_for_keras(masked: bool, axis: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask that Keras's layer understands: with channels first it takes one over all axes but the last."""
    if not masked:
        return None
    return some_mask(shape) if axis == -1 else np.random.default_rng(5).random(shape[:-1]) < 0.67


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(("shape", "axis"), [(SHAPES[0], -1), (SHAPES[1], 1), (SHAPES[2], -1), (SHAPES[3], 1)], ids=str)
def test_every_number_is_that_of_keras_own_layer(options, shape, axis, masked):
    ours, theirs = BNLayer(axis=axis, **options), BatchNormalization(axis=axis, **options)
    half = ONE_ROUNDING.get(options.get("dtype"), 0.0)
    mask = mask_for_keras(masked, axis, shape)
    for step in range(3):
        x, grad = moved(images(shape, seed=step), axis), moved(gradients(shape), axis)
        found, expected = train(ours, x, grad, mask), train(theirs, x, grad, mask)
        for actual, wanted in zip(found[:2], expected[:2], strict=True):
            assert_equal_to(actual, wanted, max(1e-5, half))
        assert found[2].keys() == expected[2].keys()
        for name, wanted in expected[2].items():
            assert_equal_to(found[2][name], wanted, max(1e-5, half))
    for actual, wanted in zip(ours.weights, theirs.weights, strict=True):
        assert_equal_to(to_numpy(actual), to_numpy(wanted), max(1e-5, half))
    assert_equal_to(to_numpy(ours(x)), to_numpy(theirs(x)), max(1e-5, half))
    losses = [[float(to_numpy(loss)) for loss in layer.losses] for layer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_weights_go_both_ways():
    ours, theirs = BNLayer(), BatchNormalization()
    x = moved(images(SHAPES[2]), -1)
    theirs(x, training=True)
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    assert_equal_to(to_numpy(ours(x)), to_numpy(theirs(x)), 1e-5)
    ours(x, training=True)
    theirs.set_weights(ours.get_weights())
    assert_equal_to(to_numpy(ours(x)), to_numpy(theirs(x)), 1e-5)


def test_a_trained_model_is_cloned_with_the_layer_in_keras_places():
    def replace(layer):
        made = BNLayer if isinstance(layer, BatchNormalization) else type(layer)
        return made.from_config(layer.get_config())

    model = article_cnn(num_classes=3, normalization="keras")
    x = np.random.default_rng(0).random((12, 28, 28, 1))
    model.fit(x, np.arange(12) % 3, epochs=2, verbose=0)
    clone = keras.models.clone_model(model, clone_function=replace)
    clone.set_weights(model.get_weights())
    assert [type(layer).__name__ for layer in clone.layers].count("BNLayer") == 2
    assert_equal_to(clone.predict(x, verbose=0), model.predict(x, verbose=0), 1e-5)


def test_a_model_is_cloned_with_keras_layer_in_its_place():
    def replace(layer):
        made = BatchNormalization if isinstance(layer, BNLayer) else type(layer)
        return made.from_config(layer.get_config())

    model = article_cnn(num_classes=3)
    clone = keras.models.clone_model(model, clone_function=replace)
    clone.set_weights(model.get_weights())
    assert [type(layer) for layer in clone.layers].count(BatchNormalization) == 2
    x = np.random.default_rng(0).random((4, 28, 28, 1))
    assert_equal_to(clone.predict(x, verbose=0), model.predict(x, verbose=0), 1e-5)


def test_code_that_looks_for_keras_layer_finds_it():
    model = article_cnn(num_classes=3)
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.trainable = False
    assert [len(layer.trainable_weights) for layer in model.layers if isinstance(layer, BNLayer)] == [0, 0]


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_mask_with_channels_first_means_the_same_as_with_channels_last(axis):
    ours, last = BNLayer(axis=axis), BNLayer()
    x, grad, mask = images(SHAPES[3]), gradients(SHAPES[3]), some_mask(SHAPES[3])
    found = train(ours, moved(x, axis), moved(grad, axis), mask)
    expected = train(last, moved(x, -1), moved(grad, -1), mask)
    assert_equal_to(np.moveaxis(found[1], axis, -1), expected[1], 1e-5)
    assert_equal_to(to_numpy(ours.moving_variance), to_numpy(last.moving_variance), 1e-5)


def test_of_two_readings_of_a_mask_the_one_whose_lengths_are_known_is_taken():
    assert mask_axis("layer", 1, (None, 4), (None, 4, None)) == 2
    assert mask_axis("layer", 1, (None, 7), (None, 4, 7)) == 1
    assert mask_axis("layer", 1, (6, 4), (6, 4, 4)) == 1  # both fit: the channels' axis is the one without


def test_one_channel_is_normalized_under_a_mask():
    x = np.array([[[1.0], [3.0], [100.0]]], "float32")
    y = to_numpy(BNLayer(epsilon=1e-9)(x, training=True, mask=np.array([[True, True, False]])))
    assert y.ravel() == pytest.approx([-1, 1, 98])


def test_the_mask_of_a_masking_layer_reaches_it_and_goes_on():
    inputs = keras.Input((None, 2))
    masked = keras.layers.Masking(mask_value=0.0)(inputs)
    model = keras.Model(inputs, BNLayer(momentum=0.0)(masked))
    model.compile("sgd", "mse")
    x = np.array([[[1, 5], [2, 5], [0, 0], [0, 0]]] * 10, "float32")
    model.fit(x, x, batch_size=10, epochs=1, verbose=0)
    assert_equal_to(to_numpy(model.layers[2].moving_mean), [1.5, 5.0], 1e-6)
    assert_equal_to(to_numpy(model.layers[2].moving_variance), [0.25, 0.0], 1e-6)


def test_renorm_stays_keras_own():
    options = {"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}, "renorm_momentum": 0.8}
    ours, theirs = BNLayer(**options), BatchNormalization(**options)
    for step in range(2):
        x, grad = moved(images(SHAPES[2], seed=step), -1), moved(gradients(SHAPES[2]), -1)
        for actual, wanted in zip(train(ours, x, grad)[:2], train(theirs, x, grad)[:2], strict=True):
            assert_equal_to(actual, wanted, 1e-5)


@pytest.mark.slow
def test_keras_own_tests_of_batch_normalization_pass_with_the_layer_in_its_place(tmp_path):
    (tmp_path / "test_in_its_place.py").write_text(
        "import keras.src.layers\n"
        "from mednorm.keras import BNLayer\n"
        "keras.src.layers.BatchNormalization = BNLayer\n"
        "from keras.src.layers.normalization.batch_normalization_test import BatchNormalizationTest\n"
        "def test_it_is_this_layer():\n"
        "    from keras.src.layers.normalization import batch_normalization_test\n"
        "    assert batch_normalization_test.layers.BatchNormalization is BNLayer\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 30


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has it")
def test_synchronized_statistics_are_refused_where_keras_has_none():
    with pytest.raises(ValueError, match="synchronized=True"):
        BNLayer(synchronized=True)


def test_importing_mednorm_imports_no_keras_and_importing_the_layers_no_other_backend():
    code = (
        "import sys, mednorm; mednorm.__version__; assert 'keras' not in sys.modules\n"
        "import mednorm.keras\n"
        "print(sorted({'mednorm.layers', 'mednorm.moments', 'mednorm.functional'} & set(sys.modules)))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_keras_the_error_names_the_extra(tmp_path):
    Path(tmp_path, "sitecustomize.py").write_text("import sys; sys.modules['keras'] = None\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = (
        "from mednorm.errors import MissingExtraError\n"
        "try:\n    import mednorm.keras\nexcept MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert 'pip install "mednorm[keras]"' in done.stdout, done.stderr
