"""An activation stays a module where the network has a path, taken or not, on which the layer is without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mednorm.surgery.convert import convert
from tests.harness import images
from tests.unit.surgery.networks import seasoned

X = images((4, 6, 5, 6), seed=9)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu, self.head = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
        self.aux = nn.Conv2d(6, 2, 1)


class DeepSupervision(Block):
    def forward(self, x):
        h = self.bn(self.conv(x))
        y = self.head(self.relu(h))
        return (y, self.aux(h)) if self.training else y


class EarlyReturn(Block):
    def forward(self, x, pre=False):
        h = self.bn(self.conv(x))
        return h if pre else self.head(self.relu(h))


class Embedding(Block):
    def forward(self, x):
        return self.head(self.relu(self.embed(x)))

    def embed(self, x):
        return self.bn(self.conv(x))


def fused(net):
    report = convert(net, "batch", fuse_activation=True)
    return [layer.name for layer in report.changed if "Takes in the activation after it." in layer.notes], report


@pytest.mark.parametrize("training", [False, True])
def test_an_output_for_training_alone_is_what_it_was(training):
    net = seasoned(DeepSupervision())
    net.train(training)
    net.bn.momentum = 0.0
    expected = [tensor.detach() for tensor in net.train()(X)]
    names, report = fused(net.train(training))
    assert names == []
    assert "its output is used 2 times: 'relu' (ReLU), 'aux' (Conv2d)" in report.changed[0].notes[0]
    assert net.training == training
    for ours, theirs in zip(net.train()(X), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_early_return_is_what_it_was():
    net = seasoned(EarlyReturn())
    expected = net(X, pre=True)
    names, report = fused(net)
    assert names == []
    assert report.changed[0].notes[0].endswith(", with pre=True.")
    torch.testing.assert_close(net(X, pre=True), expected, rtol=1e-5, atol=1e-5)
    assert net(X, pre=True).min() < 0


def test_a_second_public_method_gives_what_it_gave():
    net = seasoned(Embedding())
    expected = net.embed(X)
    names, report = fused(net)
    assert names == []
    assert "has a method 'embed' that seems to use 'bn' without 'relu'" in report.changed[0].notes[0]
    torch.testing.assert_close(net.embed(X), expected, rtol=1e-5, atol=1e-5)


def test_that_a_watched_network_has_paths_that_were_not_taken_is_said():
    class Branching(Block):
        def forward(self, x, full=True):
            h = self.bn(self.conv(x))
            return self.head(self.relu(h)) if x.sum() > -1e9 and full else h

    report = convert(seasoned(Branching()), "batch", fuse_activation=True, example=(X,))
    assert "Takes in the activation after it." in report.changed[0].notes
    assert report.notes[-1].endswith(
        "watched on the example instead, in evaluation mode and with full=True: paths that it did not take there were "
        "not seen."
    )


@pytest.mark.parametrize("slope", [-0.1, float("nan")])
def test_a_slope_that_our_layers_cannot_have_leaves_the_activation(slope):
    net = seasoned(nn.Sequential(nn.BatchNorm2d(6), nn.LeakyReLU(slope), nn.BatchNorm2d(6), nn.LeakyReLU(0.0)))
    expected = net(X)
    names, report = fused(net)
    assert names == ["2"]
    assert [(layer.name, layer.reason) for layer in report.left] == [
        ("1", f"not taken in: its negative_slope is {slope!r}, and ours take one of at least 0")
    ]
    assert "'1' (LeakyReLU) cannot be taken in" in report.changed[0].notes[0]
    torch.testing.assert_close(net(X), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
