"""MN009, weight decay on γ and β, and on weights before."""

import pytest
import torch
from torch import nn

from mednorm.examine.rules.mn009_weight_decay import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said


def norm(scale):
    """A layer whose γ is this."""
    layer = nn.BatchNorm2d(4)
    nn.init.constant_(layer.weight, scale)
    return layer


@pytest.mark.parametrize("decay", [None, 0.0])
def test_without_decay_there_is_no_finding(decay):
    assert said(RULE, layer_of(norm(1.0), around={"decay": decay, "decay_before": decay, "before_learns": True})) == []


@pytest.mark.parametrize(("scale", "severity"), [(1.0, "info"), (0.11, "info"), (0.09, "warning"), (-0.09, "warning")])
def test_decay_is_a_warning_where_it_has_shrunk_the_scale(scale, severity):
    (finding,) = findings(RULE, layer_of(norm(scale), around={"decay": 0.01}))
    assert finding.severity == severity
    assert "0.01" in finding.message


def test_decay_on_parameters_that_do_not_learn_is_no_finding():
    assert said(RULE, layer_of(norm(1.0), around={"decay": 0.01}, learns=False)) == []


def test_decay_before_normalization_is_said_once_of_the_network():
    around = {"decay_before": 0.01, "before_learns": True}
    layers = [layer_of(norm(1.0), name=name, around=around) for name in "abc"]
    (finding,) = findings(RULE, *layers)
    assert (finding.layer, finding.severity, finding.evidence[1].value) == ("", "info", 3)


def test_the_decay_is_that_of_each_group_of_the_optimizer():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm(1.0), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(1.0))
    groups = [{"params": network[1].parameters(), "weight_decay": 0.3}, {"params": network[4].parameters()}]
    found = found_in(RULE, network, torch.randn(4, 1, 8, 8), optimizer=torch.optim.SGD(groups, lr=0.1))
    assert [(finding.layer, finding.evidence[0].value) for finding in found] == [("1", 0.3)]


def test_the_remedy_leaves_gamma_and_beta_without_decay():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm(1.0), nn.ReLU())
    images = torch.randn(4, 1, 8, 8)
    found = found_in(RULE, network, images, optimizer=torch.optim.AdamW(network.parameters()))
    (remedy,) = (finding.remedy for finding in found if finding.layer == "1")
    optimizer = run(remedy, model=network)["optimizer"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    assert [finding.layer for finding in found_in(RULE, network, images, optimizer=optimizer)] == [""]
