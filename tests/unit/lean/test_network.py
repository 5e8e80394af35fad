"""A network that was converted with lean=True is lean whenever it trains, wherever it goes."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import mednorm
from mednorm.errors import ConfigError
from mednorm.lean import is_lean
from mednorm.lean.saved import Saved
from tests.harness import COMPILING
from tests.unit.lean.steps import UNet, after_a_step, assert_same_bits, scan


def converted():
    net = UNet()
    mednorm.convert(net, "batch", lean=True)
    return net


def keeps_its_input(net):
    """Whether the graph holds what the last convolution was given, when nobody else does."""
    given = []
    handle = net.head.register_forward_pre_hook(lambda _, inputs: given.append(weakref.ref(inputs[0])))
    y = net(scan())
    handle.remove()
    held = given[0]() is not None
    assert y.requires_grad
    return held


def test_it_keeps_less_without_a_block_and_has_the_ordinary_bits():
    net = converted()
    ordinary = mednorm.convert(net, "batch", inplace=False, lean=False).model
    assert_same_bits(*(after_a_step(each, scan(), lean=False) for each in (net, ordinary)))
    assert not keeps_its_input(net)
    assert keeps_its_input(ordinary)


def saved_by(buffer):
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_and_pickles_are_lean_on_their_own(way):
    net = converted()
    if way == "deepcopy":
        twin = copy.deepcopy(net)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        twin = saved_by(buffer)
    with torch.no_grad():
        net.head.weight.zero_()
    assert not keeps_its_input(twin)
    assert twin(scan()).std() > 0  # it runs its own weights


def test_state_class_and_signature_are_as_they_were():
    net = converted()
    assert list(net.state_dict()) == list(UNet().state_dict())
    assert type(net) is UNet
    assert inspect.signature(net.forward) == inspect.signature(UNet().forward)


def test_in_evaluation_without_gradients_the_forward_pass_is_the_plain_one(monkeypatch):
    net = converted().eval()
    monkeypatch.setattr(Saved, "__init__", None)  # whoever keeps a tensor leanly would fail
    with torch.no_grad():
        assert net(scan()).isfinite().all()


@pytest.mark.parametrize("to", ["torch", "group"])
def test_a_network_without_our_layers_is_lean_no_longer(to):
    net = converted()
    report = mednorm.convert(net, to)
    assert "forward" not in vars(net)
    assert "No longer lean." in report.notes


def test_converting_on_keeps_it_lean_unless_told_otherwise():
    net = converted()
    mednorm.convert(net, "renorm", schedule=0)
    assert is_lean(net)
    mednorm.convert(net, "torch", where="norm1")
    assert is_lean(net)
    mednorm.convert(net, "batch", lean=False)
    assert not is_lean(net)


def test_the_report_says_so():
    notes = mednorm.convert(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), "batch", lean=True).notes
    assert notes == ("Lean: outputs of normalization are computed again in the backward pass, not kept.",)


@pytest.mark.parametrize("to", ["torch", "instance"])
def test_a_target_that_is_not_ours_cannot_be_lean(to):
    net = converted()
    with pytest.raises(ConfigError, match=f"convert: expected a target of ours, batch, .* with lean=True, got '{to}'"):
        mednorm.convert(net, to, lean=True)
    assert is_lean(net)


def test_a_copy_leaves_the_network_ordinary():
    net = UNet()
    assert is_lean(mednorm.convert(net, "renorm", inplace=False, lean=True).model)
    assert not is_lean(net)


def test_a_forward_of_somebody_else_runs_inside_and_comes_back():
    net = UNet()
    plain = net.forward
    net.forward = lambda x: plain(x) + 1
    theirs = net.forward
    mednorm.convert(net, "renorm", schedule=0, lean=True)
    twin = UNet()
    twin.load_state_dict(net.state_dict())
    mednorm.convert(twin, "renorm", schedule=0)
    assert torch.equal(net(scan()), twin(scan()) + 1)
    mednorm.convert(net, "torch")
    assert net.forward is theirs


@pytest.mark.slow
@COMPILING
def test_it_compiles_to_one_graph():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    mednorm.convert(net, "batch", fuse_activation=True, lean=True)
    wanted = net(scan())
    net[1].reset_running_stats()
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(scan()), wanted)
