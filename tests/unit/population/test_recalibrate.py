"""Running statistics become those of the population, exactly; what should stay stays, whatever happens."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

import mednorm
from mednorm import Moments, recalibrate
from mednorm.errors import RunError
from tests.harness import bytes_of
from tests.processes import run_alone
from tests.unit.layers.kinds import KINDS, at_sites
from tests.unit.layers.kinds import network as of_kind
from tests.unit.population.networks import (
    NETWORKS,
    SIZES,
    Broken,
    everything_of,
    images_for,
    made,
    norms,
    population,
)

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)
BOTH = pytest.mark.parametrize("method", ["sequential", "batch"])


def assert_statistics(network: nn.Module, wanted: dict, tolerance: float) -> None:
    """Means to within so many standard deviations, variances relatively."""
    for name, layer in norms(network).items():
        mean, variance = wanted[name]
        assert ((layer.running_mean - mean).abs() <= tolerance * variance.sqrt()).all(), name
        assert ((layer.running_var - variance).abs() <= tolerance * variance).all(), name


# --- the statistics ---------------------------------------------------------------------------------------------------


@EVERY_NETWORK
def test_sequential_gives_each_layer_the_statistics_of_all_images_in_one_batch(name):
    network, images = made(name), images_for(name)
    before = everything_of(network)
    report = recalibrate(network, images.split(SIZES))
    order = [layer.name for layer in report.layers]
    assert sorted(order) == sorted(norms(network))
    assert_statistics(network, population(network, images, order), 1e-6)
    after = everything_of(network)
    for what in before.keys() - {"bytes"}:
        assert before[what] == after[what], what
    parameters = {name for name, _ in network.named_parameters()}
    assert {name: value for name, value in after["bytes"].items() if name in parameters} == {
        name: value for name, value in before["bytes"].items() if name in parameters
    }


def test_the_order_is_that_of_the_calls():
    report = recalibrate(made("residual 3-D"), images_for("residual 3-D").split(4))
    assert [layer.name for layer in report.layers] == ["first", "second", "last"]


def test_sequential_reads_the_images_once_a_layer_and_twice_more_and_the_first_needs_no_pass():
    done = []
    recalibrate(made("planes"), images_for("planes").split(SIZES), progress=done.append)
    assert done == list(range(1, 4 * len(SIZES) + 1))  # all, second, third, all


def test_a_pass_for_a_layer_ends_at_that_layer():
    network, calls = made("planes"), []
    network[4].register_forward_hook(lambda *_: calls.append("second"))
    network[7].register_forward_hook(lambda *_: calls.append("third"))
    recalibrate(network, images_for("planes").split(SIZES))
    assert (calls.count("second"), calls.count("third")) == (4 * len(SIZES), 3 * len(SIZES))


def test_batch_keeps_the_variance_between_batches_that_averaging_loses():
    level = torch.tensor([-6.0, 0.0, 6.0]).repeat_interleave(4).view(12, 1, 1, 1)
    images = level + torch.randn(12, 1, 16, 16)
    batches = images.split(4)
    ours, theirs = nn.Sequential(nn.BatchNorm2d(1)), nn.Sequential(nn.BatchNorm2d(1))
    recalibrate(ours, batches, "batch")
    update_bn(batches, theirs)
    assert ours[0].running_var.item() == pytest.approx(images.double().var().item(), rel=1e-6)
    assert theirs[0].running_var.item() < 0.1 * images.var().item()


def test_batch_is_what_reaches_the_layers_when_all_normalize_with_the_statistics_of_the_batch():
    network, images = made("planes"), images_for("planes")
    twin = copy.deepcopy(network).train()
    twin[3].eval()
    reached = {name: [] for name in norms(twin)}
    for name, layer in norms(twin).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: reached[name].append(args[0].detach().double()))
    for batch in images.split((7, 8)):
        twin(batch)
    recalibrate(network, images.split((7, 8)), "batch")
    joined = {name: torch.cat(parts).transpose(0, 1).flatten(1) for name, parts in reached.items()}
    assert_statistics(network, {name: (each.mean(1), each.var(1)) for name, each in joined.items()}, 1e-5)


def test_a_layer_that_is_called_twice_gets_the_statistics_of_both_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(x) + self.norm(10 + 3 * x)

    network, x = Twice(), torch.randn(6, 1, 8, 8)
    report = recalibrate(network, x.split(2))
    both = torch.cat([x, 10 + 3 * x]).double()
    assert network.norm.running_mean.item() == pytest.approx(both.mean().item(), rel=1e-6)
    assert network.norm.running_var.item() == pytest.approx(both.var().item(), rel=1e-6)
    assert (report.layers[0].images, report.layers[0].values) == (6, 2 * 6 * 64)


@pytest.mark.parametrize("kind", ["batch", "renorm", "ghost", "moving"])
def test_our_layers_get_what_pytorchs_get(kind):
    mine, images = of_kind(kind), 2 + torch.randn(9, 2, 8, 8)
    theirs = copy.deepcopy(mine)
    for name, layer in norms(theirs).items():
        twin = nn.Sequential(nn.BatchNorm2d(layer.num_features), nn.ReLU())
        twin[0].load_state_dict(layer.state_dict())
        theirs[int(name)] = twin
    recalibrate(mine, images.split(4))
    recalibrate(theirs, images.split(4))
    for name, layer in norms(mine).items():
        torch.testing.assert_close(layer.running_mean, theirs[int(name)][0].running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var, theirs[int(name)][0].running_var, rtol=1e-5, atol=1e-6)


def test_a_moving_layer_without_means_gets_the_mean_square():
    layer, x = KINDS["moving by weights"](2), 3 + torch.randn(6, 2, 8, 8)
    recalibrate(nn.Sequential(layer), x.split(4))
    assert torch.equal(layer.running_mean, torch.zeros(2))
    torch.testing.assert_close(layer.running_var, x.double().square().mean((0, 2, 3)).float())


def test_a_layer_by_range_gets_the_spread_that_batches_of_that_size_have():
    layer, x = mednorm.RangeBatchNorm(1), torch.randn(12, 1, 16, 16)
    recalibrate(nn.Sequential(layer), x.split(3))
    each = Moments.pool([Moments.of(batch.double()).by_range() for batch in x.split(3)])
    torch.testing.assert_close(layer.running_var, each.unbiased_variance.float())


def test_each_site_gets_its_own_statistics_and_the_pooled_ones_are_of_all():
    layer = KINDS["domain"](1)
    names = ["Basel", "Lund", None, "Basel", "Lund", "elsewhere"]
    x = torch.randn(6, 1, 8, 8) + torch.tensor([0.0, 50, 20, 0, 50, 9]).view(6, 1, 1, 1)
    batches = [{"image": part, "site": names[start : start + 3]} for start, part in ((0, x[:3]), (3, x[3:]))]
    report = recalibrate(nn.Sequential(layer), batches)
    wanted = Moments.of(x[[0, 3]].double()), Moments.of(x[[1, 4]].double())
    for site, moments in enumerate(wanted):
        torch.testing.assert_close(layer.domain_mean[site], moments.mean.float())
        torch.testing.assert_close(layer.domain_var[site], moments.unbiased_variance.float())
    assert layer.running_var.item() == pytest.approx(x.double().var().item(), rel=1e-6)
    assert (layer.domain_mean[2].item(), layer.domain_batches.tolist()) == (0, [1, 1, 0])
    with at_sites(layer, ["Basel", "Lund"]):
        y = layer.eval()(x[:2])
    assert y.mean((1, 2, 3)).abs().max() < 0.5
    report.rollback()
    assert bytes_of(layer) == bytes_of(KINDS["domain"](1))


def test_values_outside_of_a_mask_do_not_count():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = mednorm.BatchNorm(1)

        def forward(self, x):
            return self.norm(x, mask=x != 0)

    network, x = Masked(), 5 + torch.randn(4, 1, 8, 8)
    padded = nn.functional.pad(x, (0, 8))
    recalibrate(network, padded.split(3))
    assert network.norm.running_var.item() == pytest.approx(x.double().var().item(), rel=1e-6)


def test_large_tensors_are_measured_in_parts_with_the_same_result(monkeypatch):
    x = torch.randn(5, 2, 8, 8)
    whole, parts = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2))
    recalibrate(whole, [x])
    monkeypatch.setattr("mednorm.population.measure._AT_ONCE", 200)
    recalibrate(parts, [x])
    torch.testing.assert_close(whole[0].running_var, parts[0].running_var, rtol=1e-7, atol=0)


def test_statistics_that_are_no_numbers_are_mended():
    network, images = made("planes"), images_for("planes")
    healthy = copy.deepcopy(network)
    network[1].running_var.fill_(torch.nan)
    network[5].running_mean.fill_(torch.inf)
    report = recalibrate(network, images.split(SIZES))
    recalibrate(healthy, images.split(SIZES))
    assert bytes_of(network) == bytes_of(healthy)
    assert report.layers[0].before != report.layers[0].before
    assert report.layers[1].after < 1e-3


@pytest.mark.parametrize(("momentum", "tracked"), [(0.1, 900), (None, 4)])
def test_the_count_of_batches_starts_anew_for_averages_alone(momentum, tracked):
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=momentum))
    network[0].num_batches_tracked.fill_(900)
    recalibrate(network, torch.randn(8, 1, 4, 4).split(2))
    assert network[0].num_batches_tracked.item() == tracked


def test_a_layer_never_trained_counts_the_batches_it_saw():
    network = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate(network, torch.randn(8, 1, 4, 4).split(2))
    assert network[0].num_batches_tracked.item() == 4


# --- loaders ----------------------------------------------------------------------------------------------------------


def in_form(images: torch.Tensor, form: str) -> object:
    if form == "dict":
        return {"image": images, "label": torch.zeros(len(images))}
    if form == "tuple":
        return images, torch.zeros(len(images))
    if form == "patches":
        return [{"image": MetaTensor(image, meta={"site": "A"})} for image in images]
    return MetaTensor(images)


@pytest.mark.parametrize("form", ["dict", "tuple", "patches", "monai"])
def test_every_form_of_batch_gives_the_same(form):
    images, network = images_for("planes"), made("planes")
    twin = copy.deepcopy(network)
    recalibrate(network, [in_form(batch, form) for batch in images.split(SIZES)])
    recalibrate(twin, images.split(SIZES))
    assert bytes_of(network) == bytes_of(twin)


def test_a_limit_ends_each_pass_early():
    images, network = images_for("planes"), made("planes")
    twin = copy.deepcopy(network)
    report = recalibrate(network, images.split(SIZES), limit=2)
    recalibrate(twin, images[:10].split((7, 3)))
    assert bytes_of(network) == bytes_of(twin)
    assert (report.images, report.batches) == (10, 2)


def test_a_shuffling_loader_gives_every_pass_the_same_images():
    class Shuffling:
        seen: list[torch.Tensor] = []  # noqa: RUF012

        def __iter__(self):
            order = torch.randperm(15)
            self.seen.append(order)
            return iter(images[order].split(SIZES)[:2])

    images, loader = images_for("planes"), Shuffling()
    recalibrate(made("planes"), loader)
    assert len(loader.seen) > 3
    assert all(torch.equal(order, loader.seen[-1]) for order in loader.seen[1:])


# --- what is left -----------------------------------------------------------------------------------------------------


def test_frozen_layers_those_without_statistics_and_those_not_asked_for_are_left_with_the_reason():
    network = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2),
        mednorm.FrozenBatchNorm(2),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.Sequential(nn.BatchNorm2d(2)),
    )
    network.unused = nn.BatchNorm2d(2)
    network.forward = lambda x: nn.Sequential(*list(network)[:6])(x)
    mednorm.freeze(network, where="1")
    before = bytes_of(network)
    report = recalibrate(network, [5 + torch.randn(4, 2, 8, 8)], where=["0", "1", "2", "3", "4", "unused"])
    assert [layer.name for layer in report.layers] == ["0"]
    assert {layer.name: layer.reason for layer in report.left} == {
        "1": "frozen: mednorm.unfreeze lets it go",
        "2": "its statistics never move, by its class",
        "3": "it keeps no running statistics",
        "4": "it normalizes each image by itself",
        "5.0": "not asked for by `where`",
        "unused": "no batch reached it",
    }
    changed = {name for name, value in bytes_of(network).items() if value != before[name]}
    assert changed == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert "  2       FrozenBatchNorm  left: its statistics never move, by its class\n" in str(report)
    assert "  1 layer left: not asked for by `where`" in str(report)


@BOTH
def test_a_frozen_layer_normalizes_with_its_own_statistics_meanwhile(method):
    network, images = made("planes"), images_for("planes")
    mednorm.freeze(network, where="1")
    recalibrate(network, images.split(SIZES), method)
    reached = [network[:5].eval()(batch) for batch in images.split(SIZES)]
    joined = torch.cat(reached).double()
    torch.testing.assert_close(network[5].running_mean.double(), joined.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network[5].running_var.double(), joined.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_a_network_without_such_layers_is_said_aloud_and_no_image_is_read():
    report = recalibrate(nn.Sequential(nn.Conv2d(1, 2, 3)), Broken([], ValueError("read"), 1, 0))
    assert str(report) == "Nothing was recalibrated: found no batch normalization with running statistics."
    assert not report.kept
    with pytest.raises(RunError, match="nothing was"):
        report.rollback()


# --- wrapped ----------------------------------------------------------------------------------------------------------


def test_a_compiled_network_is_recalibrated_as_the_network_it_holds():
    network, images = made("planes"), images_for("planes")
    twin = copy.deepcopy(network)
    report = recalibrate(torch.compile(network, backend="eager"), images.split(SIZES))
    recalibrate(twin, images.split(SIZES))
    assert bytes_of(network) == bytes_of(twin)
    assert [layer.name for layer in report.layers] == ["1", "5", "8"]


def test_distributed_data_parallel_is_unwrapped(tmp_path):
    def work() -> None:
        network, images = made("planes"), images_for("planes")
        recalibrate(DistributedDataParallel(network), images.split(SIZES), process_group="world")
        assert_statistics(network, population(network, images, ["1", "5", "8"]), 1e-6)

    run_alone(work, tmp_path)
