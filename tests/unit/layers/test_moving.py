"""MovingBatchNorm passes the suite of every layer; it trains by moving statistics in both directions."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mednorm import BatchNorm, MovingBatchNorm
from mednorm.errors import ConfigError
from tests.harness import *  # noqa: F403
from tests.harness import (
    CHANNELS,
    COMPILERS,
    COMPILING,
    SHAPES,
    LayerSpec,
    assert_compiles_to_the_same_numbers,
    assert_equal_to,
    bytes_of,
    images,
    to_numpy,
    train,
)
from tests.oracle.moving import MovingBatchNormOracle

IMAGE = SHAPES[2]
SPECS = [
    LayerSpec("plain", MovingBatchNorm, MovingBatchNormOracle, derivative=False),
    LayerSpec(
        "every second step, window of 2, leaky relu, cumulative",
        MovingBatchNorm,
        MovingBatchNormOracle,
        {"refresh_every": 2, "window": 2, "activation": "leaky_relu", "momentum": None},
        torch_options={"momentum": None},
        derivative=False,
    ),
    LayerSpec(
        "centred weights, without parameters",
        MovingBatchNorm,
        MovingBatchNormOracle,
        {"centering": "weights", "affine": False},
        torch_options={"affine": False},
        derivative=False,
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def made(**options):
    return MovingBatchNorm(CHANNELS, **options, dtype=torch.float64)


def batches(count, scale=1.0):
    """Batches that drift, with gradients."""
    for step in range(count):
        yield (
            images(IMAGE, torch.float64, seed=step) * (1 + scale * step) + step,
            torch.randn(IMAGE, dtype=torch.float64),
        )


@pytest.mark.parametrize("backend", [name for name in COMPILERS if name != "aot_eager"])
@COMPILING
def test_inductor_compiles_training_to_the_same_numbers(backend):
    assert_compiles_to_the_same_numbers(SPECS[1], backend)


# --- forward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"refresh_every": 3}, {"activation": "relu", "centering": "weights"}], ids=str)
def test_training_gives_what_evaluation_gives_afterwards(options):
    layer = made(**options)
    for x, _ in batches(5):
        y = layer.train()(x)
        assert_equal_to(y, layer.eval()(x), 1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_nothing_of_the_initial_statistics_is_left_after_the_first_step(momentum):
    layer = made(momentum=momentum)
    x = 1000 + images(IMAGE, torch.float64)
    layer(x)
    assert_equal_to(layer.running_mean, x.mean((0, 2, 3)), 1e-12)
    assert_equal_to(layer.running_var, x.var((0, 2, 3)), 1e-10)


def test_the_statistics_stand_still_between_refreshes():
    layer = made(refresh_every=3)
    moved = []
    for x, _ in batches(7):
        before = bytes_of(layer)["running_mean"]
        layer(x)
        moved.append(bytes_of(layer)["running_mean"] != before)
    assert moved == [True, False, False, True, False, False, True]
    assert layer.num_batches_tracked == 3


def test_between_refreshes_a_single_image_passes_whatever_its_neighbours():
    layer = made(refresh_every=100)
    layer(images(IMAGE, torch.float64))
    x = images((3, CHANNELS), torch.float64)
    assert_equal_to(torch.cat([layer(one) for one in x.split(1)]), layer(x), 1e-12)


def test_centred_weights_leave_the_mean_at_zero_and_follow_the_mean_square():
    layer = made(centering="weights", momentum=0.25)
    (x, _), (later, _) = batches(2)
    layer(x)
    assert_equal_to(layer.running_var, x.square().mean((0, 2, 3)), 1e-12)
    layer(later)
    new = 0.25 / (1 - 0.75**2)
    wanted = (1 - new) * x.square().mean((0, 2, 3)) + new * later.square().mean((0, 2, 3))
    assert_equal_to(layer.running_var, wanted, 1e-12)
    assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))


# --- backward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"window": 3, "refresh_every": 2, "activation": "relu"}, {"centering": "weights", "window": 2}],
    ids=str,
)
def test_gradients_of_many_steps_are_the_oracles(options):
    layer, oracle = made(**options), MovingBatchNormOracle(CHANNELS, **options)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
    for x, grad in batches(6, scale=0.2):
        y, grad_x = train(layer, x, grad)
        assert_equal_to(y, oracle.train(to_numpy(x)), 1e-10)
        wanted = oracle.backward(to_numpy(grad))
        for ours, theirs in zip((grad_x, layer.weight.grad, layer.bias.grad), wanted, strict=True):
            assert_equal_to(ours, theirs, 1e-10)


def test_the_first_gradient_is_batch_normalizations_but_for_the_unbiased_variance():
    layer, plain = made(), BatchNorm(CHANNELS, dtype=torch.float64)
    ((x, grad),) = batches(1)
    y, grad_x = train(layer, x, grad)
    y_plain, grad_plain = train(plain, x, grad)
    biased, unbiased = (x.var((0, 2, 3), correction=c).view(1, -1, 1, 1) + 1e-5 for c in (0, 1))
    assert_equal_to(y, y_plain * (biased / unbiased).sqrt(), 1e-12)
    assert_equal_to(grad_x, grad_plain * (biased / unbiased).sqrt(), 1e-10)


def test_a_gradient_that_is_no_number_does_not_stay_in_the_window():
    layer, twin = made(window=4), made(window=4)
    (x, grad), (later, of_later) = batches(2)
    for each in (layer, twin):
        train(each, x, grad)
    broken = grad.clone()
    broken[0, 0, 0, 0] = torch.inf
    _, grad_x = train(layer, x, broken)
    assert not grad_x[:, 0].isfinite().all()  # a gradient scaler must see it
    twin(x)  # its statistics move as well
    assert_equal_to(train(layer, later, of_later)[1], train(twin, later, of_later)[1], 1e-12)


def test_a_layer_pickled_in_the_middle_of_its_window_goes_on_to_the_same_bytes():
    layer = made(window=4, refresh_every=2)
    for x, grad in batches(3):
        train(layer, x, grad)
    twin = pickle.loads(pickle.dumps(layer))
    for x, grad in batches(6, scale=2):
        for ours, wanted in zip(train(twin, x, grad), train(layer, x, grad), strict=True):
            assert torch.equal(ours, wanted)
    assert bytes_of(twin) == bytes_of(layer)


def test_the_window_is_no_part_of_the_state_and_a_reset_empties_it():
    layer, fresh = made(window=2, refresh_every=2), made(window=2, refresh_every=2)
    assert list(layer.state_dict()) == list(BatchNorm(CHANNELS).state_dict())
    for x, grad in batches(3):
        train(layer, x, grad)
    layer.reset_running_stats()
    assert bytes_of(layer) == bytes_of(fresh)
    for x, grad in batches(2):
        for ours, wanted in zip(train(layer, x, grad), train(fresh, x, grad), strict=True):
            assert torch.equal(ours, wanted)


def test_evaluation_and_its_gradients_leave_the_window_alone():
    layer = made(window=4)
    for x, grad in batches(2):
        train(layer, x, grad)
    layer.eval()
    before = bytes_of(layer)
    train(layer, x, grad)
    assert bytes_of(layer) == before


def test_activation_checkpointing_gives_the_same_gradient_and_moves_once():
    layer, twin = made(window=3), made(window=3)
    for x, grad in batches(3):
        leaf = x.requires_grad_()
        (wanted,) = torch.autograd.grad(twin(leaf), leaf, grad)
        (found,) = torch.autograd.grad(checkpoint(layer, leaf, use_reentrant=False), leaf, grad)
        assert_equal_to(found, wanted, 1e-12)
    assert bytes_of(layer) == bytes_of(twin)


def test_a_step_between_forward_and_backward_does_not_change_the_gradient():
    layer, twin = made(), made()
    x = images(IMAGE, torch.float64).requires_grad_()
    (wanted,) = torch.autograd.grad(twin(x).sin().sum(), x)
    y = layer(x)
    with torch.no_grad():
        layer(100 * images(IMAGE, torch.float64, seed=1))
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    assert_equal_to(found, wanted, 1e-12)


def test_second_derivatives_are_refused():
    x = images(IMAGE, torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(made()(x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", None, True], ids=repr)
@pytest.mark.parametrize("name", ["refresh_every", "window"])
def test_a_count_that_is_no_positive_whole_number_is_named(name, value):
    with pytest.raises(ConfigError) as caught:
        MovingBatchNorm(3, **{name: value})
    assert str(caught.value) == (f"MovingBatchNorm: expected {name} to be a whole number of at least 1, got {value!r}.")


@pytest.mark.parametrize("centering", ["weight", None, ""], ids=repr)
def test_an_unknown_centering_is_named_with_the_known_ones(centering):
    with pytest.raises(ConfigError, match=r"'mean' or 'weights', got ") as caught:
        MovingBatchNorm(3, centering=centering)
    assert f"got {centering!r}." in str(caught.value)


def test_moving_without_statistics_is_refused_with_what_came():
    with pytest.raises(ConfigError, match="MovingBatchNorm: expected track_running_stats=True, got False"):
        MovingBatchNorm(3, track_running_stats=False)


def test_the_printed_layer_names_what_sets_it_apart():
    printed = repr(MovingBatchNorm(3, refresh_every=2, window=4, centering="weights"))
    assert printed.endswith("refresh_every=2, window=4, centering='weights')")
