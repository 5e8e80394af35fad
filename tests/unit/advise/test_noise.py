import pytest
import torch
from torch import nn

from mednorm.advise.noise import ENOUGH, GRAVE, judged, noise_by_size, smallest_sufficient
from mednorm.examine.probe import probe
from mednorm.examine.rules import mn003_small_batch
from mednorm.examine.rules.noise import noise
from mednorm.layers import BatchRenorm
from mednorm.population.batches import Batches


def probed(network, shift=1.0, images=48):
    """Images that differ from each other by offsets of so many standard deviations of their pixels."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(images, 2, 6, 6, generator=generator) + shift * torch.randn(images, 2, 1, 1, generator=generator)
    return probe(network, Batches(seen.split(8)), try_step=False)


def test_the_thresholds_are_those_of_the_rule():
    assert (ENOUGH, GRAVE) == (mn003_small_batch.WARNING, mn003_small_batch.ERROR)


@pytest.mark.parametrize("enough", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_smallest_sufficient_batch_is_enough_and_one_image_less_is_not(enough, shift):
    found = probed(nn.BatchNorm2d(2), shift)
    least = smallest_sufficient(found, enough)
    seen = found.layers[0].seen
    assert noise(seen, least) < enough
    assert least == 1 or noise(seen, least - 1) >= enough


def test_the_noisiest_layer_decides():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))  # the last: a value an image
    found = probed(network)
    by_size = noise_by_size(found, [1, 2, 4, 8, 16], ENOUGH)
    assert by_size.worst(8)[0] == "2"
    assert smallest_sufficient(found, ENOUGH) == smallest_sufficient(
        probed(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))), ENOUGH
    )


def test_noise_falls_with_the_batch_size():
    values = list(noise_by_size(probed(nn.BatchNorm2d(2)), [2, 4, 8, 16, 32], ENOUGH).layers[""].values())
    assert values == sorted(values, reverse=True)


def test_no_batch_is_enough_for_a_noise_that_none_reaches():
    assert smallest_sufficient(probed(nn.BatchNorm2d(2), shift=3.0), 1e-6) is None


def test_layers_that_do_not_rest_on_one_batch_are_left_out():
    found = probed(nn.Sequential(BatchRenorm(2), nn.GroupNorm(1, 2)))
    assert judged(found) == []
    assert smallest_sufficient(found, ENOUGH) == 1


def test_constant_channels_have_no_noise_and_are_left_out():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    assert judged(probed(network)) == []
