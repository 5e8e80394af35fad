"""Activation checkpointing repeats forward passes; a layer then does what it did the first time, and counts once."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mednorm
from mednorm import BatchNorm, accumulate
from tests.harness import CHANNELS, assert_equal_to, bytes_of, images
from tests.unit.layers.kinds import IMAGES, KINDS, at_sites, network

MADE = {
    **{kind: partial(network, kind) for kind in KINDS},
    "clips that widen over four steps": partial(network, "renorm", schedule=4),
    "refreshed every second step": partial(network, "moving", refresh_every=2),
    "cumulative": partial(network, "batch", momentum=None),
}
ALL_NETWORKS = pytest.mark.parametrize("made", MADE.values(), ids=MADE)
REENTRANT = pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
SMALL = (8, CHANNELS, 3, 4)
SITES = torch.tensor([0, 2, -1, 0, 2, 2, -1, 0])


class Checkpointed(nn.Module):
    """Runs a network part by part, each of which keeps nothing for the backward pass but its input."""

    def __init__(self, whole, reentrant, nested=False):
        super().__init__()
        self.parts = nn.ModuleList([whole[:2], whole[2:4], whole[4:]])
        self.once = partial(checkpoint, use_reentrant=reentrant)
        self.nested = nested

    def forward(self, x):
        if self.nested:  # the inner ones are never reentrant, of which PyTorch warns within another
            return self.once(partial(self.run, partial(checkpoint, use_reentrant=False)), x)
        return self.run(self.once, x)

    def run(self, once, x):
        for part in self.parts:
            x = once(part, x)
        return x


def step(model, number, micro_batches=1, backward_inside=True):
    """Run one step with micro-batches and return the gradient of the input; sites are known going forward alone."""
    x = images(IMAGES, seed=number).requires_grad_()
    for micro, sites in zip(x.chunk(micro_batches), SITES.chunk(micro_batches), strict=True):
        with at_sites(model, sites):
            y = model(micro)
            loss = (y - sites[:, None]).square().mean()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
    return x.grad


def descend(net):
    """One step of gradient descent; return the gradients."""
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 0.005 * parameter.grad
                parameter.grad = None
    return gradients


def assert_trained_alike(net, twin, model, run):
    """Train a network as `model` and its twin as it is; every bit of gradients and state must be the same."""
    for number in range(5):
        ours, wanted = ((run(trained, number), *descend(whole)) for trained, whole in ((model, net), (twin, twin)))
        assert len(ours) == len(wanted)
        assert all(torch.equal(mine, other) for mine, other in zip(ours, wanted, strict=True))
        assert bytes_of(net) == bytes_of(twin)
    assert all(gradient.isfinite().all() for gradient in ours)


@REENTRANT
@ALL_NETWORKS
def test_gradients_and_statistics_are_those_without_checkpointing(made, reentrant):
    net = made()
    assert_trained_alike(net, copy.deepcopy(net), Checkpointed(net, reentrant), step)


@REENTRANT
@ALL_NETWORKS
def test_a_backward_pass_after_the_context_that_said_the_sites_knows_them(made, reentrant):
    net = made()
    after = partial(step, backward_inside=False)
    assert_trained_alike(net, copy.deepcopy(net), Checkpointed(net, reentrant), after)


@REENTRANT
@ALL_NETWORKS
def test_checkpoints_within_checkpoints_change_nothing(made, reentrant):
    net = made()
    assert_trained_alike(net, copy.deepcopy(net), Checkpointed(net, reentrant, nested=True), step)


@REENTRANT
@ALL_NETWORKS
def test_accumulated_micro_batches_are_the_same_with_checkpointing(made, reentrant):
    net = made()

    def accumulating(model, number):
        with accumulate(model):
            return step(model, number, micro_batches=4)

    assert_trained_alike(net, copy.deepcopy(net), Checkpointed(net, reentrant), accumulating)


@REENTRANT
@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_forward_pass_counts_no_batch(kind, reentrant):
    net = network(kind)
    for number in range(3):
        step(Checkpointed(net, reentrant), number)
    assert [net[place].num_batches_tracked.item() for place in (1, 3)] == [0 if kind == "frozen" else 3] * 2


@REENTRANT
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "frozen"])
def test_a_layer_that_an_accumulated_step_uses_twice_does_each_time_as_it_did(kind, reentrant):
    # Regression: renormalization repeated its first use with the correction of its second.
    layer = KINDS[kind](CHANNELS, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    for number in range(4):
        ours = used_twice(layer, number, partial(checkpoint, use_reentrant=reentrant))
        wanted = used_twice(twin, number, lambda function, x: function(x))
        for mine, expected in zip(ours, wanted, strict=True):
            assert_equal_to(mine, expected, 1e-12)  # the uses' gradients of one weight are added up in another order
        for name, expected in twin.named_buffers():
            assert torch.equal(getattr(layer, name), expected)


def used_twice(layer, number, run):
    """Use a layer twice in one step; return the gradients of input and weight."""
    layer.zero_grad()
    x = images(SMALL, torch.float64, seed=number).requires_grad_()

    def use(h):
        return layer(2 * h + 1).tanh()

    with accumulate(layer), at_sites(layer, SITES):
        (run(use, run(use, x)) ** 3).sum().backward()
    return x.grad, layer.weight.grad


@REENTRANT
def test_micro_batches_that_all_run_forward_before_one_backward_keep_their_corrections(reentrant):
    layer = KINDS["renorm"](CHANNELS)
    layer(images(SMALL, seed=9))
    twin = copy.deepcopy(layer)
    gradients = []
    for each, run in ((twin, twin), (layer, partial(checkpoint, layer, use_reentrant=reentrant))):
        x = images(SMALL).requires_grad_()
        with accumulate(each):
            torch.stack([(run(micro) ** 3).sum() for micro in x.split(2)]).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@REENTRANT
def test_sites_that_the_checkpointed_part_says_itself_are_heard_in_both_passes(reentrant):
    net = network("domain")
    twin = copy.deepcopy(net)

    def says(model, x):
        with mednorm.domain(model, SITES):
            return model(x)

    gradients = []
    for use in (partial(says, twin), partial(checkpoint, partial(says, net), use_reentrant=reentrant)):
        x = images(IMAGES).requires_grad_()
        use(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert bytes_of(net) == bytes_of(twin)
    assert net[1].domain_batches.tolist() == [1, 0, 1]


@REENTRANT
def test_a_bad_batch_is_counted_once(reentrant):
    layer = BatchNorm(CHANNELS)
    before = bytes_of(layer)
    x = images(SMALL)
    x[0, 0] = torch.inf
    checkpoint(layer, x.requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert layer.num_batches_skipped.item() == 1
    assert {**bytes_of(layer), "num_batches_skipped": None} == {**before, "num_batches_skipped": None}


@REENTRANT
def test_the_statistics_move_again_in_the_forward_pass_after_a_backward_pass(reentrant):
    layer, twin = BatchNorm(CHANNELS), BatchNorm(CHANNELS)
    for number in range(3):
        x = images(SMALL, seed=number)
        checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
        layer(x)
        twin(x)
        twin(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(layer, name), getattr(twin, name))
