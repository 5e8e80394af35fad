"""MN010, running statistics that move more than once a step, or never."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mednorm
from mednorm.examine.rules.mn010_updates import RULE, left_out
from tests.unit.examine.rules.made import findings, found_in, layer_of, probed_of, run, said


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(16, 4, 6, 6)


class Repeated(nn.Module):
    """One layer that is computed again in the backward pass."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 1), norm

    def forward(self, x):
        return checkpoint(lambda y: self.norm(y).relu(), self.first(x), use_reentrant=False)


class Twice(nn.Module):
    """One layer for an image and for another function of it."""

    def __init__(self, gain, offset):
        super().__init__()
        self.norm, self.gain, self.offset = nn.BatchNorm2d(4), gain, offset

    def forward(self, x):
        return self.norm(x) + self.norm(self.gain * x + self.offset)


@pytest.mark.parametrize("updates", [1, None])
def test_one_update_a_step_is_no_finding(images, updates):
    assert said(RULE, layer_of(nn.BatchNorm2d(4), images, around={"updates_a_step": updates})) == []


def test_checkpointing_doubles_the_updates_of_pytorchs_layer_and_not_of_ours(images):
    (finding,) = found_in(RULE, Repeated(nn.BatchNorm2d(4)), images)
    assert (finding.severity, finding.evidence[0].value) == ("warning", 2)
    assert finding.evidence[1].value == pytest.approx(1 - 0.9**2)
    assert found_in(RULE, Repeated(mednorm.BatchNorm(4)), images) == []


def test_the_remedy_for_checkpointing_ends_it(images):
    network = Repeated(nn.BatchNorm2d(4))
    (finding,) = found_in(RULE, network, images)
    run(finding.remedy, model=network)
    assert found_in(RULE, network, images) == []


def test_double_updates_are_an_error_where_they_leave_the_statistics_noisy(images):
    noisy = images + 20 * torch.randn(16, 4, 1, 1)  # the variance is that between images
    layer = layer_of(nn.BatchNorm2d(4, momentum=0.3), noisy, around={"updates_a_step": 2})
    assert [finding.severity for finding in findings(RULE, layer, batch_size=2)] == ["error"]
    assert [finding.severity for finding in findings(RULE, layer, batch_size=64)] == ["warning"]


@pytest.mark.parametrize(
    ("gain", "offset", "severity"),
    [(1.0, 0.0, "info"), (1.0, 0.8, "warning"), (1.0, 4.0, "error"), (8.0, 0.0, "error")],
)
def test_a_shared_layer_is_as_grave_as_its_calls_are_different(images, gain, offset, severity):
    (finding,) = found_in(RULE, Twice(gain, offset), images, images.flip(0))
    assert (finding.layer, finding.severity) == ("norm", severity)


def test_the_distance_of_two_calls_is_half_of_their_offset_over_the_common_deviation(images):
    (finding,) = found_in(RULE, Twice(1.0, 4.0), images)
    assert finding.evidence[0].value == pytest.approx(2 / 5**0.5, rel=0.05)  # variances: 1 within, 4 between


def test_the_remedy_for_a_shared_layer_makes_one_for_each_call(images):
    network = Twice(1.0, 4.0)
    (finding,) = found_in(RULE, network, images)
    norms = run(finding.remedy, model=network)["norms"]
    assert len(norms) == 2
    assert norms[0].weight is not norms[1].weight


def test_a_layer_that_alone_was_never_updated_is_an_error(images):
    never = layer_of(nn.BatchNorm2d(4), images, name="never", updates=0)
    often = layer_of(nn.BatchNorm2d(4), images, name="often", updates=200)
    assert said(RULE, never, often) == [("never", "error")]
    assert [left_out(layer, probed_of(never, often)) for layer in (never, often)] == [True, False]


def test_a_network_that_was_never_trained_is_no_matter_of_this_rule(images):
    fresh = layer_of(nn.BatchNorm2d(4), images, updates=0)
    assert said(RULE, fresh, replace(fresh, name="other")) == []


def test_statistics_from_elsewhere_without_a_count_were_not_left_out(images):
    loaded = nn.BatchNorm2d(4)
    loaded.running_mean += 0.1
    often = layer_of(nn.BatchNorm2d(4), images, name="often", updates=200)
    assert said(RULE, layer_of(loaded, images, updates=0), often) == []


def test_a_layer_that_stands_still_in_training_while_weights_learn_is_a_warning(images):
    around = {"before": "conv", "before_learns": True, "updates_a_step": 0}
    still = layer_of(nn.BatchNorm2d(4), images, around=around)
    assert said(RULE, still) == [("norm", "warning")]
    assert said(RULE, replace(still, state=replace(still.state, frozen=True))) == []
    assert said(RULE, replace(still, around=replace(still.around, before_learns=False))) == []
    trains = layer_of(nn.BatchNorm2d(4), images, name="other", training=True)
    assert said(RULE, still, trains) == []  # it is the mode, which MN011 is about
