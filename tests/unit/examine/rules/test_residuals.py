"""Running statistics held against what one cause or another would make of the population's."""

import pytest
import torch
from torch import nn

from mednorm.examine.rules.residuals import residuals
from tests.unit.examine.rules.made import layer_of
from tests.unit.examine.rules.scattered import scattered


def layer(mean, variance, images, eps=0.0):
    norm = nn.BatchNorm2d(images.shape[1], eps=eps).double()
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return layer_of(norm, images)


def population(images):
    return images.mean((0, 2, 3)), images.var((0, 2, 3))


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_the_share_of_the_initial_values_is_found_again(share):
    images = 3 * scattered(32, 0.3) + torch.arange(8).double().view(8, 1, 1)
    mean, variance = population(images)
    found = residuals(layer((1 - share) * mean, share + (1 - share) * variance, images))
    assert (found.initial.factor, found.initial.explained) == pytest.approx((share, 1.0), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_images_in_each_averaged_batch_are_found_again(size):
    images = scattered(64, 0.4) * torch.linspace(1, 3, 8).double().view(8, 1, 1)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in images.split(size)]).mean(0)
    found = residuals(layer(population(images)[0], variances, images))
    assert 1 / found.averaged.factor == pytest.approx(size, rel=0.1)
    assert found.averaged.explained > 0.9


def test_the_distance_is_in_standard_deviations_of_the_images():
    images = scattered(32, 0.3)
    mean, variance = population(images)
    found = residuals(layer(mean + 0.3 * variance.sqrt(), variance * 1.4**2, images))
    assert found.distance == pytest.approx(0.5, rel=1e-3)


def test_right_statistics_leave_nothing_to_explain():
    images = scattered(32, 0.3)
    found = residuals(layer(*population(images), images))
    assert found.distance == pytest.approx(0, abs=1e-9)


def test_channels_that_are_no_number_are_passed_over():
    images = scattered(32, 0.3)
    mean, variance = population(images)
    variance[2] = torch.nan
    found = residuals(layer(mean, variance, images))
    assert (len(found.variance), found.distance) == (7, pytest.approx(0, abs=1e-9))


def test_nothing_is_said_of_a_single_image_or_without_running_statistics():
    assert residuals(layer(torch.zeros(8), torch.ones(8), scattered(4, 0.3)[:1])) is None
    assert residuals(layer_of(nn.BatchNorm2d(8, track_running_stats=False).double(), scattered(4, 0.3))) is None
