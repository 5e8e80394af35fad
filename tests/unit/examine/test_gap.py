"""The gap between running and batch statistics, and the layers that make it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import FrozenBatchNorm, freeze
from mednorm.examine.gap import attribute
from mednorm.examine.probe import probe
from mednorm.guards import batch_statistics, evaluation_mode
from mednorm.population.batches import Batches
from tests.unit.examine.looking import head, volume_network


def images(count=8, dims=2, seed=1):
    return torch.randn(count, 1, *(8,) * dims, generator=torch.Generator().manual_seed(seed))


def settle(network, x):
    """Give each layer, as running ones, the very statistics that it has in this batch."""
    found = {}

    def note(layer, args):
        axes = (0, *range(2, args[0].dim()))
        found[layer] = args[0].mean(axes), args[0].var(axes, correction=0)

    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    with evaluation_mode(network), batch_statistics(network):
        network(x)
    for handle in handles:
        handle.remove()
    for layer, (mean, variance) in found.items():
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return network


def both(network, x):
    """Return outputs with running statistics and with those of the batch, in float64."""
    with evaluation_mode(network):
        running = network(x).double().numpy()
        with batch_statistics(network):
            return running, network(x).double().numpy()


@pytest.mark.parametrize(("build", "dims"), [(head, 2), (volume_network, 3)])
def test_there_is_no_gap_where_running_statistics_are_those_of_the_batch(build, dims):
    x = images(dims=dims)
    found = probe(settle(build(), x), Batches([x]))
    assert found.gap.divergence < 1e-5
    assert found.gap.batches == 1


@pytest.mark.parametrize(("build", "dims"), [(head, 2), (volume_network, 3)])
def test_the_divergence_is_that_of_numpy_over_every_third_batch(build, dims):
    network, data = build(), [images(n, dims, seed) for seed, n in enumerate((4, 8, 3, 2, 5))]
    running, own = (np.concatenate(parts) for parts in zip(*(both(network, x) for x in data[::3]), strict=True))
    axes = (0, *range(2, own.ndim))
    expected = math.sqrt((((running - own) ** 2).mean(axes) / own.var(axes)).mean())
    found = probe(network, Batches(data))
    assert found.gap.batches == 2
    assert found.gap.divergence == pytest.approx(expected, rel=1e-5)


def test_no_more_batches_are_compared_than_asked_for():
    found = probe(head(), Batches([images()] * 9), compare=2)
    assert found.gap.batches == 2
    assert probe(head(), Batches([images()]), compare=0).gap is None


def test_a_batch_without_statistics_of_its_own_is_not_compared():
    data = [images(1)] * 3 + [images(4)]
    assert probe(head(), Batches(data)).gap.batches == 1  # its last norm has single values
    assert probe(head(), Batches(data[:3])).gap is None


def test_the_metric_of_both_modes_is_weighted_by_images():
    network, data = head(), [(images(n, seed=n), torch.arange(float(n))) for n in (4, 2, 2, 6)]

    def metric(y, labels):
        return float((y[:, 0] * labels).mean())

    expected = [0.0, 0.0]
    for x, labels in (data[0], data[3]):
        for mode, y in enumerate(both(network, x)):
            expected[mode] += metric(torch.from_numpy(y), labels) * len(x) / 10
    found = probe(network, Batches(data), metric=metric)
    assert found.gap.metric == pytest.approx(tuple(expected), rel=1e-5)


def test_without_labels_or_metric_there_is_none():
    assert probe(head(), Batches([images()]), metric=lambda *_: 1.0).gap.metric is None
    assert probe(head(), Batches([(images(), torch.zeros(8))])).gap.metric is None


def test_layers_that_hold_still_in_training_make_no_gap():
    network = head()
    freeze(network)
    assert probe(network, Batches([images()])).gap is None
    half = nn.Sequential(FrozenBatchNorm(1), nn.BatchNorm2d(1))
    x = 3 + images()
    gap = probe(half, Batches([x])).gap
    alone = probe(half[1], Batches([x])).gap
    assert gap.divergence == pytest.approx(alone.divergence, rel=1e-4)


@pytest.mark.parametrize("form", [lambda y: (y, y[:, :1]), lambda y: {"main": y, "side": [y[:, :1]]}])
def test_all_tensors_of_an_output_are_compared(form):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = head()

        def forward(self, x):
            return form(self.body(x))

    x = images()
    running, own = both(head(), x)
    shares = ((running - own) ** 2).mean(0) / own.var(0)
    found = probe(Several(), Batches([x]))
    assert found.gap.divergence == pytest.approx(math.sqrt((shares.sum() + shares[0]) / 3), rel=1e-5)


def test_an_output_channel_that_is_constant_does_not_decide_alone():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            y = self.norm(x)
            return torch.cat([y, torch.full_like(y, 7)], 1)

    x = 2 + images()
    alone = probe(nn.BatchNorm2d(1), Batches([x])).gap.divergence
    assert probe(Padded(), Batches([x])).gap.divergence == pytest.approx(alone / math.sqrt(2), rel=1e-4)


def test_a_gap_with_outputs_that_are_no_numbers_is_infinite():
    network = head()
    network[1].running_var.fill_(-1)
    assert probe(network, Batches([images()])).gap.divergence == math.inf


def test_a_network_that_draws_random_numbers_in_evaluation_has_no_gap_from_that():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(x) + torch.randn_like(x)

    x = images()
    assert probe(settle(Noisy(), x), Batches([x])).gap.divergence < 1e-6


@pytest.mark.parametrize(("build", "dims", "bad"), [(head, 2, "1"), (head, 2, "5"), (volume_network, 3, "3")])
def test_the_layer_whose_running_statistics_are_wrong_explains_the_gap(build, dims, bad):
    x = images(16, dims)
    network = settle(build(), x)
    layer = network.get_submodule(bad)
    layer.running_mean += 2 * layer.running_var.sqrt()
    layer.running_var *= 9
    batches = Batches([x])
    found = attribute(network, batches, probe(network, batches))
    shares = found.gap.by_layer
    assert set(shares) == {layer.name for layer in found.layers}
    assert max(shares, key=shares.get) == bad
    assert shares[bad] > 0.999


def test_two_layers_explain_their_share_of_a_sum():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    x = images()
    network = settle(Sum(), x)
    network.a.running_mean += 3 * network.a.running_var.sqrt()  # outputs lie 3 lower, and 1 lower by the other
    network.b.running_mean += network.b.running_var.sqrt()
    batches = Batches([x])
    shares = attribute(network, batches, probe(network, batches)).gap.by_layer
    assert shares["a"] == pytest.approx(1 - 1 / 16, rel=1e-4)
    assert shares["b"] == pytest.approx(1 - 9 / 16, rel=1e-4)


def test_a_layer_that_makes_an_output_infinite_explains_all_of_the_gap():
    x = images()
    network = settle(head(), x)
    network[5].running_var.fill_(-1)
    batches = Batches([x])
    shares = attribute(network, batches, probe(network, batches)).gap.by_layer
    assert shares["5"] == 1
    assert shares["1"] == shares["9"] == 0


def test_of_many_layers_the_first_that_is_off_and_the_farthest_are_looked_at():
    x = images(16)
    layers = [part for _ in range(12) for part in (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))]
    network = settle(nn.Sequential(*layers), x)
    network[5].running_mean += network[5].running_var.sqrt()
    for place in (15, 19, 23):
        network[place].running_mean += 5 * network[place].running_var.sqrt()
    batches = Batches([x])
    shares = attribute(network, batches, probe(network, batches), most=4).gap.by_layer
    assert {"5", "15"} <= set(shares)
    assert len(shares) == 4
    whole = attribute(network, batches, probe(network, batches)).gap.by_layer
    assert len(whole) == 12
    assert {name: whole[name] for name in shares} == shares


def test_outputs_that_never_vary_show_no_gap():
    x = images(8)
    network = settle(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()), x)
    network[2].bias.data.fill_(-30.0)
    network[0].running_mean += 1.0
    assert probe(network, Batches([x])).gap is None


def test_where_there_is_no_gap_nothing_is_attributed():
    network, batches = nn.Conv2d(1, 1, 3), Batches([images()])
    found = probe(network, batches)
    assert attribute(network, batches, found) is found
