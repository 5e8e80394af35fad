"""What is particular to converting from or to one kind: processes, sites, unbatched input, layers without β."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mednorm.layers as ours
from mednorm.surgery.convert import convert
from tests.harness import images
from tests.processes import first_of
from tests.unit.surgery.converting import OPTIONS, RUNNING, SHAPES, WITHOUT, network, settled


@pytest.fixture
def two_processes():
    """This process as the first of two; the other is imagined, and no statistics are exchanged."""
    with first_of(2):
        yield


def test_synchronised_without_a_group_is_over_all_processes():
    for source in (nn.BatchNorm2d(6), ours.GhostBatchNorm(6)):
        report = convert(source, "sync", process_group=None)
        assert source.process_group == "world"
        assert report.changed[0].target == "BatchNorm(sync)"
        assert convert(source, "sync", process_group=None).left[0].reason == "is of this kind already"


def test_other_kinds_without_a_group_are_alone():
    layer = ours.BatchNorm(6, process_group="world")
    report = convert(layer, "ghost", process_group=None)
    assert layer.process_group is None
    assert "Statistics are no longer taken over several processes." in report.changed[0].notes


SITES_OF_RANK_0 = "DistributedDataParallel gives those of rank 0 to all"


@pytest.mark.usefixtures("two_processes")
def test_sites_that_each_process_keeps_for_itself_are_warned_of():
    report = convert(network(), "domain", domains=2)
    assert all(SITES_OF_RANK_0 in layer.notes[0] for layer in report.changed)
    assert all('pass process_group="world"' in layer.notes[0] for layer in report.changed)
    assert SITES_OF_RANK_0 not in str(convert(network(), "domain", domains=2, process_group="world"))
    assert SITES_OF_RANK_0 not in str(convert(network(), "batch"))


def test_sites_of_a_single_process_are_not_warned_of():
    assert SITES_OF_RANK_0 not in str(convert(network(), "domain", domains=2))


def test_what_no_longer_takes_an_image_without_a_batch_is_said():
    image = images((6, 5, 7))
    assert nn.InstanceNorm2d(6)(image).shape == image.shape
    for to in RUNNING + WITHOUT:
        layer = nn.InstanceNorm2d(6, affine=True)
        notes = [note for layer in convert(layer, to, **OPTIONS.get(to, {})).changed for note in layer.notes]
        said = [note for note in notes if note.startswith("Unbatched input, such as (C, H, W), is nothing for ")]
        if to == "instance":
            assert said == []
        else:
            assert len(said) == 1
            with pytest.raises((ValueError, RuntimeError)):
                layer(image)
            layer(image[None])


@pytest.mark.parametrize("to", [to for to in RUNNING if to != "torch"])
def test_a_layer_without_beta_stays_without(to):
    layer = settled(nn.BatchNorm2d(6))
    layer.bias = None
    x = images(SHAPES[2])
    expected = layer.eval()(x)
    report = convert(layer, to, **OPTIONS.get(to, {}))
    assert layer.bias is None
    assert report.exact
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)
    convert(layer, "torch")
    assert (layer.bias, type(layer)) == (None, nn.BatchNorm2d)


def test_sites_of_a_layer_without_beta_have_none_either():
    layer = settled(nn.BatchNorm2d(6))
    layer.bias = None
    report = convert(layer, "domain", domains=2, domain_affine=True)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "domain_weight"]
    assert "New parameters domain_weight: build the optimizer" in str(report)
    x = images(SHAPES[2])
    with ours.domain(layer, [0, 1, 1, 0]):
        assert torch.allclose(layer(x)[1:3].mean((0, 2, 3)), torch.zeros(6), atol=1e-5)


def test_the_names_of_sites_come_and_go_with_them():
    layer = nn.BatchNorm2d(6)
    convert(layer, "domain", domains=["Basel", "Lund"])
    layer.domain_mean[1] = 5.0
    fresh = ours.DomainBatchNorm(6, domains=["Lund", "Basel"])
    fresh.load_state_dict(layer.state_dict())
    assert fresh.domain_mean[:, 0].tolist() == [5.0, 0.0]
    convert(layer, "domain", domains=["Lund", "Oslo", "Basel"])
    other = ours.DomainBatchNorm(6, domains=["Basel", "Oslo", "Lund"])
    other.load_state_dict(layer.state_dict())
    assert other.domain_mean[:, 0].tolist() == [0.0, 0.0, 5.0]
    convert(layer, "batch")
    assert list(layer.state_dict()) == list(ours.BatchNorm(6).state_dict())
