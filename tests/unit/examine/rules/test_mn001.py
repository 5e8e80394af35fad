"""MN001, the gap between the two evaluation modes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mednorm.examine.records import Gap
from mednorm.examine.rules.mn001_gap import RULE
from tests.unit.examine.rules.made import found_in, layer_of, probed_of, run
from tests.unit.examine.rules.scattered import scattered


def judged(divergence, metric=None, *, between=0.1, by_layer=None, batch=8):
    layer = layer_of(nn.BatchNorm2d(8).double(), *scattered(64, between).split(batch))
    probed = probed_of(layer, batch_size=batch)
    return list(RULE.check(replace(probed, gap=Gap(64 // batch, divergence, metric, by_layer or {}))))


@pytest.mark.parametrize(
    ("divergence", "severity"), [(0.3, []), (0.6, ["warning"]), (1.2, ["error"]), (float("inf"), ["error"])]
)
def test_the_divergence_of_the_outputs_decides(divergence, severity):
    assert [each.severity for each in judged(divergence)] == severity


def test_what_noisy_batches_make_the_outputs_differ_by_is_not_the_running_statistics_fault():
    assert [each.severity for each in judged(0.6, between=0.02, batch=2)] == ["warning"]
    assert judged(0.6, between=0.5, batch=2) == []


@pytest.mark.parametrize(
    ("metric", "severity"),
    [((0.9, 0.92), []), ((0.85, 0.92), ["warning"]), ((0.7, 0.92), ["error"]), ((0.92, 0.7), [])],
)
def test_a_metric_that_is_better_with_batch_statistics_decides_too(metric, severity):
    found = judged(0.1, metric)
    assert [each.severity for each in found] == severity
    assert [each.evidence[0].name for each in found] == ["metric lost"] * len(severity)


def test_a_metric_that_one_image_decides_is_no_finding():
    layer = layer_of(nn.BatchNorm2d(8).double(), scattered(8, 0.1))
    probed = replace(probed_of(layer), gap=Gap(1, 0.1, (0.75, 0.875)))
    assert list(RULE.check(probed)) == []


def test_layers_that_explain_a_tenth_are_named_with_their_share():
    found = judged(2.0, by_layer={"norm": 0.8, "gone": 0.9})
    assert [(each.layer, each.share) for each in found] == [("", None), ("norm", 0.8)]
    assert judged(2.0, by_layer={"norm": 0.05})[1:] == []


def test_a_network_without_a_gap_to_measure_gets_no_finding():
    assert list(RULE.check(probed_of(layer_of(nn.BatchNorm2d(8).double(), scattered(8, 0.5))))) == []


def test_weights_that_are_no_numbers_are_left_to_the_rule_that_says_so():
    layer = layer_of(nn.BatchNorm2d(8).double(), *scattered(64, 0.1).split(8))
    broken = replace(layer, state=replace(layer.state, weight=torch.full((8,), torch.nan)))
    gap = Gap(8, float("inf"))
    assert list(RULE.check(replace(probed_of(broken, batch_size=8), gap=gap))) == []
    assert list(RULE.check(replace(probed_of(layer, batch_size=8), gap=gap)))


def test_it_is_a_symptom():
    assert RULE.symptom


def test_the_remedy_closes_the_gap():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3))
    network[1].running_mean.fill_(3.0)
    loader = list(torch.randn(32, 1, 12, 12).split(8))
    (finding,) = found_in(RULE, network.eval(), *loader)
    run(finding.remedy, model=network, loader=loader)
    assert found_in(RULE, network, *loader) == []
