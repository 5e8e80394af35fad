"""BatchNorm passes the suite of every layer, and is torch's batch normalization wherever torch has one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import BatchNorm, Moments
from mednorm.errors import ConfigError, ShapeError
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


# --- mask -------------------------------------------------------------------------------------------------------------


def masks(shape, with_channels):
    drawn = torch.rand(shape if with_channels else (shape[0], *shape[2:])) < 0.7
    drawn[:2] = True  # at least two values in every channel
    return drawn


WITH_AND_WITHOUT_CHANNELS = pytest.mark.parametrize("with_channels", [True, False], ids=["channels", "no channels"])


@WITH_AND_WITHOUT_CHANNELS
def test_a_mask_of_ones_changes_no_bit(with_channels):
    layers = [BatchNorm(CHANNELS, activation="relu") for _ in range(2)]
    x, grad = images(IMAGE), torch.randn(IMAGE)
    ones = torch.ones(IMAGE if with_channels else (4, 5, 6), dtype=torch.bool)
    results = []
    for layer, mask in zip(layers, (None, ones), strict=True):
        results.append(train(lambda_module(lambda v, layer=layer, mask=mask: layer(v, mask)), x, grad))
    for masked, plain in zip(results[1], results[0], strict=True):
        assert_equal_to(masked, plain, 1e-6)
    assert_equal_to(layers[1].running_mean, layers[0].running_mean, 1e-6)
    assert_equal_to(layers[1].running_var, layers[0].running_var, 1e-6)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@WITH_AND_WITHOUT_CHANNELS
@BY_RANK
def test_masked_output_gradients_and_running_statistics_are_the_oracles(shape, torch_layer, with_channels, activation):
    layer = BatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    oracle = BatchNormOracle(CHANNELS, activation=activation)
    oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    mask = masks(shape, with_channels)
    y, grad_x = train_masked(layer, x, mask, grad)
    assert_equal_to(y, oracle.train(to_numpy(x), mask.numpy()), 1e-10)
    expected = oracle.backward(to_numpy(grad))
    for ours, wanted in zip((grad_x, layer.weight.grad, layer.bias.grad), expected, strict=True):
        assert_equal_to(ours, wanted, 1e-10)
    for name, wanted in oracle.buffers().items():
        assert_equal_to(getattr(layer, name), wanted, 1e-10)


def train_masked(layer, x, mask, grad):
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x, mask)
    y.backward(grad)
    return y.detach(), x.grad


@WITH_AND_WITHOUT_CHANNELS
def test_masked_gradients_are_the_finite_differences_to_second_order(with_channels):
    layer = BatchNorm(2, activation="leaky_relu", dtype=torch.float64)
    mask = masks((3, 2, 3), with_channels)
    mask[2] = False
    x = images((3, 2, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: layer(v, mask), x)
    assert torch.autograd.gradgradcheck(lambda v: layer(v, mask), x)


@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "create_graph"])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nan_and_infinity_outside_the_mask_do_not_reach_what_is_kept(activation, garbage, create_graph):
    mask = masks(IMAGE, with_channels=False)
    kept = mask.unsqueeze(1).expand(IMAGE)
    clean = images(IMAGE, torch.float64).masked_fill(~kept, 0)
    results = []
    for x in (clean, clean.masked_fill(~kept, garbage)):
        layer = BatchNorm(CHANNELS, activation=activation, dtype=torch.float64)
        x = x.requires_grad_()
        y = layer(x, mask)
        loss = y[kept].square().sum()  # as a masked loss does
        grads = torch.autograd.grad(loss, (x, layer.weight, layer.bias), create_graph=create_graph)
        results.append((y[kept], grads[0][kept], *grads[1:], layer.running_mean, layer.running_var))
    for with_garbage, without in zip(results[1], results[0], strict=True):
        assert_equal_to(with_garbage, without, 1e-12)


def test_evaluation_needs_no_mask_and_does_not_change_with_one():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE))
    layer.eval()
    x = images(IMAGE, seed=1)
    assert torch.equal(layer(x, masks(IMAGE, with_channels=False)), layer(x))


# --- batches that are not numbers, and the extremes -------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, None], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_batch_not_finite_in_one_channel_moves_no_running_statistic_and_is_counted(bad, momentum):
    layer = BatchNorm(CHANNELS, momentum=momentum)
    layer(images(IMAGE))
    before = bytes_of(layer)
    x = images(IMAGE, seed=1)
    x[1, 2, 0, 0] = bad
    y = layer(x)
    after = bytes_of(layer)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert after[name] == before[name]
    assert layer.num_batches_skipped.item() == 1
    assert y[:, 2].isnan().any()  # a gradient scaler must see it
    assert y[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
def test_the_next_finite_batch_updates_as_if_the_bad_one_had_not_been(momentum):
    disturbed, undisturbed = BatchNorm(CHANNELS, momentum=momentum), BatchNorm(CHANNELS, momentum=momentum)
    bad = images(IMAGE)
    bad[0, 0] = torch.nan
    for layer in (disturbed, undisturbed):
        layer(images(IMAGE, seed=1))
        if layer is disturbed:
            layer(bad)
        layer(images(IMAGE, seed=2))
    ours, wanted = bytes_of(disturbed), bytes_of(undisturbed)
    skipped = {
        name: np.frombuffer(state.pop("num_batches_skipped"), np.int64)[0]
        for name, state in (("disturbed", ours), ("undisturbed", wanted))
    }
    assert ours == wanted
    assert skipped == {"disturbed": 1, "undisturbed": 0}


def test_resetting_the_running_statistics_resets_the_count_of_skipped_batches():
    layer = BatchNorm(CHANNELS)
    layer(torch.full(IMAGE, torch.nan))
    layer.reset_running_stats()
    assert layer.num_batches_skipped.item() == 0


def test_a_layer_built_on_the_meta_device_and_given_memory_starts_like_any_other():
    # to_empty leaves whatever was in memory in every buffer, also in those outside the state_dict.
    layer = BatchNorm(CHANNELS, device="meta")
    assert all(value.is_meta for value in (*layer.parameters(), *layer.buffers()))
    layer.to_empty(device="cpu")
    layer.num_batches_skipped.fill_(123456789)
    layer.reset_parameters()
    assert bytes_of(layer) == bytes_of(BatchNorm(CHANNELS))


def test_output_and_variance_far_from_zero_are_no_worse_than_torchs():
    # Mean 1e4, spread 1: float32 leaves 1e-3 between neighbours, and torch sums in float64.
    for shape, torch_layer in [((64, 3, 7, 7), nn.BatchNorm2d), ((8, 3, 64, 64), nn.BatchNorm2d)]:
        x = torch.randn(shape) + 1e4
        exact = forward(to_numpy(x))
        unbiased = exact.variance * exact.count / (exact.count - 1)
        errors = {}
        for name, layer in (("ours", BatchNorm(3, momentum=1.0)), ("torchs", torch_layer(3, momentum=1.0))):
            y = layer(x)
            errors[name] = np.abs(to_numpy(y) - exact.y).max()
            errors[name + " variance"] = np.abs(to_numpy(layer.running_var) - unbiased).max()
        assert errors["ours"] <= 1.25 * errors["torchs"]
        assert errors["ours variance"] <= max(errors["torchs variance"], 4 * torch.finfo().eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_constant_channel_gives_the_bias_and_finite_gradients(dtype):
    layer = BatchNorm(2, dtype=dtype)
    nn.init.constant_(layer.bias, 0.5)
    x = images((4, 2, 6, 6), dtype)
    x[:, 1] = 1000.1  # no binary fraction, so its mean is not exact by luck
    y, grad_x = train(layer, x, torch.randn(x.shape, dtype=dtype))
    # x and its mean, each scaled by 1/sqrt(eps), are subtracted: what is left is one rounding of that size.
    assert_equal_to(y[:, 1], torch.full((4, 6, 6), 0.5), 1000.1 / 1e-5**0.5 * torch.finfo(dtype).eps / 0.5)
    assert layer.batch_moments.variance[1] == 0
    assert grad_x.isfinite().all()


def test_values_of_1e30_are_normalized_like_any_in_float64():
    x = images(IMAGE, torch.float64) * 1e30
    assert_equal_to(BatchNorm(CHANNELS, dtype=torch.float64)(x), forward(to_numpy(x)).y, 1e-10)


def test_values_of_1e30_whose_variance_float32_cannot_hold_leave_the_running_statistics_alone():
    layer, torchs = BatchNorm(CHANNELS), nn.BatchNorm2d(CHANNELS)
    x = torch.randn(IMAGE) * 1e30
    assert torch.equal(layer(x), torchs(x))  # 0: one over an infinite spread
    assert torchs.running_var.isinf().all()  # torch's layer is lost from here on
    assert bytes_of(layer)["running_var"] == bytes_of(BatchNorm(CHANNELS))["running_var"]
    assert layer.num_batches_skipped.item() == 1


def test_tiny_values_are_held_down_by_eps_as_in_the_oracle():
    x = images(IMAGE) * 1e-20
    assert_equal_to(BatchNorm(CHANNELS)(x), forward(to_numpy(x)).y, 1e-5)


# --- types, devices, memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parameters_and_buffers_have_the_type_asked_for(dtype):
    layer = BatchNorm(CHANNELS, dtype=dtype)
    assert {value.dtype for value in (*layer.parameters(), layer.running_mean, layer.running_var)} == {dtype}
    assert layer.num_batches_tracked.dtype == layer.num_batches_skipped.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_buffers_follow_torchs_to_one_rounding(dtype):
    ours, theirs = BatchNorm(CHANNELS).to(dtype), nn.BatchNorm2d(CHANNELS).to(dtype)
    step = torch.finfo(dtype).eps
    for seed in range(3):
        x = images(IMAGE, dtype, seed=seed)
        assert_equal_to(ours(x), theirs(x), 2 * step)
    assert ours.running_var.dtype == dtype
    assert_equal_to(ours.running_mean, theirs.running_mean, 2 * step)
    assert_equal_to(ours.running_var, theirs.running_var, 2 * step)
    assert_equal_to(ours.eval()(x), theirs.eval()(x), 2 * step)


@pytest.mark.parametrize("parameters", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("values", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_whatever_types_train_together_also_evaluate_together(values, parameters):
    # Regression: torch's kernel refuses mixed types, so that such a network trained and then failed in validation.
    layer = BatchNorm(CHANNELS, momentum=1.0, dtype=parameters)
    oracle = BatchNormOracle(CHANNELS, momentum=1.0)
    x = images(IMAGE, values)
    y = layer(x)
    oracle.train(to_numpy(x))
    oracle.running_mean, oracle.running_var = to_numpy(layer.running_mean), to_numpy(layer.running_var)
    evaluated = layer.eval()(x)
    assert y.dtype == evaluated.dtype == values
    assert_equal_to(evaluated, oracle.evaluate(to_numpy(x)), max(1e-6, torch.finfo(values).eps))


def test_the_backward_pass_keeps_the_input_and_vectors_alone():
    kept = []
    layer = BatchNorm(CHANNELS, activation="relu")
    x = images((4, CHANNELS, 8, 8)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert [t.data_ptr() for t in kept if t.numel() > CHANNELS] == [x.data_ptr()]


def test_batch_moments_hold_mean_variance_and_range_of_the_last_batch():
    layer = BatchNorm(CHANNELS, dtype=torch.float64)
    assert layer.batch_moments is None
    layer(images(IMAGE, torch.float64))
    x = images(IMAGE, torch.float64, seed=1)
    layer(x)
    flat = to_numpy(x).transpose(1, 0, 2, 3).reshape(CHANNELS, -1)
    assert isinstance(layer.batch_moments, Moments)
    assert_equal_to(layer.batch_moments.mean, flat.mean(1), 1e-12)
    assert_equal_to(layer.batch_moments.variance, flat.var(1), 1e-12)
    assert_equal_to(layer.batch_moments.range, np.ptp(flat, 1), 1e-12)


def test_batch_moments_keep_no_graph_alive():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE).requires_grad_())
    assert not any(field.requires_grad for field in layer.batch_moments.fields())


def test_batch_moments_survive_pickling():
    layer = BatchNorm(CHANNELS)
    layer(images(IMAGE))
    assert torch.equal(pickle.loads(pickle.dumps(layer)).batch_moments.m2, layer.batch_moments.m2)


def test_the_printed_layer_names_its_activation():
    assert repr(BatchNorm(3, activation="relu")).endswith("track_running_stats=True, activation='relu')")
    assert "activation" not in repr(BatchNorm(3))


# --- errors say what came ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_wrong_number_of_channels_is_named_with_the_shape_that_came(training):
    layer = BatchNorm(64).train(training)
    with pytest.raises(ShapeError) as caught:
        layer(torch.zeros(2, 32, 8, 8))
    assert str(caught.value) == (
        "BatchNorm(num_features=64): expected 64 channels in dim 1, got 32 (input shape (2, 32, 8, 8)). "
        "Build it with num_features=32."
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_input_without_batch_axis_is_named_with_its_shape(training):
    with pytest.raises(
        ShapeError, match=r"expected 3 channels in dim 1, got shape \(3,\)\. Add the missing batch axis"
    ):
        BatchNorm(3).train(training)(torch.zeros(3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_whole_numbers_are_refused_with_their_type(training):
    # Regression: training rounded the normalized values to whole numbers without a word.
    with pytest.raises(ShapeError, match=r"BatchNorm\(num_features=3\): expected floating-point.*got torch\.int16"):
        BatchNorm(3).train(training)(torch.zeros(4, 3, dtype=torch.int16))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_training_with_the_count_and_shape(shape):
    with pytest.raises(ShapeError) as caught:
        BatchNorm(3)(torch.zeros(shape))
    assert "at least 2 values per channel to take statistics of, got 1" in str(caught.value)
    assert f"(input shape {shape})" in str(caught.value)


def test_one_value_per_channel_is_fine_in_evaluation():
    assert torch.equal(BatchNorm(3, eps=0.0).eval()(torch.ones(1, 3)), torch.ones(1, 3))


def test_a_refused_batch_moves_nothing():
    layer = BatchNorm(3)
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match="got 1 "):
        layer(torch.ones(1, 3))
    assert bytes_of(layer) == before
    assert layer.batch_moments is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_mask_that_is_not_boolean_is_named_with_its_type(dtype):
    with pytest.raises(ShapeError, match=rf"mask: expected a boolean tensor, got {dtype}"):
        BatchNorm(CHANNELS)(images(IMAGE), torch.ones(IMAGE, dtype=dtype))


@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 3, 5, 6), (5, 6), (4, CHANNELS, 5, 6, 1)], ids=str)
def test_a_mask_that_does_not_fit_is_named_with_its_shape_and_the_inputs(shape):
    with pytest.raises(ShapeError) as caught:
        BatchNorm(CHANNELS)(images(IMAGE), torch.ones(shape, dtype=torch.bool))
    assert f"got {shape}" in str(caught.value)
    assert f"fits the input {IMAGE}" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_mask_that_keeps_too_little_of_one_channel_is_refused_with_the_count(kept):
    mask = torch.ones(IMAGE, dtype=torch.bool)
    mask[:, 2] = False
    mask[:kept, 2, 0, 0] = True
    with pytest.raises(
        ShapeError, match=rf"2 values per channel that the mask keeps to take statistics of, got {kept} "
    ):
        BatchNorm(CHANNELS)(images(IMAGE), mask)


@pytest.mark.parametrize("num_features", [0, -2, "3", 2.5, None], ids=repr)
def test_num_features_that_is_no_positive_whole_number_is_named(num_features):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(num_features)
    assert f"num_features to be a whole number of at least 1, got {num_features!r}." in str(caught.value)


@pytest.mark.parametrize("momentum", [2, -0.1, float("nan")], ids=str)
def test_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, momentum=momentum)
    assert f"momentum in [0, 1] or None, got {momentum!r}." in str(caught.value)


@pytest.mark.parametrize("eps", [-1, float("nan"), float("inf")], ids=str)
def test_eps_out_of_range_is_named(eps):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, eps=eps)
    assert f"got {eps!r}." in str(caught.value)


@pytest.mark.parametrize("activation", ["gelu", "ReLU", ""], ids=repr)
def test_an_unknown_activation_is_named_with_the_known_ones(activation):
    with pytest.raises(ConfigError) as caught:
        BatchNorm(3, activation=activation)
    assert str(caught.value) == f"activation: expected one of None, 'relu', 'leaky_relu', got {activation!r}."
