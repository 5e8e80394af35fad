"""MN007, dropout before a normalization."""

import pytest
import torch
from torch import nn

from mednorm.examine.rules.mn007_dropout_before import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said

DROPOUT = {"dropout_before": "drop", "dropout_rate": 0.5}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(32, 4, 8, 8)


def norm(variance):
    """A layer whose running variance is this."""
    layer = nn.BatchNorm2d(4)
    layer.running_var.fill_(variance)
    return layer


@pytest.mark.parametrize(("variance", "severity"), [(0.5, None), (1.05, None), (1.2, "warning"), (1.6, "error")])
def test_the_ratio_of_the_variances_decides_how_grave_it_is(images, variance, severity):
    assert said(RULE, layer_of(norm(variance), images, around=DROPOUT)) == ([("norm", severity)] if severity else [])


def test_a_wide_running_variance_without_dropout_is_another_rules(images):
    assert said(RULE, layer_of(norm(3.0), images)) == []


def test_without_images_a_high_rate_is_a_warning():
    assert said(RULE, layer_of(norm(1.0), around=DROPOUT)) == [("norm", "warning")]
    assert said(RULE, layer_of(norm(1.0), around=DROPOUT | {"dropout_rate": 0.1})) == []


def test_a_layer_that_was_never_updated_says_nothing_of_dropout(images):
    assert said(RULE, layer_of(norm(1.6), images, around=DROPOUT, updates=0)) == []


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_right_before_the_layer_widens_the_variance_by_what_theory_says(images, rate):
    network = nn.Sequential(nn.Dropout(rate), nn.BatchNorm2d(4, momentum=None))
    for _ in range(20):
        network(images)  # of mean 0: the variance under dropout is 1 / (1 - rate) of that without
    (finding,) = found_in(RULE, network, images)
    assert finding.evidence[0].value == pytest.approx(1 / (1 - rate), rel=0.02)
    assert finding.severity == ("error" if rate == 0.5 else "warning")


def test_the_remedy_takes_the_statistics_without_dropout(images):
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4, momentum=None))
    network(images)
    (finding,) = found_in(RULE, network, images)
    run(finding.remedy, model=network, loader=[images])
    assert found_in(RULE, network, images) == []


def test_the_message_says_how_much_too_small_the_outputs_are(images):
    (finding,) = findings(RULE, layer_of(norm(4.0), images, around=DROPOUT))
    assert "outputs in evaluation are too small by 50 %" in finding.message
