"""What is written into is noticed; nothing is held longer, and nothing stays behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from mednorm import BatchNorm, lean_activations
from mednorm.lean.activations import hooks_are_free
from tests.unit.lean.steps import UNet, after_a_step, assert_same_bits, scan


class Block(nn.Module):
    """A convolution, the norm and another convolution, and what a test does in between."""

    def __init__(self, between=lambda before, after: after, act="relu"):
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(1, 4, 3), BatchNorm(4, activation=act), nn.Conv2d(4, 4, 1)
        self.between = between

    def forward(self, x):
        before = self.conv(x)
        return self.next(self.between(before, self.norm(before)))


def test_the_input_of_a_norm_that_is_written_into_is_an_error_as_it_is_ordinarily():
    net = Block()
    before = net.conv(scan()).detach().requires_grad_().clone()
    with lean_activations(net):
        y = net.next(net.norm(before)).sum()
    with torch.no_grad():
        before.add_(1)
    with pytest.raises(
        RuntimeError, match=r"modified by an inplace operation.*CloneBackward0, is at version 1; exp.* 0"
    ):
        y.backward()


def test_an_output_that_is_written_into_before_it_is_kept_is_kept_as_it_is():
    net, x = Block(lambda _, after: after.mul_(2)), scan()
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))


def test_an_output_that_is_written_into_after_it_was_kept_is_computed_as_it_was():
    def add_in_place(_, after):
        kept = after.square()
        after += 1  # what square keeps is as it was before
        return kept

    net, twin, x = Block(add_in_place), Block(lambda _, after: after.square()), scan()
    twin.load_state_dict(net.state_dict())
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(twin, x, lean=False))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        after_a_step(net, x, lean=False)


def test_a_norm_whose_input_was_written_into_keeps_its_output():
    def overwrite(before, after):
        with torch.no_grad():
            before.zero_()
        return after

    net = Block(overwrite)
    with lean_activations(net):
        y = net(scan())
    (kept,) = torch.autograd.grad(y.sum(), net.next.weight)  # the norm itself has no gradient any more
    assert kept.abs().min() > 0


def test_a_part_of_a_concatenation_that_is_written_into_later_is_an_error():
    net = UNet()
    part = torch.randn(3, 4, 8, 8, requires_grad=True).clone()
    with lean_activations(net):
        y = net.join(torch.cat([net.norm1(net.first(scan())), part], 1)).sum()
    with torch.no_grad():
        part.zero_()
    with pytest.raises(RuntimeError, match="what is computed again needs the tensors it was made of as they were"):
        y.backward()


def test_parameters_may_move_between_what_is_computed_twice():
    net, x = nn.Sequential(Block(act=None), nn.ReLU(), nn.Conv2d(4, 1, 1)), scan()
    with lean_activations(net):
        y = net(x).sum()
    wanted = torch.autograd.grad(y, net[2].weight, retain_graph=True)
    with torch.no_grad():
        net[0].norm.bias.add_(1)
        net[0].norm.weight.add_(1)
    assert torch.equal(torch.autograd.grad(y, net[2].weight)[0], wanted[0])


def test_the_graph_may_be_kept_and_walked_again():
    net, x = UNet(), scan()
    with lean_activations(net):
        loss = net(x).square().mean()
    first, second = (torch.autograd.grad(loss, net.parameters(), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "in the block"])
@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
def test_second_derivatives_have_the_ordinary_bits(act, inside):
    def penalized(net, x):
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return slope

    net, x = UNet(act=act), scan()
    lean, ordinary = (after_a_step(net, x, lean=lean, inside=inside, run=penalized) for lean in (True, False))
    assert_same_bits(lean, ordinary)
    assert ordinary["first.weight"].abs().sum() > 0


def test_a_layer_used_twice_and_a_tensor_kept_by_several_have_the_ordinary_bits():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), BatchNorm(1, activation="relu")

        def forward(self, x):
            once = self.norm(self.conv(x))
            twice = self.norm(self.conv(once))
            return once * twice + once.exp() * torch.cat([twice, once], 1).sum(1, keepdim=True)

    net, x = Twice(), scan()
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))


def test_what_was_kept_is_freed_by_the_backward_pass_without_the_garbage_collector():
    net, found = UNet(), []

    def note(module, inputs, output):
        found.extend(weakref.ref(tensor) for tensor in (*inputs, output))

    for module in net.children():
        module.register_forward_hook(note)
    gc.collect()
    gc.disable()
    try:
        with lean_activations(net):
            loss = net(scan()).square().mean()
            held = sum(reference() is not None for reference in found)
            loss.backward()
            assert [reference() for reference in found if reference() is not None] == []
    finally:
        gc.enable()
    assert held < len(found)


def test_hooks_of_a_users_own_inside_decide_there():
    seen = []

    def pack(tensor):
        seen.append(tensor.shape)
        return tensor.detach()

    def run(net, x):
        with saved_tensors_hooks(pack, lambda kept: kept):
            return net(x)

    net, x = UNet(), scan()
    assert_same_bits(after_a_step(net, x, lean=True, run=run), after_a_step(net, x, lean=False, run=run))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_hooks_of_a_users_own_outside_decide_too():
    net, x = UNet(), scan()
    with save_on_cpu():
        lean, ordinary = (after_a_step(net, x, lean=lean) for lean in (True, False))
    assert_same_bits(lean, ordinary)


def test_a_block_within_a_block_changes_nothing():
    def run(net, x):
        with lean_activations(net):
            return net(x)

    net, x = UNet(), scan()
    assert_same_bits(after_a_step(net, x, lean=True, run=run), after_a_step(net, x, lean=False))


def test_an_exception_leaves_no_hook_and_no_mode():
    def fail():
        with lean_activations(UNet()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert hooks_are_free()
    assert not torch.overrides.has_torch_function_unary(None)
