"""MN003, batches of too few images."""

import pytest
import torch
from torch import nn

from mednorm import BatchRenorm, FrozenBatchNorm, GhostBatchNorm
from mednorm.examine.rules.mn003_small_batch import RULE
from tests.unit.examine.rules.made import findings, layer_of, run, said
from tests.unit.examine.rules.scattered import scattered


def layer(between, norm=None, **state):
    return layer_of((norm or nn.BatchNorm2d(8)).double(), scattered(128, between), **state)


@pytest.mark.parametrize(
    ("between", "batch", "severity"),
    [
        (1.0, 2, "error"),
        (1.0, 4, "warning"),
        (1.0, 16, None),
        (0.6, 2, "error"),
        (0.3, 2, "warning"),
        (0.3, 4, None),
        (0.05, 2, None),
    ],
)
def test_how_many_images_are_too_few_depends_on_how_they_differ(between, batch, severity):
    assert said(RULE, layer(between), batch_size=batch) == ([("norm", severity)] if severity else [])


def test_a_single_image_is_an_error_where_two_are_a_warning():
    assert said(RULE, layer(0.3), batch_size=1) == [("norm", "error")]
    assert said(RULE, layer(0.03), batch_size=1) == []


def test_the_message_says_how_many_images_would_do():
    (finding,) = findings(RULE, layer(1.0), batch_size=2)
    assert "From 16 images on it would be fine." in finding.message
    assert said(RULE, layer(1.0), batch_size=16) == []


def test_the_independent_values_are_those_between_which_the_means_differ():
    (finding,) = findings(RULE, layer(0.5), batch_size=2)
    evidence = {each.name: each.value for each in finding.evidence}
    assert evidence["independent values in a batch"] == pytest.approx(4, rel=0.02)


def test_voxels_of_one_image_do_not_replace_images():
    few = layer_of(nn.BatchNorm2d(8).double(), scattered(128, 0.6, voxels=16))
    many = layer_of(nn.BatchNorm2d(8).double(), scattered(128, 0.6, voxels=1024))
    assert said(RULE, few, batch_size=2) == said(RULE, many, batch_size=2) == [("norm", "error")]


@pytest.mark.parametrize("norm", [BatchRenorm(8), GhostBatchNorm(8, ghost_size=4), FrozenBatchNorm(8)])
def test_layers_that_do_not_rest_on_one_batch_are_left_out(norm):
    assert said(RULE, layer(1.0, norm), batch_size=2) == []


def test_frozen_layers_and_those_that_saw_a_single_image_are_left_out():
    alone = layer_of(nn.BatchNorm2d(8).double(), scattered(2, 0.5)[:1])
    assert said(RULE, layer(1.0, frozen=True), alone, layer_of(nn.BatchNorm2d(8)), batch_size=1) == []


@pytest.mark.parametrize("batch", [1, 2])
def test_the_remedy_puts_a_layer_there_that_is_left_out(batch):
    (finding,) = findings(RULE, layer(1.0), batch_size=batch)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
    run(finding.remedy, model=network)
    assert isinstance(network[1], nn.GroupNorm if batch == 1 else BatchRenorm)
    assert network(torch.randn(batch, 1, 6, 6)).isfinite().all()
