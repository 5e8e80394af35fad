"""BatchNorm passes the suite of every layer, and is torch's batch normalization wherever torch has one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import BatchNorm
from tests.harness import *  # noqa: F403
from tests.harness import (
    CHANNELS,
    COMPILERS,
    COMPILING,
    TOLERANCE,
    LayerSpec,
    assert_compiles_to_the_same_numbers,
    assert_equal_to,
    bytes_of,
    images,
    to_numpy,
    train,
)
from tests.oracle.batch_norm import BatchNormOracle, forward

SPECS = [
    LayerSpec("plain", BatchNorm, BatchNormOracle),
    LayerSpec("relu", BatchNorm, BatchNormOracle, {"activation": "relu"}),
    LayerSpec(
        "leaky relu, cumulative",
        BatchNorm,
        BatchNormOracle,
        {"activation": "leaky_relu", "negative_slope": 0.2, "momentum": None, "eps": 1e-3},
        torch_options={"momentum": None, "eps": 1e-3},
    ),
    LayerSpec(
        "without parameters",
        BatchNorm,
        BatchNormOracle,
        {"affine": False, "momentum": 0.5},
        torch_options={"affine": False, "momentum": 0.5},
    ),
]
RANKED = [
    ((9, CHANNELS), nn.BatchNorm1d),
    ((5, CHANNELS, 11), nn.BatchNorm1d),
    ((4, CHANNELS, 5, 6), nn.BatchNorm2d),
    ((2, CHANNELS, 3, 4, 5), nn.BatchNorm3d),
]
BY_RANK = pytest.mark.parametrize(("shape", "torch_layer"), RANKED, ids=["N-C", "1d", "2d", "3d"])
ACTIVATIONS = {"relu": torch.relu, "leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, 0.01)}
IMAGE = (4, CHANNELS, 5, 6)


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def beside_torch(torch_layer, dtype=torch.float64, **options):
    """Our layer and torch's, with the same parameters away from 1 and 0."""
    ours, theirs = BatchNorm(CHANNELS, **options, dtype=dtype), torch_layer(CHANNELS, **options, dtype=dtype)
    if theirs.affine:
        nn.init.normal_(theirs.weight, 1, 0.5)
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


# --- the same as torch ------------------------------------------------------------------------------------------------


@BY_RANK
def test_output_and_gradients_are_torchs(shape, torch_layer):
    ours, theirs = beside_torch(torch_layer)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    for mine, wanted in zip(train(ours, x, grad), train(theirs, x, grad), strict=True):
        assert_equal_to(mine, wanted, 1e-12)
    assert_equal_to(ours.weight.grad, theirs.weight.grad, 1e-12)
    assert_equal_to(ours.bias.grad, theirs.bias.grad, 1e-12)


OPTIONS = {
    "defaults": {},
    "eps": {"eps": 0.1},
    "momentum 0": {"momentum": 0.0},
    "momentum 1": {"momentum": 1.0},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False},
    "no tracking": {"track_running_stats": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@BY_RANK
def test_training_and_inference_after_four_steps_are_torchs_with_every_option(shape, torch_layer, options):
    ours, theirs = beside_torch(torch_layer, **options)
    for step in range(4):
        x = images(shape, torch.float64, seed=step) * (1 + step)
        assert_equal_to(ours(x), theirs(x), 1e-12)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, wanted in theirs.state_dict().items():
        assert_equal_to(ours.state_dict()[name], wanted, 1e-12)
    x = images(shape, torch.float64, seed=99)
    assert_equal_to(ours.eval()(x), theirs.eval()(x), 1e-12)


def test_gradients_in_evaluation_are_torchs():
    ours, theirs = beside_torch(nn.BatchNorm2d)
    x, grad = images(IMAGE, torch.float64), torch.randn(IMAGE, dtype=torch.float64)
    ours(x), theirs(x)
    for mine, wanted in zip(train(ours.eval(), x, grad), train(theirs.eval(), x, grad), strict=True):
        assert_equal_to(mine, wanted, 1e-12)
    assert_equal_to(ours.weight.grad, theirs.weight.grad, 1e-12)


def test_without_tracking_evaluation_uses_the_batch_and_remembers_it():
    layer = BatchNorm(CHANNELS, track_running_stats=False, dtype=torch.float64).eval()
    x = images(IMAGE, torch.float64)
    assert_equal_to(layer(x), forward(to_numpy(x)).y, 1e-10)
    assert_equal_to(layer.batch_moments.mean, x.mean((0, 2, 3)), 1e-10)


def test_statistics_taken_away_after_construction_mean_the_batchs_own_as_in_torch():
    ours, theirs = beside_torch(nn.BatchNorm2d)
    for layer in (ours, theirs):  # what test-time adaptation does to a trained layer
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    x = images(IMAGE, torch.float64)
    assert_equal_to(ours(x), theirs(x), 1e-12)
    assert_equal_to(ours.eval()(x), theirs.eval()(x), 1e-12)


def test_tracking_turned_off_after_construction_holds_the_running_statistics_still_as_in_torch():
    ours, theirs = beside_torch(nn.BatchNorm2d)
    x = images(IMAGE, torch.float64)
    for layer in (ours, theirs):
        layer(x)
        layer.track_running_stats = False
    before = bytes_of(ours)
    assert_equal_to(ours(2 * x), theirs(2 * x), 1e-12)
    assert bytes_of(ours) == before
    assert_equal_to(ours.eval()(x), theirs.eval()(x), 1e-12)


def test_a_layer_set_to_evaluation_inside_a_training_network_neither_moves_nor_uses_the_batch():
    network = nn.Sequential(BatchNorm(CHANNELS), BatchNorm(CHANNELS))
    network(images(IMAGE))
    network.train()
    network[0].eval()
    before, moving = bytes_of(network[0]), bytes_of(network[1])
    x = images(IMAGE, seed=1)
    alone = network[0](x[:1])
    network(x).square().sum().backward()
    assert bytes_of(network[0]) == before
    assert bytes_of(network[1])["running_mean"] != moving["running_mean"]
    assert torch.equal(network[0](x)[:1], alone)
    assert network[0].weight.grad.abs().min() > 0


def test_autocast_to_bfloat16_gives_torchs_types_and_numbers():
    ours = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), BatchNorm(CHANNELS))
    theirs = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 9, 9)
    outputs = []
    for network in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        y.float().square().sum().backward()
        outputs.append(y)
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    assert_equal_to(outputs[0], outputs[1], TOLERANCE[torch.bfloat16])
    assert_equal_to(ours[1].running_var, theirs[1].running_var, TOLERANCE[torch.float32])
    assert_equal_to(ours[1].weight.grad, theirs[1].weight.grad, 1e-2)  # two bfloat16 roundings of y stand before it


def test_it_is_found_by_whatever_looks_for_torchs_batch_normalization():
    assert isinstance(BatchNorm(3), _BatchNorm)


def test_state_dict_keys_are_torchs_in_torchs_order():
    assert list(BatchNorm(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_torchs_own_recalibration_runs_on_it_to_the_same_buffers():
    ours, theirs = beside_torch(nn.BatchNorm2d)
    batches = [images(IMAGE, torch.float64, seed=seed) for seed in range(3)]
    for layer in (ours, theirs):
        layer(10 * batches[0])
        torch.optim.swa_utils.update_bn(batches, layer)
    for name, wanted in theirs.state_dict().items():
        assert_equal_to(ours.state_dict()[name], wanted, 1e-12)
    assert ours.momentum == 0.1


@pytest.mark.parametrize("backend", [name for name in COMPILERS if name != "aot_eager"])
@COMPILING
def test_inductor_compiles_training_with_relu_to_the_same_numbers(backend):
    assert_compiles_to_the_same_numbers(SPECS[1], backend)


# --- fused activation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@BY_RANK
def test_the_fused_activation_equals_the_activation_behind(shape, torch_layer, activation, training):
    fused = BatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
    plain = BatchNorm(CHANNELS, dtype=torch.float64)
    for layer in (fused, plain):
        nn.init.constant_(layer.weight, -0.75)  # a negative weight turns around which values are cut
        nn.init.constant_(layer.bias, 0.25)
        layer(images(shape, torch.float64))
        layer.train(training)
    x, grad = images(shape, torch.float64, seed=1), torch.randn(shape, dtype=torch.float64)
    behind = train(lambda_module(lambda v: ACTIVATIONS[activation](plain(v))), x, grad)
    plain_grads = [parameter.grad for parameter in plain.parameters()]
    for ours, wanted in zip(train(fused, x, grad), behind, strict=True):
        assert_equal_to(ours, wanted, 1e-12)
    for parameter, wanted in zip(fused.parameters(), plain_grads, strict=True):
        assert_equal_to(parameter.grad, wanted, 1e-12)


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def test_fused_relu_cuts_minus_infinity_to_zero_in_evaluation_as_torchs_does():
    # Regression: as a leaky ReLU of slope 0 it gave 0 times infinity, NaN.
    layer = BatchNorm(1, activation="relu").eval()
    assert layer(torch.tensor([[-torch.inf], [1.0]]))[0].item() == 0


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
def test_an_infinite_gradient_where_relu_is_closed_does_not_pass_as_in_torch(create_graph):
    # Regression: the closed side multiplied by 0, and 0 times infinity is NaN in the whole channel.
    layer = BatchNorm(1, activation="relu")
    x = torch.tensor([[-1.0], [0.5], [2.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x), x, torch.tensor([[torch.inf], [1.0], [1.0]]), create_graph=create_graph)
    assert grad.isfinite().all()
