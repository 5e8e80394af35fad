"""DomainBatchNorm passes the suite of every layer, with and without sites; each site has statistics of its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm, DomainBatchNorm
from mednorm.errors import ConfigError, ShapeError
from mednorm.layers.sites import domain
from tests.harness import *  # noqa: F403
from tests.harness import CHANNELS, LayerSpec, assert_equal_to, bytes_of, images, to_numpy, train
from tests.oracle.groups import DomainBatchNormOracle

IMAGE = (6, CHANNELS, 3, 4)
SITES = ("Basel", "Lund", "Porto")
IDS = [0, 2, -1, 0, 2, -1]  # nobody from Lund


def sites_of(x):
    """Every third image of a site, the last third unknown; without spatial axes, groups of three images."""
    place = np.arange(len(x)) // (3 if x.ndim == 2 else 1)
    return [(0, 1, -1)[i % 3] for i in place]


class Sited(DomainBatchNorm):
    """The layer within the context that says where images come from."""

    def forward(self, input, mask=None):
        with domain(self, sites_of(input)):
            return super().forward(input, mask)


class SitedOracle(DomainBatchNormOracle):
    def train(self, x, mask=None):
        return super().train(x, mask, sites_of(x))

    def evaluate(self, x):
        return super().evaluate(x, sites_of(x))


SPECS = [
    LayerSpec(
        "nobody says the site",
        DomainBatchNorm,
        DomainBatchNormOracle,
        {"domains": 2, "momentum": None},
        torch_layer=None,
    ),
    LayerSpec(
        "sites, leaky relu, without parameters",
        Sited,
        SitedOracle,
        {"domains": SITES, "activation": "leaky_relu", "affine": False},
        torch_layer=None,
        compiles=False,
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def made(**options):
    return DomainBatchNorm(CHANNELS, **{"domains": SITES, **options}, dtype=torch.float64)


def trained(layer, steps=3, ids=IDS):
    for seed in range(steps):
        with domain(layer, ids):
            layer(images(IMAGE, torch.float64, seed=seed) * (1 + seed) + 10 * torch.tensor(ids).view(-1, 1, 1, 1))
    return layer


# --- training ---------------------------------------------------------------------------------------------------------


def test_parameters_of_each_site_have_the_oracles_gradients_and_buffers():
    layer = made(domain_affine=True, activation="relu")
    oracle = DomainBatchNormOracle(CHANNELS, domains=SITES, domain_affine=True, activation="relu")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
    for place, site in enumerate(oracle.sites):
        site.weight, site.bias = to_numpy(layer.domain_weight[place]), to_numpy(layer.domain_bias[place])
    for seed in range(3):
        x, grad = images(IMAGE, torch.float64, seed=seed), torch.randn(IMAGE, dtype=torch.float64)
        with domain(layer, IDS):
            y, grad_x = train(layer, x, grad)
        assert_equal_to(y, oracle.train(to_numpy(x), ids=IDS), 1e-10)
        named = (layer.weight, layer.bias, layer.domain_weight, layer.domain_bias)
        found = (grad_x, *(parameter.grad for parameter in named))
        for ours, wanted in zip(found, oracle.backward(to_numpy(grad)), strict=True):
            assert_equal_to(ours, wanted, 1e-10)
    for name, wanted in oracle.buffers().items():
        assert_equal_to(getattr(layer, name), wanted, 1e-10)
    with domain(layer.eval(), IDS):
        assert_equal_to(layer(x), oracle.evaluate(to_numpy(x), IDS), 1e-10)


def test_a_site_that_is_not_in_the_batch_does_not_move():
    layer = trained(made())
    assert layer.domain_batches.tolist() == [3, 0, 3]
    assert torch.equal(layer.domain_mean[1], torch.zeros(CHANNELS, dtype=torch.float64))
    assert torch.equal(layer.domain_var[1], torch.ones(CHANNELS, dtype=torch.float64))
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("ids", [IDS, [-1] * 6, [0] * 6], ids=["mixed", "all unknown", "one site"])
def test_the_pooled_statistics_are_those_of_batch_normalization(ids):
    layer, plain = made(), BatchNorm(CHANNELS, dtype=torch.float64)
    for seed in range(3):
        x = images(IMAGE, torch.float64, seed=seed) + 10 * torch.tensor(ids).view(-1, 1, 1, 1)
        with domain(layer, ids):
            layer(x)
        plain(x)
        assert_equal_to(layer.batch_moments.variance, plain.batch_moments.variance, 1e-12)
    for name, wanted in plain.state_dict().items():
        assert_equal_to(layer.state_dict()[name], wanted, 1e-12)


def test_a_cumulative_average_counts_each_sites_own_batches():
    layer = made(momentum=None)
    x = [images(IMAGE, torch.float64, seed=seed) for seed in range(3)]
    for batch, site in zip(x, ("Basel", "Lund", "Basel"), strict=True):
        with domain(layer, [site] * 6):
            layer(batch)
    assert_equal_to(layer.domain_mean[0], (x[0].mean((0, 2, 3)) + x[2].mean((0, 2, 3))) / 2, 1e-12)
    assert_equal_to(layer.domain_mean[1], x[1].mean((0, 2, 3)), 1e-12)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_each_sample_is_evaluated_by_its_own_sites_statistics():
    layer = trained(made()).eval()
    x = images(IMAGE, torch.float64, seed=9)
    with domain(layer, ["Porto", "Basel", "Basel", "Porto", "Basel", "Porto"]):
        y = layer(x)
    for image, (site, row) in enumerate(zip([2, 0, 0, 2, 0, 2], y, strict=True)):
        mean, std = layer.domain_mean[site], (layer.domain_var[site] + layer.eps).sqrt()
        assert_equal_to(row, (x[image] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), 1e-12)


@pytest.mark.parametrize(
    "ids",
    [["Lund"] * 6, ["Zagreb"] * 6, [-1] * 6, [None] * 6, ["Zagreb", -1, None, "Lund", 1, -1]],
    ids=["known, without a batch", "another name", "-1", "None", "all of these"],
)
def test_a_site_without_statistics_is_evaluated_by_the_pooled_ones(ids):
    layer = trained(made()).eval()
    plain = BatchNorm(CHANNELS, dtype=torch.float64).eval()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "domain" not in name})
    x = images(IMAGE, torch.float64, seed=9)
    with domain(layer, ids):
        assert_equal_to(layer(x), plain(x), 1e-12)
    assert_equal_to(layer(x), plain(x), 1e-12)


@pytest.mark.parametrize(
    "ids",
    [(0, 2, 1), ["Basel", "Porto", "Lund"], torch.tensor([0, 2, 1]), np.array([0, 2, 1]), [0, "Porto", 1]],
    ids=["numbers", "names", "tensor", "array", "mixed"],
)
def test_names_numbers_and_tensors_say_the_same(ids):
    layer = trained(made(), ids=[0, 1, 2, 0, 1, 2]).eval()
    x = images((3, CHANNELS, 4), torch.float64)
    with domain(layer, ids):
        y = layer(x)
    with domain(layer, ["Basel", "Porto", "Lund"]):
        assert torch.equal(layer(x), y)


def test_a_batch_says_the_sites_itself():
    layer = trained(made()).eval()
    x = images((2, CHANNELS, 4), torch.float64)
    with domain(layer, ["Porto", "Basel"]):
        wanted = layer(x)
    with domain(layer, {"image": x, "site": ["Porto", "Basel"]}):
        assert torch.equal(layer(x), wanted)
    with domain(layer, {"image": x, "scanner": torch.tensor([2, 0])}, key="scanner"):
        assert torch.equal(layer(x), wanted)


# --- the context ------------------------------------------------------------------------------------------------------


def test_the_context_reaches_every_layer_of_a_network_and_ends_with_an_exception():
    network = nn.Sequential(made(), nn.Sequential(made(domains=2), BatchNorm(CHANNELS, dtype=torch.float64)))
    with domain(network, [0, 1, 0]):
        network(images((3, CHANNELS, 4), torch.float64))
    with pytest.raises(ShapeError, match="got 2 "), domain(network, [0, 1]):
        network(images((3, CHANNELS, 4), torch.float64))
    assert network[0].domain_batches.tolist() == [1, 1, 0]
    assert network[1][0].domain_batches.tolist() == [1, 1]
    network(images((5, CHANNELS, 4), torch.float64))  # five images: sites that were left behind would not fit
    assert network[0].domain_batches.tolist() == [1, 1, 0]


def test_an_inner_context_holds_until_it_ends():
    layer = made()
    x = images((2, CHANNELS, 4), torch.float64)
    with domain(layer, [0, 0]):
        with domain(layer, [2, 2]):
            layer(x)
        layer(x)
    layer(x)
    assert layer.domain_batches.tolist() == [1, 0, 1]
    assert layer.num_batches_tracked == 3


def test_a_deep_copy_inside_the_context_is_a_layer_of_its_own():
    layer = made()
    with domain(layer, [0, 0]):
        twin = copy.deepcopy(layer)
        layer(images((2, CHANNELS, 4), torch.float64))
    assert twin.domain_batches.tolist() == [0, 0, 0]


# --- state ------------------------------------------------------------------------------------------------------------


def test_the_state_of_every_site_is_loaded_byte_for_byte():
    layer, other = trained(made(domain_affine=True)), made(domain_affine=True)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert bytes_of(other) == bytes_of(layer)


def test_a_reset_forgets_every_site():
    layer = trained(made())
    layer.reset_running_stats()
    assert bytes_of(layer) == bytes_of(made())


def test_a_batch_of_one_site_that_is_no_number_moves_neither_that_site_nor_the_pool():
    layer = trained(made())
    before = bytes_of(layer)
    x = images((4, CHANNELS, 3), torch.float64)
    x[0, 0, 0] = torch.nan
    with domain(layer, [0, 0, 2, 2]):
        layer(x)
    assert bytes_of(layer)["running_var"] == before["running_var"]
    assert layer.domain_batches[0] == 3
    assert layer.domain_mean.isfinite().all()
    assert layer.num_batches_skipped == 1


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_sites_that_are_not_one_a_sample_are_refused_with_both_lengths(count, training):
    layer = made().train(training)
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match=f"got {count} sites for 3 samples"), domain(layer, [0] * count):
        layer(images((3, CHANNELS, 4), torch.float64))
    assert bytes_of(layer) == before


@pytest.mark.parametrize("number", [3, 17, -2])
def test_a_number_that_is_no_site_is_refused_with_the_number_and_moves_nothing(number):
    layer = made()
    before = bytes_of(layer)
    with (
        pytest.raises(ConfigError, match=rf"0 … 2, or -1 for an unknown one, got {number}\."),
        domain(layer, [0, number]),
    ):
        layer(images((2, CHANNELS, 4), torch.float64))
    assert bytes_of(layer) == before


@pytest.mark.parametrize("value", [1.0, True, ["Basel"]], ids=repr)
def test_a_site_that_is_neither_name_nor_number_is_refused_with_what_came(value):
    with pytest.raises(ConfigError) as caught, domain(made(), ["Basel", value]):
        pass
    assert f"got {value!r}." in str(caught.value)


def test_one_text_for_all_samples_is_refused_with_the_text():
    with pytest.raises(ConfigError, match="one site a sample, got the text 'Basel'"), domain(made(), "Basel"):
        pass


def test_a_network_without_such_layers_is_refused_with_its_type():
    with pytest.raises(ConfigError, match="DomainBatchNorm, got none in Linear"), domain(nn.Linear(1, 1), [0]):
        pass


def test_a_single_value_of_a_site_is_refused_with_the_count_and_moves_nothing():
    layer = made()
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match=r"at least 2 values per channel.*got 1 "), domain(layer, [0, 0, 2]):
        layer(images((3, CHANNELS), torch.float64))
    assert bytes_of(layer) == before


@pytest.mark.parametrize("domains", [0, -1, 2.5, "Basel", [], [1, 2], None, True], ids=repr)
def test_domains_that_name_no_sites_are_refused_with_what_came(domains):
    with pytest.raises(ConfigError) as caught:
        DomainBatchNorm(3, domains=domains)
    assert f"got {domains!r}." in str(caught.value)


def test_a_site_named_twice_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"each site once in domains, got \['Basel', 'Lund', 'Basel'\]"):
        DomainBatchNorm(3, domains=["Basel", "Lund", "Basel"])


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"domain_affine": True, "affine": False}], ids=str)
def test_options_that_contradict_the_sites_are_refused_with_what_came(options):
    with pytest.raises(ConfigError, match="got False"):
        DomainBatchNorm(3, domains=2, **options)


def test_the_printed_layer_names_its_sites():
    assert repr(made()).endswith("domains=['Basel', 'Lund', 'Porto'], domain_affine=False)")
