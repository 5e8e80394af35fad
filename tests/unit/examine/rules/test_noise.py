"""How far the statistics of a batch are from those of all images."""

import math

import pytest
import torch
from torch import nn

from mednorm import BatchRenorm, FrozenBatchNorm, Moments
from mednorm.examine.rules.noise import between_share, enough, images_together, median, noise, taken_over_batches
from mednorm.population.distance import distance
from tests.unit.examine.rules.made import layer_of, probed_of
from tests.unit.examine.rules.scattered import scattered


def seen_of(images):
    return layer_of(nn.BatchNorm2d(images.shape[1]).double(), images).seen


def test_the_share_between_images_is_the_one_they_were_made_with():
    share = between_share(seen_of(scattered(64, 0.3)))
    torch.testing.assert_close(share, torch.full_like(share, 0.3), rtol=0.02, atol=0)


@pytest.mark.parametrize(("between", "size"), [(0.1, 2), (0.3, 4), (0.5, 8), (0.9, 16)])
def test_noise_is_the_distance_that_batches_have_from_all_images(between, size):
    images = scattered(2048, between, channels=16, voxels=16)
    zeros, ones = torch.zeros(16).double(), torch.ones(16).double()
    apart = [distance(Moments.of(batch), zeros, ones, 0.0).square() for batch in images.split(size)]
    measured = median(torch.stack(apart).mean(0).sqrt())
    assert noise(seen_of(images), size) == pytest.approx(measured, rel=0.1)


def test_noise_of_images_that_are_alike_is_next_to_nothing():
    assert noise(seen_of(scattered(64, 0.0)), 4) < 1e-6


def test_constant_channels_do_not_decide():
    images = scattered(64, 0.5)
    with_dead = torch.cat([images, torch.zeros(64, 3, 1, 256)], dim=1)
    assert noise(seen_of(with_dead), 4) == pytest.approx(noise(seen_of(images), 4))


def test_noise_is_unknown_of_one_image():
    assert math.isnan(noise(seen_of(scattered(64, 0.5)[:1]), 4))


def test_enough_is_the_first_power_of_two_below_the_limit():
    seen = seen_of(scattered(256, 0.5))
    size = enough(seen, 0.3)
    assert noise(seen, size) < 0.3 <= noise(seen, size // 2)


def test_no_batch_is_enough_for_a_limit_of_nothing():
    assert enough(seen_of(scattered(64, 0.5)), 0.0) is None


def test_the_median_passes_over_what_is_no_number():
    assert median(torch.tensor([1.0, math.nan, 3.0, math.inf, 2.0])) == 2.0
    assert math.isnan(median(torch.tensor([math.nan])))


@pytest.mark.parametrize(
    ("norm", "expected"), [(nn.BatchNorm2d(8), True), (BatchRenorm(8), False), (FrozenBatchNorm(8), False)]
)
def test_layers_that_do_not_rest_on_one_batch_are_told_by_their_type(norm, expected):
    assert taken_over_batches(layer_of(norm.double(), scattered(4, 0.5))) is expected


@pytest.mark.parametrize(("synchronized", "expected"), [(False, 8), (True, 32)])
def test_synchronized_layers_see_the_images_of_all_devices(synchronized, expected):
    from dataclasses import replace

    layer = layer_of(nn.BatchNorm2d(8).double(), scattered(4, 0.5), synchronized=synchronized)
    assert images_together(layer, replace(probed_of(layer), devices=4)) == expected
