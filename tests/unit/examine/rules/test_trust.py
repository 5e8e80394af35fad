"""From which layer on what is seen passed through wrong running statistics."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mednorm.examine.rules.trust import FAR, first_wrong
from tests.unit.examine.rules.made import layer_of, probed_of
from tests.unit.examine.rules.scattered import scattered

IMAGES = scattered(64, 0.2)


def layer(offset=0.0, **told):
    """One that has running statistics so far from those of the images, in σ, with the name of a place."""
    norm = nn.BatchNorm2d(8).double()
    norm.running_mean.copy_(IMAGES.mean((0, 2, 3)))
    norm.running_var.copy_(IMAGES.transpose(0, 1).flatten(1).var(1))
    norm.running_mean += offset * (norm.running_var + norm.eps).sqrt()
    return layer_of(norm, IMAGES, **told)


def first(*layers):
    """Return the place of the first, of layers that are named by their places."""
    return first_wrong(probed_of(*(replace(each, name=str(place)) for place, each in enumerate(layers))))


def test_right_statistics_can_be_trusted_through_the_whole_network():
    assert first(layer(), layer(), layer()) == math.inf


@pytest.mark.parametrize(("offset", "place"), [(0.9 * FAR, 2), (1.1 * FAR, 1)])
def test_statistics_far_from_what_is_seen_are_wrong(offset, place):
    assert first(layer(), layer(offset), layer(2)) == place


def test_statistics_that_are_no_numbers_are_wrong():
    broken = nn.BatchNorm2d(8).double()
    broken.running_var[0] = torch.nan
    assert first(layer(), layer(), layer_of(broken, IMAGES)) == 2


def test_a_layer_whose_updates_are_an_error_is_wrong_however_near_its_statistics_are():
    untouched = layer_of(nn.BatchNorm2d(8).double(), IMAGES, updates=0)
    assert first(layer(), untouched) == 1  # MN010: others were updated


def test_in_training_no_running_statistics_are_in_the_way():
    probed = probed_of(layer(2))
    assert first_wrong(probed) == 0
    assert first_wrong(replace(probed, own_statistics=True)) == math.inf
