"""MN013, devices that each take the statistics of their own few images."""

from dataclasses import replace

import pytest
from torch import nn

from mednorm import BatchNorm
from mednorm.examine.rules import mn003_small_batch, mn013_unsynchronized
from mednorm.examine.rules.mn013_unsynchronized import RULE
from tests.unit.examine.rules.made import layer_of, probed_of, run
from tests.unit.examine.rules.scattered import scattered


def probed(between=0.6, batch=2, devices=8, norm=None, **state):
    layer = layer_of((norm or nn.BatchNorm2d(8)).double(), scattered(128, between), **state)
    return replace(probed_of(layer, batch_size=batch), devices=devices)


def both(given):
    rules = (mn003_small_batch, mn013_unsynchronized)
    return [(each.code, each.severity) for rule in rules for each in rule.RULE.check(given)]


@pytest.mark.parametrize(("between", "severity"), [(0.6, "error"), (0.3, "warning")])
def test_small_batches_that_would_be_enough_together_are_said_by_this_rule_alone(between, severity):
    assert both(probed(between)) == [("MN013", severity)]


def test_two_devices_that_are_too_few_together_leave_it_to_the_small_batch():
    assert both(probed(1.0, batch=1, devices=2)) == [("MN003", "error")]


def test_many_devices_halve_the_noise_also_where_it_stays_too_large():
    assert both(probed(1.0, batch=1, devices=4)) == [("MN013", "error")]


def test_synchronized_layers_are_judged_by_the_images_of_all_devices():
    assert both(probed(synchronized=True)) == []
    assert both(probed(1.0, batch=1, devices=2, synchronized=True)) == [("MN003", "error")]


@pytest.mark.parametrize("given", [{"devices": 1}, {"between": 0.05}, {"frozen": True}])
def test_one_device_and_layers_without_noise_are_no_finding(given):
    assert list(RULE.check(probed(**given))) == []


def test_the_evidence_has_the_noise_before_and_after():
    (finding,) = RULE.check(probed())
    alone, together = (each.value for each in finding.evidence[:2])
    assert alone / together == pytest.approx(8**0.5, rel=0.15)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm])
def test_the_remedy_synchronizes_the_layer(norm):
    (finding,) = RULE.check(probed(norm=norm(8)))
    model = run(finding.remedy, model=nn.Sequential(norm(8)))["model"]
    assert isinstance(model[0], nn.SyncBatchNorm) or model[0].process_group is not None
