"""What precedes and follows a layer: said where it is certain, and left open where not."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet
from torch import nn

from mednorm import BatchNorm
from mednorm.examine.probe import probe
from mednorm.examine.surroundings import surroundings
from mednorm.population.batches import Batch, Batches
from tests.unit.examine.looking import everything, head

EXAMPLE = Batch((torch.randn(2, 1, 16, 16),), None, (None, None))


def test_the_convolution_before_counts_with_and_without_a_bias():
    around = surroundings(head())
    assert (around["1"].before, around["1"].before_has_bias, around["1"].before_learns) == ("0", True, True)
    assert (around["5"].before, around["5"].before_has_bias) == ("4", False)
    assert (around["9"].before, around["9"].before_has_bias, around["9"].before_learns) == (None, False, None)


def test_a_convolution_that_holds_still_does_not_learn():
    network = head()
    network[0].requires_grad_(False)
    assert surroundings(network)["1"].before_learns is False


class Shared(nn.Module):
    """A convolution whose output the norm shares with another."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return self.act(z) + y + z


def test_where_another_takes_the_same_value_nothing_is_said():
    around = surroundings(Shared(), EXAMPLE)["norm"]
    assert around.before is None
    assert around.activation is None


@pytest.mark.parametrize(
    ("layers", "name", "found"),
    [
        ((nn.Dropout(0.2), nn.BatchNorm2d(1)), "1", "0"),
        ((nn.Dropout(0.2), nn.ReLU(), nn.BatchNorm2d(1)), "2", "0"),
        ((nn.Dropout2d(0.2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "3", "0"),
        ((nn.Dropout(0.2), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "4", None),
        ((nn.Dropout(0.2), nn.InstanceNorm2d(1), nn.BatchNorm2d(1)), "2", None),
        ((nn.Dropout(0.0), nn.BatchNorm2d(1)), "1", None),
        ((nn.BatchNorm2d(1), nn.Dropout(0.2)), "0", None),
        ((nn.Dropout(0.2), nn.Dropout(0.3), nn.PReLU(), nn.BatchNorm2d(1)), "3", "1"),
    ],
)
def test_a_dropout_counts_that_reaches_the_layer_through_one_convolution_at_most(layers, name, found):
    network = nn.Sequential(*layers)
    around = surroundings(network)[name]
    assert around.dropout_before == found
    assert around.dropout_rate == (network.get_submodule(found).p if found else 0)


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (nn.LeakyReLU(), "LeakyReLU"),
        (nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.GELU()), "GELU"),
        (nn.Conv2d(1, 1, 1), None),
        (nn.MaxPool2d(2), None),
    ],
)
def test_the_activation_that_follows_is_told(after, found):
    assert surroundings(nn.Sequential(nn.BatchNorm2d(1), after))["0"].activation == found


def test_a_function_and_a_fused_activation_are_activations_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(1), BatchNorm(1, activation="leaky_relu")

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    around = surroundings(Functional())
    assert (around["a"].activation, around["b"].activation) == ("relu", "leaky_relu")


def test_monais_networks_are_understood():
    network = BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="batch", dropout=0.1)
    around = surroundings(network)
    second = around["conv_0.conv_1.adn.N"]
    assert (second.before, second.dropout_before, second.dropout_rate, second.activation) == (
        "conv_0.conv_1.conv",
        "conv_0.conv_0.adn.D",
        0.1,
        "LeakyReLU",
    )
    assert all(each.before and each.before_has_bias for each in around.values())
    residual = surroundings(SegResNet(2, 8, 1, 2, norm="batch"))
    assert residual["up_layers.0.0.norm2"].before == "up_layers.0.0.conv1.conv"


class Untraceable(nn.Module):
    """What it does depends on the values."""

    def __init__(self):
        super().__init__()
        self.drop, self.conv, self.norm = nn.Dropout(0.2), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        if x.mean() > 1e6:
            raise RuntimeError("too large")
        return torch.relu(self.norm(self.conv(self.drop(x))))


def test_a_network_that_cannot_be_traced_is_watched():
    network = Untraceable()
    before = everything(network)
    around = surroundings(network, EXAMPLE)["norm"]
    assert (around.before, around.dropout_before, around.activation) == ("conv", "drop", "relu")
    assert everything(network) == before


def test_where_neither_works_all_but_the_weight_decay_stays_open():
    optimizer = torch.optim.SGD((network := Untraceable()).parameters(), weight_decay=0.1)
    around = surroundings(network, Batch((1e9 + torch.zeros(2, 1, 8, 8),), None, (None, None)), optimizer)["norm"]
    assert (around.before, around.dropout_before, around.activation) == (None, None, None)
    assert around.decay == 0.1


def test_weight_decay_is_that_of_the_group_that_has_the_parameters():
    network = head()
    norms = [network[1].weight, network[1].bias]
    optimizer = torch.optim.AdamW(
        [
            {"params": norms, "weight_decay": 0.0},
            {"params": [network[0].weight, network[5].weight], "weight_decay": 0.3},
        ],
        weight_decay=0.1,
    )
    first, second, _ = (layer.around for layer in probe(network, Batches(EXAMPLE.inputs), optimizer=optimizer).layers)
    assert (first.decay, first.decay_before) == (0.0, 0.3)
    assert (second.decay, second.decay_before) == (0.3, 0.0)  # the optimizer does not have network[4]


def test_without_an_optimizer_the_weight_decay_is_unknown():
    around = surroundings(head())["1"]
    assert around.decay is around.decay_before is None


def test_a_wrapped_network_has_its_own_names():
    around = surroundings(nn.DataParallel(head()))
    assert around["module.1"].before == "module.0"
    assert around["module.5"].dropout_before == "module.3"
