"""Every kind into every other: what evaluates equal, and what is said where it does not."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import mednorm.layers as ours
from mednorm.errors import ConfigError
from mednorm.surgery.convert import convert
from tests.harness import bytes_of, images
from tests.unit.surgery.converting import EVERY, OPTIONS, RUNNING, SHAPES, WITHOUT, settled


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(RUNNING, 2)))
def test_from_each_kind_with_running_statistics_to_each_other_evaluates_equal(first, second):
    layer, x = settled(nn.BatchNorm2d(6, momentum=0.3)), images(SHAPES[2], seed=9)
    expected = layer.eval()(x)
    before = bytes_of(layer)
    convert(layer, first, **OPTIONS.get(first, {}))
    report = convert(layer, second, **OPTIONS.get(second, {}))
    assert report.exact
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)
    assert {name: bytes_of(layer)[name] for name in before} == before
    assert (layer.momentum, layer.eps, layer.training) == (0.3, 1e-5, False)


@pytest.mark.parametrize("to", RUNNING[:-1])
def test_each_kind_becomes_the_class_it_names(to):
    names = {"batch": "BatchNorm", "sync": "BatchNorm", "renorm": "BatchRenorm", "frozen": "FrozenBatchNorm"}
    layer = nn.BatchNorm3d(6)
    convert(layer, to, **OPTIONS.get(to, {}))
    assert type(layer) is getattr(ours, names.get(to, f"{to.title()}BatchNorm"))
    assert layer.process_group == ("world" if to == "sync" else None)


@pytest.mark.parametrize("rank", [1, 2, 3])
@EVERY
def test_torchs_own_class_comes_back_without_being_named(to, rank):
    cls = getattr(nn, f"BatchNorm{rank}d")
    net = nn.Sequential(cls(6, momentum=None, eps=1e-3), nn.Conv2d(6, 6, 1))  # another rank than the convolution's
    twin = copy.deepcopy(net)
    convert(net, to, **OPTIONS.get(to, {}))
    net = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    convert(net, "torch")
    assert type(net[0]) is cls
    assert (net[0].momentum, net[0].eps) == (None, 1e-3)
    assert vars(net[0]).keys() == vars(twin[0]).keys()
    assert list(net.state_dict()) == list(twin.state_dict())
    assert bytes_of(net) == bytes_of(twin)


def test_the_rank_of_a_layer_that_was_never_torchs_is_that_of_the_convolutions_or_dims():
    net = nn.Sequential(nn.Conv3d(1, 6, 1), ours.BatchNorm(6))
    report = convert(net, "torch", inplace=False)
    assert type(report.model[1]) is nn.BatchNorm3d
    assert report.changed[0].notes == ("3 spatial axes, as the convolutions have; dims= says otherwise.",)
    assert type(convert(net, "instance", dims=1).model[1]) is nn.InstanceNorm1d


@pytest.mark.parametrize(
    ("others", "got"),
    [((), "no convolutions"), ((nn.Conv2d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1)), "convolutions of 2-D and 3-D")],
)
def test_a_rank_that_nothing_says_is_asked_for_and_nothing_is_changed(others, got):
    net = nn.Sequential(nn.BatchNorm2d(2), ours.BatchNorm(6), *others)
    convert(net, "batch")
    net[0].eps = 0.5
    with pytest.raises(ConfigError, match=f"axes of 1, .* got {got} in the network. Pass dims=1, 2 or 3"):
        convert(net, "torch")
    assert type(net[0]) is ours.BatchNorm


def test_torchs_synchronized_layer_keeps_its_group_and_comes_back():
    net = nn.Sequential(nn.SyncBatchNorm(6))
    report = convert(net, "ghost")
    assert net[0].process_group == "world"
    assert report.exact
    convert(net, "torch")
    assert type(net[0]) is nn.SyncBatchNorm
    assert net[0].process_group is None
    report = convert(net, "batch")
    assert net[0].process_group is None
    assert report.changed[0].notes == ("Statistics are no longer taken over several processes.",)
    assert report.changed[0].source == "SyncBatchNorm"


@EVERY
def test_a_layer_without_gamma_and_beta_stays_without(to):
    layer = nn.BatchNorm2d(6, affine=False)
    layer(images(SHAPES[2]))
    report = convert(layer, to, **OPTIONS.get(to, {}))
    assert list(layer.parameters()) == []
    assert not layer.affine
    assert report.exact == (to in RUNNING)


@pytest.mark.parametrize("to", ["batch", "sync", "torch", "renorm", "ghost", "range", "group", "instance", "layer"])
def test_a_layer_without_running_statistics_stays_without(to):
    net = nn.Sequential(ours.BatchNorm(6, track_running_stats=False), nn.BatchNorm2d(6, track_running_stats=False))
    x = images(SHAPES[2])
    expected = net.eval()(x)
    report = convert(net, to, dims=2, **OPTIONS.get(to, {}))
    assert report.exact == (to in ("batch", "sync", "torch", "renorm"))
    assert torch.allclose(net(x), expected, atol=1e-6) == report.exact
    assert [name for name, _ in net.named_buffers() if "running" in name] == []


@pytest.mark.parametrize("to", ["moving", "domain", "frozen"])
def test_a_kind_that_needs_running_statistics_leaves_a_layer_without(to):
    net = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.BatchNorm2d(6))
    report = convert(net, to, **OPTIONS.get(to, {}))
    assert type(net[0]) is nn.BatchNorm2d
    assert [layer.name for layer in report.changed] == ["1"]
    assert "keeps no running statistics, which" in report.left[0].reason


@pytest.mark.parametrize("to", WITHOUT)
def test_a_kind_without_running_statistics_says_that_they_are_lost_and_where_they_start_again(to):
    layer, x = settled(nn.BatchNorm2d(6, momentum=0.3)), images(SHAPES[2], seed=9)
    weight = layer.weight.clone()
    there = convert(layer, to)
    assert "running statistics did not" in there.changed[0].notes[0]
    assert [name for name, _ in layer.named_buffers()] == []
    back = convert(layer, "batch")
    assert "start at mean 0 and variance 1" in back.changed[0].notes[0]
    assert layer.momentum == 0.3
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.running_var, torch.ones(6))
    layer.train()(x)
    assert layer.num_batches_tracked == 1


def test_kinds_that_take_statistics_of_each_image_are_compared_by_their_groups():
    net, x = nn.Sequential(nn.InstanceNorm2d(6, affine=True)), images(SHAPES[2])
    expected = net(x)
    report = convert(net, "group", num_groups=6)
    assert report.exact
    assert torch.allclose(net(x), expected, atol=1e-6)
    assert not convert(net, "layer").exact
    assert not torch.allclose(net(x), expected, atol=1e-2)
    assert convert(net, "instance", inplace=False).exact is False
    assert net[0].num_groups == 1


def test_instance_normalization_with_running_statistics_evaluates_as_batch_normalization_does():
    layer = settled(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    x = images(SHAPES[2], seed=9)
    expected = layer.eval()(x)
    assert convert(layer, "batch").exact
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)
    assert convert(layer, "instance", track_running_stats=True).exact
    assert type(layer) is nn.InstanceNorm2d
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("channels", "asked", "groups"), [(6, None, 6), (32, None, 8), (7, 4, 1), (12, 8, 6)])
def test_groups_are_the_most_that_divide_the_channels_and_the_report_says_which(channels, asked, groups):
    net = nn.Sequential(nn.BatchNorm2d(channels))
    report = convert(net, "group", **({} if asked is None else {"num_groups": asked}))
    assert net[0].num_groups == groups
    said = [note for note in report.changed[0].notes if "groups:" in note]
    expected = f"{groups} groups: {asked or 8} do not divide {channels} channels."
    assert said == ([] if groups == (asked or 8) else [expected])


def test_layer_normalization_is_over_channels_and_space():
    net = nn.Sequential(nn.BatchNorm3d(6))
    convert(net, "layer")
    x = images(SHAPES[3])
    assert torch.allclose(net(x), nn.functional.layer_norm(x, x.shape[1:]), atol=1e-5)


def test_options_reach_the_layers_and_what_is_not_given_stays():
    net = nn.Sequential(nn.BatchNorm2d(6, momentum=0.3))
    convert(net, "renorm", r_max=2.0, schedule=50)
    report = convert(net, "renorm", d_max=1.0, momentum=0.2)
    assert (net[0].r_max, net[0].d_max, net[0].schedule, net[0].momentum) == (2.0, 1.0, 50, 0.2)
    assert len(report.changed) == 1
    assert convert(net, "renorm", d_max=1.0).changed == ()


def test_new_parameters_are_announced_and_start_where_the_common_ones_are():
    layer = settled(nn.BatchNorm2d(6))
    x = images(SHAPES[2], seed=9)
    expected = layer.eval()(x)
    report = convert(layer, "domain", domains=["Basel", "Lund"], domain_affine=True)
    assert report.changed[0].notes == (
        "New parameters domain_weight, domain_bias: build the optimizer, or add them to it, after this.",
    )
    with ours.domain(layer, ["Basel", "Lund", "Basel", "Bern"]):
        assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_statistics_of_sites_follow_their_names_and_what_is_lost_is_said():
    layer = ours.DomainBatchNorm(6, domains=["Basel", "Lund"])
    for seed in range(3):
        with ours.domain(layer, ["Basel", "Basel", "Lund", "Lund"]):
            layer(images(SHAPES[2], seed=seed) + torch.tensor([0.0, 0, 9, 9]).view(4, 1, 1, 1))
    x = images(SHAPES[2], seed=9)
    with ours.domain(layer.eval(), ["Lund"] * 4):
        at_lund = layer(x)
    pooled = layer(x)
    wider = convert(layer, "domain", inplace=False, domains=["Bern", "Lund", "Basel"])
    assert wider.exact
    with ours.domain(wider.model, ["Lund"] * 4):
        assert torch.equal(wider.model(x), at_lund)
    assert convert(layer, "domain", inplace=False, domains=["Basel", "Lund"]).changed == ()
    narrower = convert(layer, "domain", inplace=False, domains=["Lund"])
    assert narrower.changed[0].notes == (
        "Statistics of the sites Basel are gone: those of all images together serve them.",
    )
    plain = convert(layer, "batch")
    assert not plain.exact
    assert "sites Basel, Lund are gone" in plain.changed[0].notes[0]
    assert torch.allclose(layer(x), pooled, rtol=1e-6)
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(6).state_dict())


def test_moving_statistics_centred_by_the_weights_are_exact_only_without_a_mean():
    layer = settled(nn.BatchNorm2d(6))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    report = convert(layer, "moving", centering="weights")
    assert not report.exact
    assert torch.equal(layer.running_mean, torch.zeros(6))
    assert torch.allclose(layer.running_var, var + mean.square())
    centred = nn.BatchNorm2d(6)
    centred.running_var.fill_(3)
    report = convert(centred, "moving", centering="weights")
    assert report.exact
    assert report.changed[0].notes == (
        "num_batches_tracked is 0: the first training batch replaces the running statistics.",
    )


def test_a_batch_renormalization_says_that_its_schedule_goes_on():
    assert "starts where the training before ended" in convert(settled(nn.BatchNorm2d(6)), "renorm").changed[0].notes[0]
    assert convert(nn.BatchNorm2d(6), "renorm").changed[0].notes == ()


@pytest.mark.parametrize("to", [*RUNNING, *WITHOUT])
def test_a_layer_with_gamma_alone_stays_so_and_trains(to):
    layer = nn.BatchNorm2d(6)
    layer.bias = None
    x = images(SHAPES[2])
    layer(x)
    expected = layer.eval()(x)
    net = nn.Sequential(layer)
    options = {"domains": 2, "domain_affine": True} if to == "domain" else OPTIONS.get(to, {})
    report = convert(net, to, **options)
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6) == (to in RUNNING)
    assert report.exact == (to in RUNNING)
    net.train()(x).square().sum().backward()
    assert layer.bias is None
    assert layer.weight.grad.abs().min() > 0


def test_a_frozen_layer_made_of_one_without_statistics_says_that_they_never_move():
    report = convert(nn.Sequential(nn.GroupNorm(2, 6)), "frozen")
    assert "mean 0 and variance 1, and never move" in report.changed[0].notes[0]


def test_the_rank_is_remembered_on_the_way_over_kinds_that_have_none():
    layer = nn.GroupNorm(2, 6)
    convert(layer, "instance", dims=3)
    convert(layer, "layer")
    convert(layer, "torch")
    assert type(layer) is nn.BatchNorm3d
