"""Folding keeps what is not the normalization's; what is refused or fails leaves every byte as it was."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.errors import ConfigError
from mednorm.surgery.fold import fold
from mednorm.surgery.freeze import freeze
from tests.unit.surgery.networks import Network, assert_folds, images, seasoned, snapshot


def test_the_same_parameters_are_written_with_their_modes_devices_and_gradients_kept():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False)))
    network.append(nn.BatchNorm2d(4).eval())
    network[2].weight.requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    parameters = network[0].weight, network[0].bias, network[2].weight
    fold(network)
    assert [id(p) for p in (network[0].weight, network[0].bias, network[2].weight)] == [id(p) for p in parameters]
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False]
    assert not any(module.training for module in network.modules())


def test_a_copy_is_folded_and_the_original_stays_as_it_was():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    before = snapshot(network)
    report = fold(network, images(2), inplace=False)
    assert snapshot(network) == before
    assert report.model is not network
    assert type(report.model[1]) is nn.Identity
    torch.testing.assert_close(report.model(images(2)), network(images(2)), rtol=0, atol=1e-5)


def test_folding_in_place_gives_the_network_itself():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    assert fold(network).model is network


def test_frozen_statistics_are_folded_and_their_hooks_are_gone_with_the_norm():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    freeze(network, affine=True)
    assert_folds(network, images(2), [("1", "0", "before")])


def test_neither_random_numbers_nor_the_example_change():
    network = seasoned(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    example, state, drawn = images(2), torch.get_rng_state(), random.getstate()
    fold(network, example)
    assert torch.equal(example, images(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == drawn


def test_a_network_that_draws_random_numbers_draws_the_same_before_and_after():
    network = seasoned(
        Network(lambda net, x: net.norm(net.conv(x)) + torch.rand(()), conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    )
    assert fold(network, images(2)).equivalent


def test_inputs_and_outputs_may_be_nested():
    def run(net, x):
        return {"features": [net.norm(net.conv(x["image"]))], "count": 3}

    network = seasoned(Network(run, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    report = fold(network, ({"image": images(2)},))
    assert report.equivalent
    assert report.scale > 1


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (lambda net: net.train(), "the network (Sequential)"),
        (lambda net: net[1].train(), "'1' (BatchNorm2d)"),
        (lambda net: net[2].train(), "'2' (Dropout)"),
    ],
    ids=["network", "norm", "dropout"],
)
def test_training_mode_is_refused_by_the_name_of_the_first_that_is_in_it(turn, name):
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout()))
    turn(network)
    before = snapshot(network)
    with pytest.raises(ConfigError) as caught:
        fold(network)
    assert f"expected a network in evaluation mode, got {name} in training mode. Call .eval()" in str(caught.value)
    assert snapshot(network) == before


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"model": nn.BatchNorm2d}, "expected a network, got type"),
        ({"seed": 0.5}, "seed to be a whole number, got 0.5"),
        ({"tolerance": 0.0}, "tolerance above 0 and finite, or None, got 0.0"),
        ({"tolerance": float("nan")}, "or None, got nan"),
        ({"example": np.zeros(3)}, "the tuple of the network's inputs, got ndarray"),
        ({"example": ()}, "the tuple of the network's inputs, got tuple"),
        ({"example": torch.zeros(1, 3, 9, 9)}, "expected the network to take the example, got RuntimeError"),
    ],
    ids=["class", "seed", "zero tolerance", "nan tolerance", "array", "empty", "channels"],
)
def test_a_wrong_argument_is_refused_by_its_value(arguments, got):
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    before = snapshot(network)
    with pytest.raises(ConfigError) as caught:
        fold(**{"model": network, **arguments})
    assert got in str(caught.value)
    assert snapshot(network) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_a_scripted_network_is_refused_because_nothing_in_it_can_be_replaced():
    network = torch.jit.script(seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))
    with pytest.raises(ConfigError, match=r"a network in Python, got RecursiveScriptModule\. Fold first"):
        fold(network)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm])
def test_a_norm_alone_is_left_and_said_aloud(norm):
    report = fold(seasoned(norm(4)), images(2))
    assert str(report).startswith("Found nothing to fold: 1 normalization left.\n  the network  ")
    assert report.folded == report.notes == ()


class Twice(BatchNorm):
    def forward(self, input, mask=None):
        return 2 * super().forward(input, mask)


def test_a_layer_that_is_not_what_its_class_says_changes_nothing():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), Twice(4)))
    before = snapshot(network)
    with pytest.raises(ConfigError, match=r"expected '3' \(Twice\) folded into '2' \(Conv2d\) to give the same"):
        fold(network)
    assert snapshot(network) == before


def test_a_network_that_differs_after_folding_is_put_back_bit_by_bit():
    def run(net, x):  # whatever tracing cannot see: here, that the class of a layer is looked at
        y = net.norm(net.conv(x))
        return y if isinstance(net.norm, nn.BatchNorm2d) else y + 1

    network = seasoned(Network(run, conv=nn.Conv2d(4, 4, 3, bias=False), norm=nn.BatchNorm2d(4)))
    before = snapshot(network)
    with pytest.raises(ConfigError, match=r"at up to .*, got a difference of 1 after folding norm\. Nothing was cha"):
        fold(network, images(2))
    assert snapshot(network) == before


def test_a_network_that_fails_after_folding_is_put_back_bit_by_bit():
    def run(net, x):
        return net.norm(net.conv(x)) * net.norm.num_features

    network = seasoned(Network(run, conv=nn.Conv2d(4, 4, 3, bias=False), norm=nn.BatchNorm2d(4)))
    before = snapshot(network)
    with pytest.raises(ConfigError, match="expected the folded network to take the example, got AttributeError"):
        fold(network, images(2))
    assert snapshot(network) == before


def test_a_weight_that_repeats_its_numbers_without_copying_is_folded():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    network[0].weight = nn.Parameter(network[0].weight[:1].detach().clone().expand(4, 4, 3, 3))
    assert_folds(network, images(2), [("1", "0", "before")])


def test_a_tolerance_of_ones_own_is_what_differences_are_held_to():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(ConfigError, match=r"within a relative 1e-12, got a difference of .*e-0[78]"):
        fold(network, tolerance=1e-12)
    assert fold(network, images(2), tolerance=0.5).tolerance == 0.5
