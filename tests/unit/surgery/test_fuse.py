"""Activations are taken in where that is certain to change nothing, and given back."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from monai.networks.blocks import ADN
from torch import nn
from torch.nn import functional

from mednorm.layers import BatchNorm, GhostBatchNorm
from mednorm.surgery.convert import convert
from tests.harness import images

SHAPE = (4, 6, 5, 6)


def settled(net, shape=SHAPE):
    """A network in evaluation whose statistics, γ and β all matter, and its output."""
    for seed in range(3):
        net(images(shape, seed=seed))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(-2, 2)
                module.bias.uniform_(-1, 1)
    return net.eval()


def chain(activation):
    return nn.Sequential(nn.BatchNorm2d(6), activation, nn.Conv2d(6, 6, 1))


@pytest.mark.parametrize("to", ["batch", "sync", "renorm", "ghost", "moving", "range", "domain", "frozen"])
@pytest.mark.parametrize(
    ("activation", "name", "slope"),
    [
        (lambda: nn.ReLU(), "relu", 0.01),
        (lambda: nn.ReLU(inplace=True), "relu", 0.01),
        (lambda: nn.LeakyReLU(0.2), "leaky_relu", 0.2),
    ],
    ids=["relu", "relu in place", "leaky"],
)
def test_a_pair_in_a_sequence_is_one_layer_that_gives_the_same(to, activation, name, slope):
    net, x = settled(chain(activation())), images(SHAPE, seed=9)
    expected, keys = net(x), list(net.state_dict())
    report = convert(net, to, fuse_activation=True, **({"domains": 2} if to == "domain" else {}))
    assert (net[0].activation, net[0].negative_slope) == (name, slope)
    assert type(net[1]) is nn.Identity
    assert "Takes in the activation after it." in report.changed[0].notes
    assert report.changed[0].target.endswith(f" + {name}")
    assert report.exact
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)
    if to != "domain":
        assert list(net.state_dict()) == keys


def test_gradients_in_training_are_those_of_the_pair():
    net = settled(chain(nn.LeakyReLU(0.2))).train()
    twin = copy.deepcopy(net)
    convert(net, "batch", fuse_activation=True)
    for each in (net, twin):
        each(images(SHAPE, seed=9)).square().sum().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", ["torch", "group", "layer", "instance"])
@pytest.mark.parametrize("way", ["as it is", "deepcopy", "torch.save"])
def test_a_kind_without_an_activation_gives_it_back_to_where_it_came_from(to, way):
    net = settled(chain(nn.LeakyReLU(0.2, inplace=True)))
    twin = copy.deepcopy(net)
    convert(net, "ghost", fuse_activation=True)
    convert(net, "renorm")  # it travels on through other layers
    if way == "deepcopy":
        net = copy.deepcopy(net)
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        net = torch.load(file, weights_only=False)
    report = convert(net, to)
    convert(twin, to)
    assert str(net) == str(twin)
    assert vars(net[1]) == vars(twin[1])
    assert "Gave the activation back to the module it came from." in report.changed[0].notes
    x = images(SHAPE, seed=9)
    assert torch.equal(net(x.clone()), twin(x.clone()))


def test_an_activation_that_came_from_nowhere_follows_in_a_sequence():
    inner = BatchNorm(6, activation="leaky_relu", negative_slope=0.3)
    net = settled(nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(6, 6, 1), inner)})["a"])
    x = images(SHAPE, seed=9)
    expected = net(x)
    report = convert(net, "torch")
    assert type(net[1]) is nn.Sequential
    assert type(net[1].norm) is nn.BatchNorm2d
    assert net[1].norm is inner
    assert not net[1].activation.training
    assert report.exact
    assert report.changed[0].notes[-1] == (
        "Its activation follows it in an nn.Sequential: its keys in the state_dict have 'norm.' in them now."
    )
    assert list(net.state_dict())[2] == "1.norm.weight"
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


def test_a_layer_with_an_activation_that_is_the_network_becomes_a_new_object():
    layer = settled(GhostBatchNorm(6, activation="relu", ghost_size=2))
    x = images(SHAPE, seed=9)
    expected = layer(x)
    report = convert(layer, "torch", dims=2)
    assert report.model is not layer
    assert "use report.model" in report.changed[0].notes[-1]
    assert torch.allclose(report.model(x), expected, rtol=1e-6, atol=1e-6)


def test_a_layer_used_at_two_places_has_its_activation_behind_it_at_both():
    layer = BatchNorm(6, activation="relu")
    net = settled(nn.Sequential(layer, nn.Conv2d(6, 6, 1), layer))
    x = images(SHAPE, seed=9)
    expected = net(x)
    convert(net, "torch")
    assert net[0] is net[2]
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


def test_monais_block_is_fused_unless_a_dropout_stands_between():
    plain = ADN("NA", 6, act="leakyrelu", norm="batch", norm_dim=2)
    idle = ADN("NDA", 6, act="relu", norm="batch", norm_dim=2, dropout=0.0)
    dropping = ADN("NDA", 6, act="relu", norm="batch", norm_dim=2, dropout=0.5)
    net = settled(nn.Sequential(plain, idle, dropping))
    x = images(SHAPE, seed=9)
    expected = net(x)
    report = convert(net, "batch", fuse_activation=True)
    assert [block.N.activation for block in net] == ["leaky_relu", "relu", None]
    assert type(dropping.A) is nn.ReLU
    (left,) = report.left
    assert (left.name, left.kind) == ("2.A", "ReLU")
    assert "Dropout" in left.reason
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


class Residual(nn.Module):
    """The usual block: the first activation is the layer's alone, the second comes after the sum."""

    def __init__(self, shared):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.relu2 = self.relu if shared else nn.ReLU()

    def forward(self, x):
        return self.relu2(self.norm2(self.relu(self.norm1(x))) + x)


def test_pairs_are_found_by_tracing_where_the_forward_pass_says_them():
    net = settled(Residual(shared=False))
    x = images(SHAPE, seed=9)
    expected = net(x)
    report = convert(net, "batch", fuse_activation=True)
    assert (net.norm1.activation, net.norm2.activation) == ("relu", None)
    assert [layer.name for layer in report.left] == ["relu2"]
    assert "No activation taken in: " in report.changed[1].notes[0]
    assert "add" in report.changed[1].notes[0]
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


def test_an_activation_that_serves_elsewhere_too_stays():
    net = settled(Residual(shared=True))
    x = images(SHAPE, seed=9)
    expected = net(x)
    report = convert(net, "batch", fuse_activation=True)
    assert (net.norm1.activation, net.norm2.activation) == (None, None)
    assert [(layer.name, layer.kind) for layer in report.left] == [("relu", "ReLU")]
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        return torch.relu(self.c(self.b(functional.relu(self.a(x))).relu()))


def test_a_functional_activation_cannot_be_taken_out_and_is_named():
    net = settled(Functional())
    x = images(SHAPE, seed=9)
    expected = net(x)
    report = convert(net, "batch", fuse_activation=True)
    assert [layer.target for layer in report.changed] == ["BatchNorm"] * 3
    assert all("relu" in layer.notes[0] for layer in report.changed)
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(x if x.sum() > 0 else -x))


def test_a_network_that_cannot_be_traced_is_fused_with_an_example_and_said_without():
    net = settled(Untraceable())
    without = convert(net, "batch", inplace=False, fuse_activation=True)
    assert without.model.norm.activation is None
    assert any("could not be traced" in note for note in without.notes)
    watched = convert(net, "batch", inplace=False, fuse_activation=True, example=(images(SHAPE),))
    assert watched.model.norm.activation == "relu"
    x = images(SHAPE, seed=9)
    assert torch.allclose(watched.model(x), net(x), rtol=1e-6, atol=1e-6)


def test_a_layer_of_the_kind_already_still_takes_in_its_activation():
    net = nn.Sequential(BatchNorm(6), nn.ReLU(), BatchNorm(6), nn.Tanh())
    report = convert(net, "batch", fuse_activation=True)
    assert [layer.name for layer in report.changed] == ["0"]
    assert net[0].activation == "relu"
    assert report.left[0].name == "2"
    assert report.left[0].reason.startswith("is of this kind already; no activation taken in: its output goes to")


def test_a_layer_that_is_left_leaves_its_activation():
    net = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU())
    convert(net, "moving", fuse_activation=True)
    assert type(net[1]) is nn.ReLU
    convert(nn.Sequential(nn.BatchNorm2d(6), net), "batch", fuse_activation=True, where="0")
    assert type(net[1]) is nn.ReLU


def test_fusing_is_not_done_unasked():
    net = chain(nn.ReLU())
    convert(net, "batch")
    assert net[0].activation is None
    assert type(net[1]) is nn.ReLU
