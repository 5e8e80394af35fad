"""MN006, statistics and images that are no numbers."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mednorm import BatchNorm
from mednorm.examine.rules.mn006_not_finite import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(8, 4, 6, 6)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("running_mean", torch.nan, "running means that are not finite"),
        ("running_var", torch.inf, "running variances that are not finite"),
        ("running_var", -0.5, "negative running variances"),
        ("weight", torch.nan, "γ that are not finite"),
        ("bias", -torch.inf, "β that are not finite"),
    ],
)
def test_a_value_that_cannot_be_used_is_counted(images, name, value, told):
    layer = nn.BatchNorm2d(4)
    with torch.no_grad():
        getattr(layer, name)[1:] = value
    (finding,) = findings(RULE, layer_of(layer, images))
    assert (finding.severity, finding.evidence[0].name, finding.evidence[0].value) == ("error", told, 3)


def test_images_that_are_no_numbers_are_said_of_the_first_layer_they_reach(images):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    broken = images.clone()
    broken[2, 0, 3, 3] = torch.nan
    (finding,) = found_in(RULE, network, images, broken, images)
    assert (finding.layer, finding.severity, finding.evidence[0].value) == ("1", "error", 1)


def test_what_broken_statistics_make_of_images_is_not_said_again_further_on(images):
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network[0].running_var[0] = -1.0
    assert [finding.layer for finding in found_in(RULE, network, images)] == ["0"]


@pytest.mark.parametrize(
    ("skipped", "severity"), [(0, None), (5, "info"), (20, "warning"), (999, "warning"), (1000, "error")]
)
def test_the_share_of_skipped_batches_decides_how_grave_it_is(images, skipped, severity):
    found = said(RULE, layer_of(nn.BatchNorm2d(4), images, updates=1000, skipped=skipped))
    assert found == ([("norm", severity)] if severity else [])


def test_batches_that_our_layers_keep_out_are_counted(images):
    layer = BatchNorm(4)
    for number in range(4):
        layer(images if number else images * torch.nan)
    (finding,) = found_in(RULE, nn.Sequential(layer), images)
    assert (finding.severity, finding.evidence[0].value, finding.evidence[1].value) == ("warning", 25, 1)


@pytest.mark.parametrize("value", [torch.nan, -1.0])
def test_the_remedy_gives_statistics_that_are_numbers(images, value):
    network = nn.Sequential(nn.BatchNorm2d(4))
    network[0].running_var[0] = value
    (finding,) = found_in(RULE, network, images)
    run(finding.remedy, model=network, loader=[images])
    assert found_in(RULE, network, images) == []
    assert network[0].running_mean == pytest.approx(images.mean((0, 2, 3)), abs=1e-6)


def test_the_remedy_for_broken_images_names_them():
    dataset = [{"image": torch.full((1, 2), value)} for value in (0.0, torch.nan, 1.0)]
    (finding,) = findings(RULE, layer_of(nn.BatchNorm2d(1), torch.full((1, 1, 2, 2), torch.nan)))
    assert eval(finding.remedy, {"torch": torch, "loader": DataLoader(dataset, batch_size=2)}) == [1]
    assert eval(finding.remedy, {"torch": torch, "loader": dataset}) == [1]  # a list, of batches
