"""A probe tells what its parts found, whatever form the data has, and leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from mednorm import FrozenBatchNorm, freeze
from mednorm.errors import ConfigError, DataError
from mednorm.examine.gap import attribute
from mednorm.examine.probe import probe
from mednorm.population.batches import Batches
from tests.unit.examine.looking import everything, head, volume_network

IMAGES = torch.randn(10, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def in_batches(form):
    """The same ten images, in batches of 4, 4 and 2, in each of the forms that a loader may give."""
    parts = IMAGES.split(4)
    if form == "tensor":
        return Batches(list(parts))
    if form == "tuple":
        return Batches([(part, torch.zeros(len(part))) for part in parts])
    if form == "dict":
        return Batches([{"image": part} for part in parts])
    if form == "monai":
        return Batches([{"image": MetaTensor(part)} for part in parts])
    return Batches([[{"image": image} for image in part] for part in parts])  # patches


@pytest.mark.parametrize("form", ["tuple", "dict", "monai", "patches"])
def test_every_form_of_data_gives_the_same_as_plain_tensors(form):
    plain, other = probe(head(), in_batches("tensor")), probe(head(), in_batches(form))
    assert (
        (plain.images, plain.batch_size, plain.devices) == (other.images, other.batch_size, other.devices) == (10, 4, 1)
    )
    assert plain.gap.divergence == other.gap.divergence
    for a, b in zip(plain.layers, other.layers, strict=True):
        assert a.name == b.name
        for x, y in zip(a.seen.moments.fields(), b.seen.moments.fields(), strict=True):
            assert torch.equal(x, y)


def test_sites_are_counted_and_images_of_none_are_not_among_them():
    data = [{"image": IMAGES[:3], "site": ["B", None, "A"]}, {"image": IMAGES[3:5], "site": ["B", "B"]}]
    found = probe(head(), Batches(data))
    assert found.sites == {"A": 1, "B": 3}
    assert {site: seen.images for site, seen in found.layers[0].sites.items()} == {"A": 1, "B": 3}


def test_patients_are_counted_where_some_are_named():
    data = [{"image": IMAGES[:3], "site": ["B", "A", "A"], "case": ["p", None, None]}]
    assert probe(head(), Batches(data, patient="case")).patients == {"B": 1}
    assert probe(head(), Batches(data)).patients == {}


def test_layers_come_in_the_order_of_their_calls_and_those_not_called_last():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.last, self.first = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.last(self.first(self.first(x)))

    found = probe(Backwards(), Batches([IMAGES]))
    assert [(layer.name, layer.place, layer.around.calls) for layer in found.layers] == [
        ("first", 0, 2),
        ("last", 1, 1),
        ("unused", 2, 0),
    ]
    unused = found.layers[2]
    assert unused.seen is unused.batches is unused.dtype is None
    assert unused.around.updates_a_step == 0


def test_what_a_layer_holds_is_told():
    network = nn.Sequential(
        nn.BatchNorm2d(1, eps=1e-3, momentum=0.02),
        FrozenBatchNorm(1),
        nn.SyncBatchNorm(1, affine=False),
        nn.BatchNorm2d(1),
    )
    network[0].weight.data.fill_(2)
    for _ in range(3):
        network(IMAGES)
    freeze(network, where="3")
    network[3].eval()
    network[0].requires_grad_(False)
    first, frozen, synchronized, held = (layer.state for layer in probe(network, Batches([IMAGES])).layers)
    assert (first.eps, first.momentum, first.updates, first.learns, first.training) == (1e-3, 0.02, 3, False, True)
    assert first.weight.tolist() == [2.0]
    torch.testing.assert_close(first.running_var, network[0].running_var.double())
    assert first.initial_share == pytest.approx(0.98**3)
    assert [state.frozen for state in (first, frozen, synchronized, held)] == [False, True, False, True]
    assert [state.synchronized for state in (first, frozen, synchronized, held)] == [False, False, True, False]
    assert held.training is False
    assert synchronized.weight is None
    assert synchronized.learns is False


def test_the_batch_size_and_devices_of_the_training_may_be_said():
    found = probe(head(), Batches([IMAGES]), batch_size=2, devices=4)
    assert (found.batch_size, found.devices, found.images) == (2, 4, 10)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_and_all_random_states_are_bit_identical_afterwards(dims):
    network = head() if dims == 2 else volume_network()
    shape = (4, 1, *(6 + dims,) * dims)
    network(torch.randn(shape)).sum().backward()
    network[1].eval()
    before = everything(network)
    batches = Batches([torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    found = probe(network, batches)
    attribute(network, batches, found)
    assert everything(network) == before
    assert found.gap.batches == 2


class Failing:
    """A loader that draws random numbers and raises at its third batch."""

    def __iter__(self):
        for count in range(3):
            random.random(), np.random.rand()  # noqa: NPY002
            if count == 2:
                raise OSError("the disk is gone")
            yield torch.randn(4, 1, 12, 12)


def test_it_is_so_after_an_exception_of_the_loader():
    network = head()
    before = everything(network)
    with pytest.raises(OSError, match="disk"):
        probe(network, Batches(Failing()))
    assert everything(network) == before


def test_it_is_so_after_an_exception_of_the_network_also_with_the_statistics_of_the_batch():
    class Raising(nn.Module):
        def __init__(self, fails_at):
            super().__init__()
            self.body, self.calls, self.fails_at = head(), 0, fails_at

        def forward(self, x):
            self.calls += 1
            y = self.body(x)
            if self.calls == self.fails_at:
                raise RuntimeError("midway")
            return y

    for fails_at in (1, 2, 3):  # the second is that with the batch's statistics
        network = Raising(fails_at)
        before = everything(network)
        with pytest.raises(RuntimeError, match="midway"):
            probe(network, Batches([IMAGES, IMAGES]))
        assert everything(network) == before


def test_a_buffer_that_the_network_writes_to_in_evaluation_comes_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen += len(x)
            return self.norm(x)

    network = Counting()
    before = everything(network)
    probe(network, Batches([IMAGES, IMAGES]))
    assert everything(network) == before


def test_a_network_that_writes_into_its_input_leaves_the_data_alone_and_gives_the_same_gap():
    gaps = []
    for inplace in (True, False):
        x = 1 + IMAGES.clone()
        network = nn.Sequential(nn.ReLU(inplace=inplace), nn.BatchNorm2d(1))
        gaps.append(probe(network, Batches([x]), try_step=False).gap.divergence)
        assert torch.equal(x, 1 + IMAGES)
    assert gaps[0] == gaps[1]


def test_a_compiled_network_is_seen_too():
    network = head()
    compiled = torch.compile(network, backend="eager")
    compiled.eval()(IMAGES)
    found = probe(compiled, Batches([IMAGES]))
    assert [layer.name for layer in found.layers] == ["_orig_mod.1", "_orig_mod.5", "_orig_mod.9"]
    assert found.layers[0].seen.images == 10
    assert found.layers[1].around.before == "_orig_mod.4"


def test_progress_is_told_batch_by_batch():
    told = []
    probe(head(), in_batches("tensor"), progress=told.append)
    assert told == [1, 2, 3]


def test_a_network_without_such_layers_has_neither_layers_nor_a_gap():
    found = probe(nn.Conv2d(1, 1, 3), Batches([IMAGES]))
    assert (found.layers, found.gap, found.images) == ((), None, 10)


def test_a_lazy_network_is_refused():
    with pytest.raises(ConfigError, match=r"got 1 \(LazyBatchNorm2d\) without"):
        probe(nn.Sequential(nn.ReLU(), nn.LazyBatchNorm2d()), Batches([IMAGES]))


def test_fewer_than_no_batches_to_compare_are_refused():
    with pytest.raises(ConfigError, match="got -1"):
        probe(head(), Batches([IMAGES]), compare=-1)


def test_an_empty_loader_is_refused():
    with pytest.raises(DataError, match="at least one batch"):
        probe(head(), Batches([]))
