"""BatchRenorm passes the suite of every layer; r and d follow a schedule and are constants to the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mednorm import BatchNorm, BatchRenorm
from mednorm.errors import ConfigError
from mednorm.layers.renorm import set_total_steps
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
from tests.oracle.family import BatchRenormOracle

IMAGE = SHAPES[2]
UNCLIPPED = {"schedule": 0, "r_max": 1e9, "d_max": 1e9}
CLIPPED = {"schedule": 0, "r_max": 1.5, "d_max": 0.5}
MEAN, VAR = (-2.5, -1.2, 1.1, 0.0), (0.5, 2.0, 6.0, 3.0)  # of `images` roughly, so that some channels are clipped


def begun(num_features, **options):
    """A layer a hundred steps into its training, so that r and d are at work from the first batch on."""
    layer = BatchRenorm(num_features, **options)
    layer.running_mean.copy_(torch.tensor(MEAN))
    layer.running_var.copy_(torch.tensor(VAR))
    layer.num_batches_tracked.fill_(100)
    return layer


def begun_oracle(num_features, **options):
    oracle = BatchRenormOracle(num_features, **options)
    oracle.running_mean, oracle.running_var, oracle.num_batches_tracked = (*to_numpy(torch.tensor([MEAN, VAR])), 100)
    return oracle


SPECS = [
    LayerSpec(  # begins as BatchNorm, and is wide open at the fifth step
        "half of eight steps, without parameters",
        BatchRenorm,
        BatchRenormOracle,
        {"schedule": 0.5, "total_steps": 8, "affine": False},
        torch_options={"affine": False},
    ),
    LayerSpec(
        "clipped, leaky relu, cumulative",
        begun,
        begun_oracle,
        {**CLIPPED, "activation": "leaky_relu", "momentum": None},
        torch_options={"momentum": None},
        derivative=False,
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


@pytest.mark.parametrize("backend", [name for name in COMPILERS if name != "aot_eager"])
@COMPILING
def test_inductor_compiles_training_to_the_same_numbers(backend):
    # The compiled backward pass may compute r and d again, after the running statistics have moved.
    assert_compiles_to_the_same_numbers(SPECS[1], backend)


# --- the schedule -----------------------------------------------------------------------------------------------------

CLIPS = [(0, 1, 0), (10, 1, 0), (30, 1 + 2 * 20 / 70, 2.5), (50, 1 + 2 * 40 / 70, 5), (80, 3, 5), (10**6, 3, 5)]


@pytest.mark.parametrize("options", [{"schedule": 80}, {"schedule": 0.5, "total_steps": 160}], ids=["steps", "share"])
@pytest.mark.parametrize(("step", "r", "d"), CLIPS)
def test_the_clips_open_from_an_eighth_on_d_to_five_eighths_and_r_to_the_end(options, step, r, d):
    layer = BatchRenorm(CHANNELS, **options)
    layer.num_batches_tracked.fill_(step)
    assert [clip.item() for clip in layer.clips()] == pytest.approx([r, d], rel=1e-12)


@pytest.mark.parametrize("schedule", [0, 0.0])
def test_without_a_schedule_the_first_step_is_batch_normalization_and_the_second_wide_open(schedule):
    layer, plain = (
        made(CHANNELS, dtype=torch.float64, **options)
        for made, options in ((BatchRenorm, {"schedule": schedule, "total_steps": 9}), (BatchNorm, {}))
    )
    x = images(IMAGE, torch.float64)
    assert_equal_to(layer(x), plain(x), 1e-12)
    assert [clip.item() for clip in layer.clips()] == [3, 5]


def test_a_share_without_the_runs_length_is_refused_with_the_share_and_moves_nothing():
    layer = BatchRenorm(CHANNELS, schedule=0.25)
    before = bytes_of(layer)
    with pytest.raises(ConfigError, match=r"BatchRenorm\(num_features=4\).*schedule=0\.25.*got\s+total_steps=None"):
        layer(images(IMAGE))
    assert bytes_of(layer) == before
    layer.eval()(images(IMAGE))  # needs no schedule


def test_the_runs_length_is_told_to_every_layer_of_a_network_at_once():
    network = nn.Sequential(BatchRenorm(2, schedule=0.5), nn.Sequential(BatchRenorm(2), BatchNorm(2)))
    assert set_total_steps(network, 80) == 2
    network[0].num_batches_tracked.fill_(25)
    assert network[0].clips()[1].item() == 5
    assert set_total_steps(nn.Linear(1, 1), 80) == 0


def test_a_layer_that_loads_long_trained_statistics_is_wide_open_at_once():
    source = BatchNorm(CHANNELS, dtype=torch.float64)
    for seed in range(3):
        source(images(IMAGE, torch.float64, seed=seed))
    source.num_batches_tracked.fill_(20_000)
    layer = BatchRenorm(CHANNELS, r_max=1e9, d_max=1e9, dtype=torch.float64)
    layer.load_state_dict(source.state_dict(), strict=True)
    x = images(IMAGE, torch.float64, seed=9)
    assert_equal_to(layer(x), source.eval()(x), 1e-12)


# --- r and d ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu"])
def test_unclipped_training_equals_the_evaluation_before_the_step(activation):
    layer = begun(CHANNELS, **UNCLIPPED, activation=activation, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = images(IMAGE, torch.float64)
    expected = layer.eval()(x)
    assert_equal_to(layer.train()(x), expected, 1e-12)
    assert (layer.running_mean - torch.tensor(MEAN)).abs().min() > 1e-3  # and then it moved


@pytest.mark.parametrize(
    ("mean", "var", "shift", "scale"),
    [
        (0.0, 1.0, 0.0, 2.0),  # σ_B/σ = 2, above the clip of 1.5
        (0.0, 9.0, 0.0, 2 / 3),  # 2/3, just at 1/1.5
        (0.0, 36.0, 0.0, 1 / 3),
        (-10.0, 4.0, 10 / 2, 1.0),  # (μ_B − μ)/σ = 5
        (0.5, 4.0, -0.25, 1.0),
        (10.0, 4.0, -10 / 2, 1.0),
    ],
)
def test_r_and_d_are_the_quotients_clipped_at_both_ends(mean, var, shift, scale):
    layer = BatchRenorm(1, eps=0.0, affine=False, **CLIPPED, dtype=torch.float64)
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(var)
    layer.num_batches_tracked.fill_(1)
    x = torch.tensor([[-2.0], [2.0], [-2.0], [2.0]], dtype=torch.float64)  # mean 0, deviation 2
    r, d = min(max(scale, 1 / 1.5), 1.5), min(max(shift, -0.5), 0.5)
    assert_equal_to(layer(x), x / 2 * r + d, 1e-12)


def renormalized(layer, x):
    """The paper's formula in differentiable operators, r and d taken out of the graph; before the layer's own step."""
    axes, shape = (0, 2, 3), (1, -1, 1, 1)
    mean, std = x.mean(axes), (x.var(axes, correction=0) + layer.eps).sqrt()
    running_std = (layer.running_var + layer.eps).sqrt()
    r = (std / running_std).clamp(1 / layer.r_max, layer.r_max).detach().view(shape)
    d = ((mean - layer.running_mean) / running_std).clamp(-layer.d_max, layer.d_max).detach().view(shape)
    corrected = (x - mean.view(shape)) / std.view(shape) * r + d
    return nn.functional.leaky_relu(layer.weight.view(shape) * corrected + layer.bias.view(shape), 0.01)


def test_first_and_second_derivatives_take_r_and_d_as_constants():
    layer = begun(CHANNELS, **CLIPPED, activation="leaky_relu", dtype=torch.float64)
    nn.init.normal_(layer.weight)
    x = images(IMAGE, torch.float64).requires_grad_()
    sources, grad = (x, layer.weight, layer.bias), torch.randn(IMAGE, dtype=torch.float64)
    found = []
    for y in (renormalized(layer, x), layer(x)):  # the layer last: its step moves what both read
        first = torch.autograd.grad(y, sources, grad, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), sources)
        found.append((y, *first, *second))
    for ours, wanted in zip(found[1], found[0], strict=True):
        assert_equal_to(ours, wanted, 1e-10)


def test_several_clipped_steps_give_the_oracles_gradients():
    layer, oracle = begun(CHANNELS, **CLIPPED, dtype=torch.float64), begun_oracle(CHANNELS, **CLIPPED)
    for step in range(4):
        x, grad = images(IMAGE, torch.float64, seed=step) * (1 + step), torch.randn(IMAGE, dtype=torch.float64)
        y, grad_x = train(layer, x, grad)
        assert_equal_to(y, oracle.train(to_numpy(x)), 1e-10)
        for ours, wanted in zip(
            (grad_x, layer.weight.grad, layer.bias.grad), oracle.backward(to_numpy(grad)), strict=True
        ):
            assert_equal_to(ours, wanted, 1e-10)


def test_a_step_between_forward_and_backward_does_not_change_the_gradient():
    # Regression guard: r and d belong to their forward pass, though the running statistics have moved on.
    layer, twin = (begun(CHANNELS, **CLIPPED, dtype=torch.float64) for _ in range(2))
    x = images(IMAGE, torch.float64).requires_grad_()
    (wanted,) = torch.autograd.grad(twin(x).sin().sum(), x)
    y = layer(x)
    layer(100 * images(IMAGE, torch.float64, seed=1))
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    assert_equal_to(found, wanted, 1e-12)


def test_activation_checkpointing_gives_the_same_gradient_and_moves_once():
    layer, twin = (begun(CHANNELS, **CLIPPED, dtype=torch.float64) for _ in range(2))
    x = images(IMAGE, torch.float64).requires_grad_()
    (wanted,) = torch.autograd.grad(twin(x).sin().sum(), x)
    (found,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sin().sum(), x)
    assert_equal_to(found, wanted, 1e-12)
    assert bytes_of(layer) == bytes_of(twin)


def test_without_running_statistics_it_is_batch_normalization():
    layer, plain = (made(CHANNELS, track_running_stats=False, dtype=torch.float64) for made in (BatchRenorm, BatchNorm))
    for seed in range(2):
        x = images(IMAGE, torch.float64, seed=seed)
        assert_equal_to(layer(x), plain(x), 1e-12)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("r_max", value) for value in (0.5, -1, float("nan"), float("inf"))),
        *(("d_max", value) for value in (-0.1, float("nan"), float("inf"))),
        *(("schedule", value) for value in (-1, 1.5, -0.5, float("nan"), "1000", None, True)),
        *(("total_steps", value) for value in (0, -3, 2.5, "9", True)),
    ],
    ids=repr,
)
def test_an_argument_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ConfigError) as caught:
        BatchRenorm(3, **{name: value})
    assert f"BatchRenorm: expected {name}" in str(caught.value)
    assert f"got {value!r}." in str(caught.value)


def test_the_printed_layer_names_its_clips_and_schedule():
    assert repr(BatchRenorm(3, r_max=2.0, schedule=0.25)).endswith("r_max=2.0, d_max=5.0, schedule=0.25)")
