"""MN011, layers that are frozen by half."""

import pytest
import torch
from torch import nn

import mednorm
from mednorm.examine.rules.mn011_freezing import RULE
from tests.unit.examine.rules.made import found_in, run

IMAGES = torch.randn(4, 1, 8, 8)


@pytest.fixture
def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
    )


def said(network):
    return [(finding.layer, finding.severity) for finding in found_in(RULE, network, IMAGES)]


@pytest.mark.parametrize("training", [True, False])
def test_a_network_in_one_mode_is_no_finding(network, training):
    assert said(network.train(training)) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_in_another_mode_than_most_is_named(network, training):
    network.train(training)[4].train(not training)
    assert said(network) == [("4", "warning")]


@pytest.mark.parametrize("training", [True, False])
def test_the_remedy_for_a_mode_ends_it(network, training):
    network.train(training)[4].train(not training)
    (finding,) = found_in(RULE, network, IMAGES)
    run(finding.remedy, model=network)
    assert said(network.train(training)) == []


def test_frozen_weights_whose_statistics_move_are_a_warning(network):
    network[:2].requires_grad_(False)
    assert said(network) == [("1", "warning")]
    assert said(network.eval()) == [("1", "warning")]  # the next model.train() lets them move


def test_the_remedy_for_moving_statistics_holds_them(network):
    network[:2].requires_grad_(False)
    (finding,) = found_in(RULE, network, IMAGES)
    run(finding.remedy, model=network)
    assert said(network) == []


def test_weights_and_statistics_frozen_by_hand_belong_together(network):
    network[:2].requires_grad_(False)
    network[1].eval()
    assert said(network) == []


def test_statistics_frozen_on_purpose_while_weights_learn_are_no_finding(network):
    mednorm.freeze(network, where="1")
    assert said(network) == []


def test_a_network_that_does_not_learn_at_all_is_no_finding(network):
    assert said(network.requires_grad_(False)) == []


def test_a_layer_without_affine_parameters_is_frozen_by_what_is_before_it():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1))
    assert said(network) == []
    network[0].requires_grad_(False)
    assert said(network) == [("1", "warning")]
