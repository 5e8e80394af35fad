"""MN008, a bias before a normalization."""

import copy

import pytest
import torch
from torch import nn

import mednorm
from mednorm.examine.rules.mn008_useless_bias import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(8, 2, 6, 6)


def test_a_bias_before_the_layer_is_useless():
    (finding,) = findings(RULE, layer_of(nn.BatchNorm2d(4), around={"before": "conv", "before_has_bias": True}))
    assert (finding.severity, finding.evidence[0].value) == ("info", 4)


@pytest.mark.parametrize("around", [{"before": "conv"}, {}, {"before": "conv", "before_has_bias": True, "calls": 2}])
def test_no_bias_or_one_that_is_not_certain_is_no_finding(around):
    assert said(RULE, layer_of(nn.BatchNorm2d(4), around=around)) == []


def test_a_frozen_layer_keeps_the_bias(images):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    assert len(found_in(RULE, network, images)) == 1
    mednorm.freeze(network)
    assert found_in(RULE, network, images) == []


def test_a_layer_that_subtracts_no_mean_of_its_batch_keeps_the_bias(images):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), mednorm.MovingBatchNorm(4))
    assert found_in(RULE, network, images) == []


@pytest.mark.parametrize("tracks", [True, False])
def test_the_remedy_takes_the_bias_away_and_changes_no_output(images, tracks):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=tracks), nn.ReLU()).double()
    images = images.double()
    nn.init.constant_(network[0].bias, 3.0)
    network(images)
    before = [copy.deepcopy(network).train(mode)(images) for mode in (False, True)]
    (finding,) = found_in(RULE, network, images)
    run(finding.remedy, model=network)
    assert network[0].bias is None
    assert found_in(RULE, network, images) == []
    for mode, expected in zip((False, True), before, strict=True):
        torch.testing.assert_close(network.train(mode)(images), expected, rtol=1e-12, atol=1e-12)
