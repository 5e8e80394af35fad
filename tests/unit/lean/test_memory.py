"""activation_memory counts what is kept, and leaves everything as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm, BatchRenorm, activation_memory, lean_activations
from mednorm.errors import ConfigError
from tests.unit.lean.steps import UNet, scan

FLOAT = 4


def test_every_byte_of_a_small_network_is_told():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1))
    image, inner, channels = 3 * 8 * 8 * FLOAT, 3 * 4 * 6 * 6 * FLOAT, 4 * FLOAT
    kept = activation_memory(net, scan())
    told = {layer.name: (layer.kind, layer.ordinary, layer.lean) for layer in kept}
    # The norm keeps its input, and mean and deviation; what follows keeps its copies of γ, β and the running ones.
    assert told["0"] == ("Conv2d", image, image)
    assert told["1"] == ("BatchNorm2d", inner + 2 * channels, inner + 2 * channels)
    assert told["2"][:2] == ("ReLU", inner)
    assert 0 < told["2"][2] <= 4 * channels
    assert told.keys() == {"0", "1", "2"}
    assert kept.ordinary == image + 2 * inner + 2 * channels


def test_a_tensor_that_two_layers_keep_counts_once_for_the_first():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.left(x).sum() + self.right(x).sum()

    layers = activation_memory(Fork(), (scan(),)).by_layer()
    assert layers["left"].ordinary == 3 * 8 * 8 * FLOAT
    assert "right" not in layers


def test_what_a_network_keeps_between_its_layers_is_its_own():
    layers = activation_memory(UNet(), scan()).by_layer()
    pooled, indices = 3 * 4 * 4 * 4 * FLOAT, 3 * 4 * 4 * 4 * 8
    assert layers["UNet"].lean == pytest.approx(indices + 3 * 4 * 8 * 8 * FLOAT, rel=0.1)  # and what padding takes
    assert layers["down"].lean == pooled
    assert layers["join"].ordinary == 3 * 8 * 8 * 8 * FLOAT
    assert layers["join"].lean == 0


def test_a_larger_example_keeps_more_in_proportion():
    small, large = (activation_memory(UNet(), scan(size=size)) for size in (16, 32))
    assert large.lean == pytest.approx(4 * small.lean, rel=0.05)
    assert large.ordinary == pytest.approx(4 * small.ordinary, rel=0.05)


def everything(net):
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002
    tensors = net.state_dict(keep_vars=True)
    values = {
        name: (id(tensor), tensor._version, tensor.tolist(), None if tensor.grad is None else tensor.grad.tolist())
        for name, tensor in tensors.items()
    }
    modes = [module.training for module in net.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in net.modules()]
    return states, values, modes, hooks, [list(vars(module)) for module in net.modules()]


class Random(nn.Module):
    """Draws from every generator."""

    def __init__(self, fails=False):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 2, 1), BatchRenorm(2, schedule=0), nn.Dropout(), nn.BatchNorm2d(2).eval())
        self.fails = fails

    def forward(self, x):
        y = self.net(x) * random.random() * np.random.rand()  # noqa: NPY002
        if self.fails:
            raise ArithmeticError("in the middle")
        return y


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_the_network_and_every_generator_are_left_as_they_were(fails, train):
    net = Random(fails).train(train)
    net.net[3].eval()
    net.net[0].weight.grad = torch.ones_like(net.net[0].weight)
    moments, before = net.net[1].batch_moments, everything(net)
    if fails:
        with pytest.raises(ArithmeticError, match="in the middle"):
            activation_memory(net, scan())
    else:
        activation_memory(net, scan())
    assert everything(net) == before
    assert net.net[1].batch_moments is moments
    assert len(net.net[1]._corrections) == 0


def test_a_network_in_evaluation_mode_is_measured_as_it_would_train():
    net = UNet()
    assert activation_memory(copy.deepcopy(net).eval(), scan()) == activation_memory(net, scan())


def test_without_gradients_the_caller_still_learns_what_training_keeps():
    net = UNet()
    with torch.no_grad():
        inside = activation_memory(net, scan())
    assert inside == activation_memory(net, scan())


def test_the_table_has_a_line_for_each_layer_and_the_sums_at_its_head():
    kept = activation_memory(UNet(), scan())
    lines = str(kept).splitlines()
    assert f"{kept.ordinary / 1024:.1f} KiB for its backward pass; lean, {kept.lean / 1024:.1f} KiB" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [layer.name for layer in kept.layers]
    assert kept.to_dict()["lean"] == sum(layer["lean"] for layer in kept.to_dict()["layers"])


def test_hooks_in_force_and_lazy_networks_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), BatchNorm(2))
    with lean_activations(net), pytest.raises(ConfigError, match="expected no hooks for saved tensors, got some"):
        activation_memory(net, scan())
    with pytest.raises(ConfigError, match=r"expected a network with weights, got 0 \(LazyConv2d\) without"):
        activation_memory(nn.Sequential(nn.LazyConv2d(2, 1)), scan())
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module, got list"):
        activation_memory([net], scan())
