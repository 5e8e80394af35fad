"""The intervals of MN004 hold what they promise where slices of one patient resemble each other."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from mednorm.examine.recorder import Recorder
from mednorm.examine.rules.mn004_site_shift import RULE, away
from tests.unit.examine.rules.made import layer_of, probed_of

LEVEL = 0.05
SEEDS = 200
CHANNELS = 8
# Slices of each patient of a site.
SITES = [(16,) * 4, (8,) * 8, (40, 8, 8, 8)]


def slices(of_patient, random, *, between=0.5, gain=1.0, offset=0.0):
    """Images of variance 1, a share of it between patients: one value a patient moves all its slices and channels."""
    images = []
    for count in of_patient:
        patient = between**0.5 * torch.randn(1, 1, 1, 1, generator=random, dtype=torch.float64)
        each = 0.05**0.5 * torch.randn(count, CHANNELS, 1, 1, generator=random, dtype=torch.float64)
        voxels = (0.95 - between) ** 0.5 * torch.randn(count, CHANNELS, 1, 32, generator=random, dtype=torch.float64)
        images.append(gain * (patient + each + voxels) + offset)
    return torch.cat(images)


def layer(of_patient, seed, *, sites=3, between=0.5, **shifted):
    """A layer whose running statistics are what all sites are drawn from, but for the last, which may be shifted."""
    random = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(CHANNELS).double()
    patients = [f"patient {number}" for number, count in enumerate(of_patient) for _ in range(count)]
    network = nn.Sequential(norm).eval()
    with Recorder(network) as recorder:
        for site in range(sites):
            images = slices(of_patient, random, between=between, **(shifted if site == sites - 1 else {}))
            network(images)
            recorder.end(len(images), [f"site {site}"] * len(images), patients)
    return replace(layer_of(norm, images), sites=recorder.sites("0"))


@cache
def alike(of_patient):
    """Three sites that differ by chance alone, many times."""
    return [layer(of_patient, seed) for seed in range(SEEDS)]


@cache
def shifted_by_one(of_patient):
    """A site with an offset of 1, many times."""
    return [layer(of_patient, seed, sites=1, offset=1.0) for seed in range(SEEDS)]


def unnamed(layer):
    return replace(layer, sites={site: replace(seen, patients=None) for site, seen in layer.sites.items()})


def found(layer):
    return list(RULE.check(probed_of(layer)))


def share(wrong, layers):
    """Share of the sites whose interval is wrong."""
    intervals = [away(layer, seen) for layer in layers for seen in layer.sites.values()]
    return sum(map(wrong, intervals)) / len(intervals)


@pytest.mark.parametrize("of_patient", SITES)
def test_sites_that_differ_by_their_patients_alone_are_not_named_more_often_than_the_level(of_patient):
    sites = 3 * SEEDS
    assert sum(len(found(each)) for each in alike(of_patient)) / sites <= LEVEL
    assert sum(len(found(unnamed(each))) for each in alike(of_patient)) / sites > 2 * LEVEL


@pytest.mark.parametrize("of_patient", SITES)
def test_the_interval_leaves_out_that_nothing_is_wrong_not_more_often_than_the_level(of_patient):
    def wrong(interval):
        return interval.low > 0

    assert share(wrong, alike(of_patient)) <= LEVEL
    assert share(wrong, map(unnamed, alike(of_patient))) > 10 * LEVEL


@pytest.mark.parametrize("of_patient", SITES)
def test_the_interval_misses_the_distance_that_is_there_not_more_often_than_the_level(of_patient):
    def wrong(interval):
        return not interval.low <= 1 <= interval.high

    by_chance = 2 * (LEVEL * (1 - LEVEL) / SEEDS) ** 0.5  # a share of 5 % is rarely more in so many draws
    assert share(wrong, shifted_by_one(of_patient)) <= LEVEL + by_chance
    assert share(wrong, map(unnamed, shifted_by_one(of_patient))) > 9 * LEVEL


@pytest.mark.parametrize(
    ("patients", "between", "shift"),
    [(4, 0.1, {"gain": 3.0}), (8, 0.5, {"gain": 3.0}), (4, 0.1, {"offset": 2.0}), (8, 0.5, {"offset": 2.0})],
)
def test_a_scanner_of_another_gain_or_offset_is_named_by_few_patients(patients, between, shift):
    made = [layer((8,) * patients, seed, between=between, **shift) for seed in range(20)]
    named = [{finding.site for finding in found(each)} for each in made]
    assert named.count({"site 2"}) >= 19


def test_the_finding_says_how_many_patients_there_are():
    (finding,) = found(layer((16, 12, 10, 14), 0, between=0.05, gain=3.0))
    assert [(each.name, each.value) for each in finding.evidence[-2:]] == [
        ("images of the site", 52),
        ("patients of the site", 4),
    ]


def test_of_one_patient_nothing_is_said():
    one, two = layer((64,), 0, offset=5.0), layer((32, 32), 0, offset=5.0)
    assert away(one, one.sites["site 2"]) is None
    assert away(two, two.sites["site 2"]) is not None
    assert found(one) == []
    assert found(unnamed(one))


def test_an_offset_is_as_uncertain_as_the_mean_alone_and_a_gain_as_the_standard_deviation():
    offset, gain = layer((1,) * 64, 0, offset=50.0), layer((1,) * 64, 0, between=0.0, gain=3.0)
    seen, wide = offset.sites["site 2"], gain.sites["site 2"]
    of_offset, of_gain = away(offset, seen), away(gain, wide)
    assert of_offset.error == pytest.approx(float((seen.of_means.unbiased_variance / 64).sqrt().median()), rel=0.03)
    of_std = wide.noise_of_variance(64) / 2 * wide.moments.std
    assert of_gain.error == pytest.approx(float(of_std.median()), rel=0.03)
