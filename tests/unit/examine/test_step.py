"""How often running statistics move in a step: whatever calls the layer, and whatever calls it again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mednorm import BatchNorm, FrozenBatchNorm, freeze
from mednorm.examine.probe import probe
from mednorm.examine.step import few, updates_in_a_step
from mednorm.population.batches import Batch, Batches
from tests.unit.examine.looking import everything, head


def moves(network, x=None):
    return updates_in_a_step(network, few(Batch((torch.randn(4, 1, 8, 8) if x is None else x,), None, (None,) * 4)), {})


class Checkpointed(nn.Module):
    def __init__(self, norm, reentrant):
        super().__init__()
        self.first, self.reentrant = nn.Conv2d(1, 2, 3), reentrant
        self.block = nn.Sequential(nn.Conv2d(2, 2, 1), norm, nn.ReLU())

    def forward(self, x):
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("norm", "times"), [(nn.BatchNorm2d, 2), (BatchNorm, 1)])
def test_checkpointing_moves_the_statistics_of_pytorchs_layers_twice_and_of_ours_once(norm, times, reentrant):
    assert moves(Checkpointed(norm(2), reentrant)) == {"block.1": times}


@pytest.mark.parametrize("reentrant", [True, False])
def test_so_it_does_where_the_layer_is_the_last_in_the_checkpoint(reentrant):
    network = Checkpointed(nn.BatchNorm2d(2), reentrant)
    network.block = network.block[:2]
    assert moves(network) == {"block.1": 2}


def test_a_layer_moves_at_every_place_where_it_is_called():
    layer = nn.BatchNorm2d(1)
    assert moves(nn.Sequential(layer, nn.ReLU(), layer)) == {"0": 2}


def test_what_holds_still_does_not_move_and_what_keeps_nothing_is_not_told():
    layers = FrozenBatchNorm(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1)
    network = nn.Sequential(*layers)
    freeze(network, where="1")
    assert moves(network) == {"0": 0, "1": 0, "3": 1}


def test_a_layer_that_stays_in_evaluation_while_the_network_trains_does_not_move():
    network = head()
    network[1].eval()
    assert moves(network) == {"1": 0, "5": 1, "9": 1}
    assert moves(network.eval()) == {"1": 1, "5": 1, "9": 1}


def test_a_single_image_is_enough_also_where_a_norm_follows_the_pooling():
    found = probe(head(), Batches([torch.randn(1, 1, 8, 8)]))
    assert [layer.around.updates_a_step for layer in found.layers] == [1, 1, 1]


def test_what_is_random_or_fails_leaves_the_network_and_the_random_states_as_they_were():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = head()

        def forward(self, x):
            y = self.body(x)
            if self.training:
                raise RuntimeError("not in training")
            return y

    for network, expected in ((head(), 1), (Failing(), None)):
        x = torch.randn(4, 1, 8, 8)
        before = everything(network)
        assert moves(network, x).get("1") == expected
        assert everything(network) == before
        assert probe(network, Batches([x])).layers[0].around.updates_a_step == expected


def test_a_step_that_would_take_the_memory_there_is_is_not_tried():
    assert updates_in_a_step(head(), few(Batch((torch.randn(4, 1, 8, 8),), None, (None,) * 4)), {"1": 10**15}) == {}


def test_without_being_asked_nothing_is_tried():
    found = probe(head(), Batches([torch.randn(4, 1, 8, 8)]), try_step=False)
    assert {layer.around.updates_a_step for layer in found.layers} == {None}


def test_a_network_of_which_nothing_learns_moves_all_the_same():
    assert moves(head().requires_grad_(False)) == {"1": 1, "5": 1, "9": 1}


def test_few_images_are_copies_of_the_first_and_other_inputs_stay():
    x, scale = torch.arange(8.0).reshape(4, 2), torch.ones(3)
    batch = few(Batch((x, scale, "mode"), "labels", ("A", "B", None, "A")))
    assert torch.equal(batch.inputs[0], x[:2])
    assert torch.equal(batch.inputs[1], scale)
    assert batch.inputs[2] == "mode"
    assert (batch.labels, batch.sites) == (None, ("A", "B"))
    batch.inputs[0].zero_()
    assert x[1, 1] == 3
