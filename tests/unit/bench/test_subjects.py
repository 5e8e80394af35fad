"""What is measured does what it is said to do, in this process."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mednorm.bench import allocators, family, inference, layers, statistics, steps
from mednorm.bench.floor import Floor, tensors
from mednorm.bench.networks import NETWORKS, build_network
from mednorm.bench.saved import live_bytes, saved_bytes

SMALL = {"shape": [4, 8, 14, 14], "channels_last": False}
PEERS = ["torch", "torch-inplace", "mednorm"]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_peer_of_the_layers_takes_the_same_gradients(peer, channels_last):
    x, grad = tensors([4, 8, 6, 6], channels_last)
    step = layers.backward_of(layers._layer(peer, [4, 8, 6, 6]), x, grad)
    found = step()
    mean, variance = x.detach().mean((0, 2, 3), keepdim=True), x.detach().var((0, 2, 3), correction=0, keepdim=True)
    scaled = (x.detach() - mean) / (variance + 1e-5).sqrt()
    passed = grad * (scaled > 0)
    torch.testing.assert_close(found[1], (passed * scaled).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], passed.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    for _ in range(2):  # nothing is added up from step to step
        torch.testing.assert_close(step()[0], found[0])
    assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_the_floor_is_three_sums_a_copy_and_an_addition():
    x, grad = tensors([2, 4, 8, 8], False)
    floor = Floor(x, grad)
    floor.copy(0)
    torch.testing.assert_close(floor._y, x)
    floor._add()
    torch.testing.assert_close(floor._y, x + grad)
    assert floor.milliseconds(0.001) > floor.copy(0.001) > 0


@pytest.mark.parametrize("name", family.NAMES)
def test_every_layer_of_the_family_is_measured_beside_the_floor(name):
    found = family.build({"shape": [4, 8, 5, 5]}, name).round(0.001)
    assert found["milliseconds"] > found["floor"] > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_same_weights_every_time_and_pytorchs_norms(name):
    first, second = (build_network(name, list(NETWORKS[name].small)) for _ in range(2))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert {type(each) for each in first.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)} <= {
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    }


def test_gradients_that_differ_are_measured_against_their_norm():
    ours, theirs = (
        {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(1)},
        {"a": torch.tensor([3.0, 0.0]), "b": torch.ones(1)},
    )
    assert steps._apart(ours, theirs) == pytest.approx((17 / 10) ** 0.5)
    with pytest.raises(RuntimeError, match=r"gradients of \['b'\] are in one network alone"):
        steps._apart({"a": ours["a"]}, theirs)


def test_a_training_step_says_what_it_keeps_and_how_far_it_is_from_the_first_peer(tmp_path):
    of = ("article's CNN", [4, 1, 28, 28])
    first, second = (steps.TrainingStep(*of, peer) for peer in ("torch", "mednorm"))
    assert first.round(0.001)["milliseconds"] > 0
    theirs, ours = first.facts(tmp_path), second.facts(tmp_path)
    assert (theirs["gradient_difference"], theirs["gradient_difference_float64"]) == (0, 0)
    assert 0 < theirs["gradient_error"] < 1e-5
    assert 0 < ours["gradient_difference_float64"] < 1e-12
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.randn(16, 8)
    # The input of the first layer, and the output of ReLU, which ReLU and the second layer both save.
    assert saved_bytes(network, images) == (16 * 8 + 16 * 4) * 4


def test_live_bytes_count_what_stays_and_nothing_that_is_freed():
    class Wasteful(nn.Module):
        def forward(self, x):
            functional.relu(x.detach() * 2)
            return x.exp()

    images = torch.zeros(1000, requires_grad=True)
    assert live_bytes(Wasteful(), images) == 4000


def test_statistics_are_measured_with_every_layer_and_with_none():
    for peer in ("none", "BatchNorm", "MovingBatchNorm 4", "FrozenBatchNorm"):
        step = statistics.build({"network": "article's CNN", "shape": [2, 1, 28, 28]}, peer)
        norms = [type(module).__name__ for module in step._network.modules() if "BatchNorm" in type(module).__name__]
        assert norms == ([] if peer == "none" else 2 * [peer.split()[0]])


@pytest.mark.parametrize("peer", ["torch", "mednorm", "mednorm folded"])
def test_evaluation_gives_the_same_output_whoever_computes_it(peer):
    of = {"network": "BasicUNet 3-D", "shape": list(NETWORKS["BasicUNet 3-D"].small)}
    plain = inference.build(of, "torch")._call()
    torch.testing.assert_close(inference.build(of, peer)._call(), plain, rtol=1e-4, atol=1e-5)


def test_an_allocator_is_judged_by_time_pages_and_memory(tmp_path):
    step = allocators.build(SMALL, "torch")
    assert set(step.round(0.001)) == {"milliseconds", "floor", "page_faults"}
    assert step.facts(tmp_path)["peak_memory_mb"] >= 0
