"""MN005, dead or constant channels."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import mednorm
from mednorm.examine.rules.mn005_dead_channels import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, probed_of, run, said


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(16, 8, 6, 6)


def norm(**values):
    """Eight channels with γ or β set in some."""
    layer = nn.BatchNorm2d(8)
    with torch.no_grad():
        for name, (channels, value) in values.items():
            getattr(layer, name)[channels] = value
    return layer


def test_channels_that_all_speak_are_no_finding(images):
    assert said(RULE, layer_of(norm(), images, around={"activation": "ReLU"})) == []


@pytest.mark.parametrize(("dead", "severity"), [(1, "info"), (3, "warning"), (5, "error"), (8, "error")])
def test_the_share_of_channels_without_scale_decides_how_grave_it_is(images, dead, severity):
    layer = norm(weight=(slice(dead), 5e-4), bias=(slice(None), 0.1))
    (finding,) = findings(RULE, layer_of(layer, images))
    assert finding.severity == severity
    assert finding.evidence[0].value == 100 * dead / 8


def test_a_residual_branch_that_starts_at_0_on_purpose_is_no_finding(images):
    assert said(RULE, layer_of(norm(weight=(slice(None), 0.0)), images, updates=0)) == []
    assert said(RULE, layer_of(norm(weight=(slice(None), 2e-4)), images, updates=50)) == []  # still on its way
    assert said(RULE, layer_of(norm(weight=(slice(None), 0.0)), images, updates=50)) == [("norm", "error")]  # pruned


def test_a_constant_input_counts_whatever_its_value(images):
    images[:, :6] = torch.arange(6.0)[:, None, None]
    (finding,) = findings(RULE, layer_of(norm(), images))
    assert (finding.severity, finding.evidence[1].name, finding.evidence[1].value) == ("error", "constant input", 6)


@pytest.mark.parametrize(("activation", "expected"), [("ReLU", 1), ("relu", 1), ("LeakyReLU", 0), (None, 0)])
def test_channels_never_above_0_are_dead_before_a_relu_alone(images, activation, expected):
    layer = layer_of(norm(bias=(slice(None), -8.0)), images, around={"activation": activation})
    assert len(findings(RULE, layer)) == expected


def test_a_negative_scale_turns_the_lowest_value_into_the_highest(images):
    images[0, :, 0, 0] = 40.0  # far above, which γ = -1 makes far below 0
    layer = norm(weight=(slice(None), -1.0), bias=(slice(None), -8.0))
    assert said(RULE, layer_of(layer, images, around={"activation": "ReLU"})) == [("norm", "error")]
    assert said(RULE, layer_of(layer, -images, around={"activation": "ReLU"})) == []


def test_channels_that_a_wrong_running_mean_silences_are_not_dead(images):
    layer = norm()
    layer.running_mean += 100.0
    assert said(RULE, layer_of(layer, images, around={"activation": "ReLU"})) == []


def test_few_values_do_not_tell_what_a_channel_never_says():
    few = torch.randn(8, 8, 2, 2)
    assert said(RULE, layer_of(norm(bias=(slice(None), -8.0)), few, around={"activation": "ReLU"})) == []


@pytest.mark.parametrize("broken", [{"weight": (slice(6), 0.0)}, {"bias": (slice(6), -9.0)}])
def test_the_remedy_revives_dead_channels_and_leaves_the_others(images, broken):
    network = nn.Sequential(norm(**broken), nn.ReLU())
    network[0].num_batches_tracked += 100
    (finding,) = found_in(RULE, network, images)
    run(finding.remedy, model=network)
    assert found_in(RULE, network, images) == []
    assert network[0].weight[6:].tolist() == [1, 1]
    assert network[0].bias[6:].tolist() == [0, 0]


@pytest.mark.parametrize("conv", [nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, groups=8)])
@pytest.mark.parametrize("dead", [6, 8])
def test_the_remedy_for_a_constant_input_draws_the_dead_filters_alone_anew(images, conv, dead):
    network = nn.Sequential(copy.deepcopy(conv), nn.BatchNorm2d(8))
    filters = network[0].weight.data.transpose(0, int(network[0].transposed))
    filters[:dead] = 0
    kept = filters[dead:].clone()
    (finding,) = found_in(RULE, recalibrated(network, images), images)
    run(finding.remedy, model=network)
    assert found_in(RULE, recalibrated(network, images), images) == []
    assert torch.equal(filters[dead:], kept)


def test_the_remedy_of_a_layer_behind_a_dead_one_is_that_of_the_dead_one(images):
    network = nn.Sequential(
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
    )
    nn.init.constant_(network[1].bias, -30)
    dead, behind = found_in(RULE, recalibrated(network, images), images)
    assert (behind.layer, behind.remedy) == ("4", dead.remedy)
    assert "'1' before it" in behind.message
    weights = network[3].weight.clone()
    run(behind.remedy, model=network)
    assert found_in(RULE, recalibrated(network, images), images) == []
    assert torch.equal(network[3].weight, weights)


def test_fewer_dead_channels_before_do_not_explain_constant_ones(images):
    images[:, :6] = 1.0
    few = layer_of(norm(weight=(slice(2), 0.0)), torch.randn(16, 8, 6, 6), name="few")
    _, finding = findings(RULE, few, layer_of(norm(), images, around={"before": "conv"}))
    assert 'get_submodule("conv")' in finding.remedy


@pytest.mark.parametrize("cause", ["mean", "updates", "nan"])
def test_behind_wrong_statistics_a_layers_own_scale_alone_is_judged(images, cause):
    wrong, constant = nn.BatchNorm2d(8), torch.ones_like(images)
    if cause == "nan":
        wrong.running_var[0] = torch.nan
    if cause == "mean":
        wrong.running_mean += 1
    told = {"updates": 3} if cause == "updates" else {}
    seen = 10 + 4 * images if cause == "updates" else images
    before = layer_of(wrong, seen, name="before", **told)
    pruned = layer_of(norm(weight=(slice(None), 0.0)), images, name="pruned")
    assert said(RULE, before, layer_of(norm(), constant), pruned) == [("pruned", "error")]
    assert said(RULE, layer_of(norm(), images), layer_of(norm(), constant)) == [("norm", "error")]


def test_where_batches_take_their_own_statistics_wrong_running_ones_hide_nothing(images):
    wrong = nn.BatchNorm2d(8)
    wrong.running_mean += 1
    layers = layer_of(wrong, images, name="before"), layer_of(norm(), torch.ones_like(images))
    training = replace(probed_of(*layers), own_statistics=True)
    assert [finding.layer for finding in RULE.check(training)] == ["norm"]


def recalibrated(network, images):
    """Take the statistics anew."""
    mednorm.recalibrate(network, [images])
    return network
