"""The suite that every Keras layer passes, on each backend; `tests/keras/test_layers.py` says which layers.

Shapes are written with channels first, as the oracle wants them, and moved to the layer's axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

from tests.keras.backends import to_numpy, train, wide

CHANNELS = 4
SHAPES = [(9, CHANNELS), (5, CHANNELS, 11), (4, CHANNELS, 5, 6), (2, CHANNELS, 3, 4, 5)]
GAMMA, BETA = np.array([1.5, 0.5, -0.75, 1.0]), np.array([0.25, -0.5, 0.125, 1.0])

# Relative to the largest magnitude of what is compared. Half precision: one rounding of the result, 2^-11 and 2^-9 of
# its magnitude, and a tie's neighbour; everything before it is computed in float32.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-8}
POLICIES = [policy for policy in TOLERANCE if policy != "float32" and (policy != "float64" or wide())]

# Every combination of rank, axis and mask in float32, and every type at two ranks with channels last and first.
FULL = [(shape, axis, masked, "float32") for shape in SHAPES for axis in (-1, 1) for masked in (False, True)]
TYPES = [(shape, axis, axis == 1, policy) for shape in SHAPES[::2] for axis in (-1, 1) for policy in POLICIES]
CASES = pytest.mark.parametrize(("shape", "axis", "masked", "policy"), [*FULL, *TYPES], ids=str)


@dataclass(frozen=True)
class LayerSpec:
    """One layer with one set of options, and its oracle."""

    name: str
    layer: Callable[..., keras.Layer]
    oracle: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: bool = False  # another set of options for a layer that is there already: not compiled again
    table: float = 0.0  # relative error of a constant that the layer reads from a table

    def __str__(self) -> str:
        return self.name

    def build(self, shape: tuple[int, ...], axis: int = -1, policy: str = "float32") -> tuple[keras.Layer, Any]:
        """Build layer and oracle with the same γ and β, away from 1 and 0 so that both matter."""
        layer = self.layer(axis=axis, dtype=policy, **self.options)
        layer.build(moved(np.empty(shape), axis).shape)
        layer.gamma.assign(GAMMA)
        layer.beta.assign(BETA)
        oracle = self.oracle(CHANNELS, **self.options)
        oracle.gamma, oracle.beta = GAMMA, BETA
        return layer, oracle

    def tolerance(self, policy: str) -> float:
        """How near a tensor of the policy's type is to come to the oracle."""
        return max(TOLERANCE[policy], self.table)

    def vectors_tolerance(self, policy: str) -> float:
        """How near a weight is: these are float32 at least under every policy here."""
        return min(self.tolerance(policy), TOLERANCE["float32"])


def images(shape: tuple[int, ...], policy: str = "float32", seed: int = 0) -> np.ndarray:
    """Draw values whose mean and spread differ by channel, rounded to the type that the layer gets."""
    channel = np.arange(shape[1], dtype=np.float64).reshape(1, -1, *([1] * (len(shape) - 2)))
    values = np.random.default_rng(seed).normal(size=shape) * (0.5 + channel) + 2 * channel - 3
    return rounded(values, policy)


def gradients(shape: tuple[int, ...], policy: str = "float32") -> np.ndarray:
    """Draw the gradient of the output."""
    return rounded(np.random.default_rng(77).normal(size=shape), policy)


def some_mask(shape: tuple[int, ...]) -> np.ndarray:
    """True on about two thirds of the positions, without the channel axis."""
    return np.random.default_rng(5).random((shape[0], *shape[2:])) < 0.67


def rounded(values: np.ndarray, policy: str) -> np.ndarray:
    """Round to the policy's type and come back to float64."""
    return to_numpy(keras.ops.cast(values, policy.removeprefix("mixed_")))


def given(values: np.ndarray, axis: int, policy: str) -> Any:
    """What the layer gets: channels at its axis, in the policy's type."""
    return keras.ops.cast(moved(values, axis), policy.removeprefix("mixed_"))


def moved(values: np.ndarray, axis: int) -> np.ndarray:
    """Channels from axis 1 to the layer's."""
    return np.moveaxis(values, 1, axis)


def back(values: np.ndarray, axis: int) -> np.ndarray:
    """Channels from the layer's axis to axis 1."""
    return np.moveaxis(values, axis, 1)


def assert_equal_to(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare shape, and values to `tolerance` times the largest expected magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    error, scale = np.abs(actual - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert error <= tolerance * scale, f"error {error:.3g} at scale {scale:.3g}: {error / scale:.3g} relative"


@CASES
def test_training_output_and_gradients_are_the_oracles_step_by_step(spec, shape, masked, axis, policy):
    layer, oracle = spec.build(shape, axis, policy)
    mask = some_mask(shape) if masked else None
    for step in range(3):  # from the second step on, some layers look at what the first left
        x, grad = images(shape, policy, seed=step), gradients(shape, policy)
        y, grad_x, grads = train(layer, given(x, axis, policy), given(grad, axis, policy), mask)
        assert_equal_to(back(y, axis), oracle.train(x, mask), spec.tolerance(policy))
        expected = oracle.backward(grad)
        assert_equal_to(back(grad_x, axis), expected[0], spec.tolerance(policy))
        assert_equal_to(grads["gamma"], expected[1], spec.vectors_tolerance(policy))
        assert_equal_to(grads["beta"], expected[2], spec.vectors_tolerance(policy))


@CASES
def test_inference_and_moving_statistics_after_five_steps_are_the_oracles(spec, shape, masked, axis, policy):
    layer, oracle = spec.build(shape, axis, policy)
    mask = some_mask(shape) if masked else None
    for step in range(5):
        batch = rounded(images(shape, seed=step) * (1 + step), policy)
        layer(given(batch, axis, policy), training=True, mask=mask)
        oracle.train(batch, mask)
    assert_equal_to(to_numpy(layer.moving_mean), oracle.moving_mean, spec.vectors_tolerance(policy))
    assert_equal_to(to_numpy(layer.moving_variance), oracle.moving_variance, spec.vectors_tolerance(policy))
    before = [to_numpy(weight).tobytes() for weight in layer.weights]
    x = images(shape, policy, seed=99)
    y = layer(given(x, axis, policy), training=False, mask=mask)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert_equal_to(back(to_numpy(y), axis), oracle.evaluate(x), spec.tolerance(policy))
    assert [to_numpy(weight).tobytes() for weight in layer.weights] == before


@pytest.mark.parametrize("fixed", [True, False])
def test_training_given_to_the_layer_wins_over_the_calls(spec, fixed):
    layer = spec.layer(training=fixed, **spec.options)
    twin = spec.layer(**spec.options)
    x = moved(images(SHAPES[2]), -1)
    for call in (not fixed, None, fixed):
        assert_equal_to(to_numpy(layer(x, training=call)), to_numpy(twin(x, training=fixed)), 0.0)
    assert_equal_to(to_numpy(layer.moving_mean), to_numpy(twin.moving_mean), 0.0)


def test_a_layer_that_is_not_trainable_infers_whatever_is_asked(spec):
    layer, oracle = spec.build(SHAPES[2])
    x = images(SHAPES[2])
    layer(moved(x, -1), training=True)
    oracle.train(x)
    layer.trainable = False
    before = [to_numpy(weight).tobytes() for weight in layer.weights]
    assert_equal_to(back(to_numpy(layer(moved(x, -1), training=True)), -1), oracle.evaluate(x), TOLERANCE["float32"])
    assert [to_numpy(weight).tobytes() for weight in layer.weights] == before
    layer.trainable = True
    assert [weight.name for weight in layer.trainable_weights] == ["gamma", "beta"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_moves_nothing(spec, bad):
    layer, _ = spec.build(SHAPES[2])
    good, broken = moved(images(SHAPES[2]), -1), moved(images(SHAPES[2]), -1)
    layer(good, training=True)
    before = [to_numpy(layer.moving_mean).tobytes(), to_numpy(layer.moving_variance).tobytes()]
    broken[0, 0, 0, 2] = bad
    for _ in range(4):  # some layers take statistics of every fourth batch
        layer(broken, training=True)
    assert [to_numpy(layer.moving_mean).tobytes(), to_numpy(layer.moving_variance).tobytes()] == before


def test_a_first_batch_that_is_not_finite_is_as_if_it_had_not_been(spec):
    layer, oracle = spec.build(SHAPES[2])
    layer(np.full(moved(np.empty(SHAPES[2]), -1).shape, np.nan, "float32"), training=True)
    x = images(SHAPES[2])
    layer(moved(x, -1), training=True)
    oracle.train(x)
    assert_equal_to(to_numpy(layer.moving_mean), oracle.moving_mean, TOLERANCE["float32"])


def test_a_variance_beyond_the_weights_own_type_moves_nothing(spec):
    layer = spec.layer(dtype="float16", **spec.options)
    layer.build((None, 4))
    before = to_numpy(layer.moving_variance).tobytes()
    layer(keras.ops.cast(images((64, 4)) * 1500, "float16"), training=True)  # a variance from 5e5
    assert to_numpy(layer.moving_variance).tobytes() == before


def test_a_mask_that_keeps_nothing_moves_nothing_and_divides_by_nothing(spec):
    layer, _ = spec.build(SHAPES[2])
    before = to_numpy(layer.moving_variance).tobytes()
    x = moved(images(SHAPES[2]), -1)
    y, grad_x, _ = train(layer, x, np.ones_like(x), np.zeros(x.shape[:-1], bool))
    assert np.isfinite(y).all()
    assert np.isfinite(grad_x).all()
    assert to_numpy(layer.moving_variance).tobytes() == before


def test_a_mask_of_ones_is_no_mask(spec):
    (layer, _), (twin, _) = spec.build(SHAPES[3]), spec.build(SHAPES[3])
    x, grad = moved(images(SHAPES[3]), -1), moved(gradients(SHAPES[3]), -1)
    ours, theirs = train(layer, x, grad, np.ones(x.shape[:-1], bool)), train(twin, x, grad)
    for actual, expected in zip((*ours[:2], *ours[2].values()), (*theirs[:2], *theirs[2].values()), strict=True):
        assert_equal_to(actual, expected, TOLERANCE["float32"])


def test_what_is_masked_does_not_touch_what_is_kept(spec):
    (layer, _), (twin, _) = spec.build(SHAPES[2]), spec.build(SHAPES[2])
    x, mask = moved(images(SHAPES[2]), -1), some_mask(SHAPES[2])
    other = np.where(mask[..., None], x, 1e6)
    ours, theirs = to_numpy(layer(x, training=True, mask=mask)), to_numpy(twin(other, training=True, mask=mask))
    assert_equal_to(ours[mask], theirs[mask], TOLERANCE["float32"])
    assert_equal_to(to_numpy(layer.moving_variance), to_numpy(twin.moving_variance), TOLERANCE["float32"])


def test_far_from_zero_the_variance_keeps_its_digits(spec):
    layer, oracle = spec.build(SHAPES[2])
    x = to_numpy(keras.ops.cast(images(SHAPES[2]) + 4096.0, "float32"))  # Hounsfield units plus an offset
    grad = gradients(SHAPES[2])
    y, grad_x, _ = train(layer, moved(x, -1).astype("float32"), moved(grad, -1).astype("float32"))
    assert_equal_to(back(y, -1), oracle.train(x), 2e-4)  # of 7 digits, 4096 takes four
    assert_equal_to(back(grad_x, -1), oracle.backward(grad)[0], 1e-3)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_without_gamma_or_beta_the_layer_is_the_one_where_they_are_one_and_zero(spec, center, scale):
    layer = spec.layer(center=center, scale=scale, **spec.options)
    twin = spec.layer(**spec.options)
    x, grad = moved(images(SHAPES[2]), -1), moved(gradients(SHAPES[2]), -1)
    ours, theirs = train(layer, x, grad), train(twin, x, grad)
    assert_equal_to(ours[0], theirs[0], TOLERANCE["float32"])
    assert_equal_to(ours[1], theirs[1], TOLERANCE["float32"])
    assert set(ours[2]) == {name for name, there in (("gamma", scale), ("beta", center)) if there}
    assert_equal_to(to_numpy(layer(x)), to_numpy(twin(x)), TOLERANCE["float32"])


def test_its_configuration_builds_the_same_layer_again(spec):
    layer, _ = spec.build(SHAPES[2])
    config = layer.get_config()
    twin = type(layer).from_config(config)
    assert twin.get_config() == config
    twin.build(moved(np.empty(SHAPES[2]), -1).shape)
    layer(moved(images(SHAPES[2]), -1), training=True)
    twin.set_weights(layer.get_weights())
    x, grad = moved(images(SHAPES[2], seed=1), -1), moved(gradients(SHAPES[2]), -1)
    for actual, expected in zip(train(twin, x, grad)[:2], train(layer, x, grad)[:2], strict=True):
        assert_equal_to(actual, expected, 0.0)


@pytest.mark.parametrize("suffix", ["model.keras", "model.weights.h5"])
def test_a_saved_model_continues_exactly_where_it_stood(spec, suffix, tmp_path):
    def build():
        model = keras.Sequential([keras.Input((5, 6, 4)), spec.layer(**spec.options), keras.layers.Flatten()])
        model.compile("sgd", "mse")
        return model

    model, x = build(), moved(images(SHAPES[2]), -1)
    target = np.zeros((len(x), 120))
    model.fit(x, target, epochs=2, verbose=0)
    if suffix == "model.keras":
        model.save(tmp_path / suffix)
        twin = keras.models.load_model(tmp_path / suffix)
    else:
        model.save_weights(tmp_path / suffix)
        twin = build()
        twin.load_weights(tmp_path / suffix)
    assert isinstance(twin.layers[0], type(model.layers[0]))
    assert_equal_to(twin.predict(x, verbose=0), model.predict(x, verbose=0), 0.0)
    assert twin.train_on_batch(x, target) == pytest.approx(model.train_on_batch(x, target), rel=1e-6)
    for ours, theirs in zip(twin.get_weights(), model.get_weights(), strict=True):
        assert_equal_to(ours, theirs, 1e-6)


# What torch's compiler says about itself.
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.* is deprecated:DeprecationWarning",
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
    "ignore:.*The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
def test_fit_compiled_learns_what_fit_uncompiled_learns(spec):
    if spec.variant:
        pytest.skip("the layer is compiled with its other options")
    found = []
    for compiled in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((None, 4)), spec.layer(**spec.options), keras.layers.GlobalAveragePooling1D()]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=compiled)
        x = moved(images((12, CHANNELS, 7)), -1)
        history = model.fit(x, np.ones((12, 4)), batch_size=4, epochs=3, shuffle=False, verbose=0)
        found.append([*history.history["loss"], *np.concatenate([w.ravel() for w in model.get_weights()])])
    assert found[0][2] < found[0][0]
    assert_equal_to(found[1], found[0], 1e-4)


__all__ = ["CHANNELS", "GAMMA", "SHAPES", "TOLERANCE", "LayerSpec", "assert_equal_to", "back", "given", "gradients"]
__all__ += ["images", "moved", "some_mask", *(name for name in dir() if name.startswith("test_"))]
