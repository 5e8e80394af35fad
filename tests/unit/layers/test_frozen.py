"""FrozenBatchNorm passes the suite of every layer; its statistics stand still and its parameters learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mednorm import BatchNorm, FrozenBatchNorm
from mednorm.errors import ConfigError
from tests.harness import *  # noqa: F403
from tests.harness import CHANNELS, SHAPES, LayerSpec, assert_equal_to, bytes_of, images, to_numpy, train
from tests.oracle.family import FrozenBatchNormOracle

IMAGE = SHAPES[2]
SPECS = [
    LayerSpec("plain", FrozenBatchNorm, FrozenBatchNormOracle),
    LayerSpec(
        "relu, eps",
        FrozenBatchNorm,
        FrozenBatchNormOracle,
        {"activation": "relu", "eps": 1e-2},
        torch_options={"eps": 1e-2},
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def loaded(**options):
    """A frozen layer with the statistics of a trained one."""
    source = BatchNorm(CHANNELS, momentum=0.5)
    for seed in range(3):
        source(images(IMAGE, seed=seed))
    layer = FrozenBatchNorm(CHANNELS, **options)
    layer.load_state_dict(source.state_dict())
    return layer, source


def test_training_mode_changes_nothing():
    layer, source = loaded()
    x, before = images(IMAGE, seed=9), bytes_of(layer)
    assert torch.equal(layer.train()(x), source.eval()(x))
    assert torch.equal(layer.eval()(x), source(x))
    assert bytes_of(layer) == before


def test_gradients_with_loaded_statistics_are_the_oracles():
    layer, _ = loaded(activation="relu", dtype=torch.float64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    oracle = FrozenBatchNormOracle(CHANNELS, activation="relu")
    oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
    oracle.running_mean, oracle.running_var = to_numpy(layer.running_mean), to_numpy(layer.running_var)
    x, grad = images(IMAGE, torch.float64), torch.randn(IMAGE, dtype=torch.float64)
    y, grad_x = train(layer, x, grad)
    assert_equal_to(y, oracle.train(to_numpy(x)), 1e-12)
    wanted = oracle.backward(to_numpy(grad))
    for ours, theirs in zip((grad_x, layer.weight.grad, layer.bias.grad), wanted, strict=True):
        assert_equal_to(ours, theirs, 1e-12)


def test_an_optimizer_moves_gamma_and_beta_and_no_statistic():
    layer, _ = loaded()
    before = bytes_of(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(images(IMAGE)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in bytes_of(layer).items() if value != before[name]}
    assert changed == {"weight", "bias"}


def test_a_single_value_per_channel_is_enough_in_training():
    layer, source = loaded()
    x = images((1, CHANNELS))
    assert torch.equal(layer.train()(x), source.eval()(x))


def test_an_image_does_not_depend_on_its_neighbours_in_training():
    layer, _ = loaded()
    x = images(IMAGE)
    assert_equal_to(torch.cat([layer(one) for one in x.split(1)]), layer(x), 1e-6)


def test_a_mask_changes_nothing():
    layer, _ = loaded()
    x = images(IMAGE)
    assert torch.equal(layer(x, torch.rand(4, 5, 6) < 0.5), layer(x))


def test_frozen_without_statistics_is_refused_with_what_came():
    with pytest.raises(ConfigError, match="FrozenBatchNorm: expected track_running_stats=True, got False"):
        FrozenBatchNorm(3, track_running_stats=False)
