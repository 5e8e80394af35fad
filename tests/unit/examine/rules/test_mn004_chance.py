"""MN004 holds its level over all sites and layers of a deep network whose sites are names that were shuffled."""

from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from mednorm import examine, recalibrate
from mednorm.examine.recorder import Recorder
from mednorm.examine.records import Probed
from mednorm.examine.rules.mn004_site_shift import RULE, compare
from tests.unit.examine.networks import train

IMAGES = 64
SHUFFLES = 3


def images(count, seed):
    """Structures on noise, lighter in one of two classes, so that images differ in what deep layers look for."""
    random = torch.Generator().manual_seed(seed)
    coarse = interpolate(torch.randn(count, 1, 4, 4, generator=random), scale_factor=8)
    classes = torch.randint(0, 2, (count,), generator=random)
    values = torch.randn(count, 1, 32, 32, generator=random) / 2 + coarse + classes.view(-1, 1, 1, 1) - 0.5
    return [{"image": value, "class": label, "site": None} for value, label in zip(values, classes, strict=True)]


@cache
def deep() -> nn.Module:
    """Train a DenseNet of 33 normalization layers; its running statistics are those of its training images."""
    from monai.networks.nets import DenseNet

    torch.manual_seed(0)
    network = DenseNet(2, 1, 2, init_features=8, growth_rate=8, block_config=(3, 4, 4, 3))
    samples = images(128, 0)
    train(network, samples, "class", 16, 30, 3e-3)
    recalibrate(network, [torch.stack([each["image"] for each in samples])])
    return network.eval()


def names(sites, seed):
    """Name as many images of each site, at random."""
    given = [f"site {number * sites // IMAGES}" for number in range(IMAGES)]
    Random(seed).shuffle(given)
    return given


def patients(named):
    return [f"patient {number}" for number in range(IMAGES)] if named else [None] * IMAGES


@cache
def shown():
    """Other images of the same kind."""
    return torch.stack([each["image"] for each in images(IMAGES, 10)])


@cache
def probed() -> Probed:
    return examine(deep(), [shown()], select="MN004", try_step=False).probed


def at_sites(sites, seed, *, named):
    """What is seen of them under such names."""
    with Recorder(deep()) as recorder, torch.no_grad():
        deep()(shown())
        recorder.end(IMAGES, names(sites, seed), patients(named))
    return replace(probed(), layers=tuple(replace(each, sites=recorder.sites(each.name)) for each in probed().layers))


@pytest.mark.parametrize("named", [False, True], ids=["images", "patients"])
@pytest.mark.parametrize("sites", [4, 8])
def test_a_deep_network_gets_no_error_at_sites_that_are_mere_names(sites, named):
    for seed in range(SHUFFLES):
        assert [each.message for each in RULE.check(at_sites(sites, seed, named=named))] == []


def test_one_interval_at_a_time_would_name_sites_there():
    assert any(each.shifted() for layer in at_sites(8, 0, named=True).layers for each in compare(layer))


@pytest.mark.parametrize("named", [False, True], ids=["images", "patients"])
def test_a_gain_at_one_site_of_eight_images_is_an_error_there_alone(named):
    sites = names(8, 0)
    gains = torch.tensor([3.0 if name == "site 0" else 1.0 for name in sites]).view(-1, 1, 1, 1)
    batch = {"image": gains * shown(), "site": sites, "patient": patients(named)}
    found = examine(deep(), [batch], select="MN004", try_step=False)
    assert {each.site for each in found.findings} == {"site 0"}
    assert found.probed.layers[0].name in {each.layer for each in found.findings if each.severity == "error"}
