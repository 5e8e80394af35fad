"""The distance of distributions is what it says."""

from __future__ import annotations

import pytest
import torch

from mednorm.moments import Moments
from mednorm.population.distance import distance


@pytest.mark.parametrize(
    ("mean", "std", "eps", "wanted"), [(0, 1, 0, 0), (3, 1, 0, 3), (0, 3, 0, 2), (3, 5, 0, 5), (3, 5, 3, 2.5)]
)
def test_offset_and_scale_count_in_standard_deviations_of_the_layer(mean, std, eps, wanted):
    images = Moments.given(torch.tensor([float(mean)]), torch.tensor([float(std) ** 2]))
    assert distance(images, torch.zeros(1), torch.ones(1), eps).item() == pytest.approx(wanted, rel=1e-6)


def test_it_is_the_distance_of_the_sorted_values_of_two_gaussians():
    steps = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    quantiles = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0).icdf(steps)
    first, second = 2 + 3 * quantiles, -1 + 0.5 * quantiles
    apart = (first - second).square().mean().sqrt() / second.std()
    measured = distance(Moments.of(first.view(-1, 1)), second.mean()[None], second.var()[None], 0.0)
    assert measured.item() == pytest.approx(apart.item(), rel=1e-3)
