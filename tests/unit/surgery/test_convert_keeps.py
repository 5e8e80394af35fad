"""What a conversion keeps: parameters, hooks, shared layers, modes, types, and what a user added."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch import fx, nn

import mednorm.layers as ours
from mednorm.surgery.convert import convert
from mednorm.surgery.freeze import freeze, is_frozen, unfreeze
from tests.harness import COMPILING, bytes_of, images
from tests.processes import run_alone
from tests.unit.surgery.converting import EVERY, OPTIONS, RUNNING, SHAPES, network, scan, settled


@EVERY
def test_parameters_stay_the_same_objects_and_an_optimizer_goes_on(to):
    net = network()
    net[4].weight = net[1].weight  # shared
    net[1].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    before = net[1].weight.clone()
    convert(net, to, **OPTIONS.get(to, {}))
    assert all(net.get_parameter(name) is value for name, value in parameters.items())
    assert not net[1].bias.requires_grad
    net(scan()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[1].weight, before)
    assert net[4].weight is net[1].weight


@EVERY
def test_hooks_of_every_kind_fire_and_their_handles_remove_them(to):
    net = network()
    fired = []
    layer = net[1]
    handles = [
        layer.register_forward_pre_hook(lambda m, args: fired.append("pre")),
        layer.register_forward_hook(lambda m, args, kwargs, y: fired.append("forward"), with_kwargs=True),
        layer.register_full_backward_pre_hook(lambda m, g: fired.append("backward pre")),
        layer.register_full_backward_hook(lambda m, g, h: fired.append("backward")),
        layer.register_state_dict_pre_hook(lambda m, prefix, keep: fired.append("state pre")),
        layer.register_state_dict_post_hook(lambda m, state, prefix, meta: fired.append("state")),
        layer.register_load_state_dict_pre_hook(lambda m, *args: fired.append(f"load pre {m is layer}")),
        layer.register_load_state_dict_post_hook(lambda m, keys: fired.append("load")),
    ]
    convert(net, to, **OPTIONS.get(to, {}))
    net(scan()).sum().backward()
    net.load_state_dict(net.state_dict())
    assert fired == [
        *("pre", "forward", "backward pre", "backward", "state pre", "state", "load pre True", "load"),
    ]
    for handle in handles:
        handle.remove()
    net(scan())
    assert len(fired) == 8


def test_a_layer_used_twice_and_kept_in_a_list_stays_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = settled(nn.BatchNorm2d(6))
            self.b = self.a
            self.listed = [self.a]

        def forward(self, x):
            return self.listed[0](self.b(self.a(x)))

    net = Twice().eval()
    x = images(SHAPES[2])
    expected = net(x)
    report = convert(net, "renorm")
    assert [layer.name for layer in report.changed] == ["a"]
    assert net.a is net.b is net.listed[0]
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)


@EVERY
def test_mode_dtype_device_attributes_and_buffers_of_the_user_stay(to):
    layer = settled(nn.BatchNorm2d(6, dtype=torch.float64))
    net = nn.Sequential(layer).eval()
    layer.note = "mine"
    layer.register_buffer("extra", torch.arange(3.0))
    layer.register_buffer("hidden", torch.ones(1), persistent=False)
    convert(net, to, **OPTIONS.get(to, {}))
    assert layer is net[0]
    assert (layer.note, layer.training) == ("mine", False)
    assert layer.extra.tolist() == [0, 1, 2]
    assert list(net.state_dict())[-1] == "0.extra"
    assert "0.hidden" not in net.state_dict()
    tensors = [*net.parameters(), *(b for name, b in net.named_buffers() if name not in ("0.extra", "0.hidden"))]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}
    assert net(images(SHAPES[2], torch.float64)).dtype == torch.float64


@EVERY
def test_layers_on_the_device_meta_stay_there(to):
    net = nn.Sequential(nn.BatchNorm2d(6, device="meta"), nn.BatchNorm2d(6, affine=False, device="meta"))
    convert(net, to, **OPTIONS.get(to, {}))
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert net(torch.empty(4, 6, 5, 5, device="meta")).shape == (4, 6, 5, 5)


@pytest.mark.parametrize("to", RUNNING[:-1])
def test_half_precision_weights_with_wider_statistics_keep_their_types(to):
    layer = nn.BatchNorm2d(6)
    layer.weight.data, layer.bias.data = layer.weight.data.half(), layer.bias.data.half()
    convert(layer, to, **OPTIONS.get(to, {}))
    assert (layer.weight.dtype, layer.running_var.dtype) == (torch.float16, torch.float32)


def test_a_frozen_layer_stays_frozen_and_can_be_let_go():
    net = network()
    freeze(net, affine=True)
    before = {name: value.clone() for name, value in net[1].named_buffers()}
    convert(net, "ghost", ghost_size=2)
    net.train()(scan())
    assert is_frozen(net)
    assert all(torch.equal(net[1].get_buffer(name), value) for name, value in before.items())
    convert(net, "domain", domains=2, domain_affine=True)
    assert not net[1].domain_weight.requires_grad
    assert unfreeze(net).names == ("1", "4")
    assert net[1].domain_weight.requires_grad
    assert net[1].weight.requires_grad
    net(scan())
    assert not torch.equal(net[1].running_mean, before["running_mean"])


def test_a_copy_leaves_the_original_as_it_was():
    net = network()
    before, kinds = bytes_of(net), [type(module) for module in net.modules()]
    report = convert(net, "group", inplace=False)
    assert report.model is not net
    assert (bytes_of(net), [type(module) for module in net.modules()]) == (before, kinds)
    assert report.model[1].weight is not net[1].weight
    assert torch.equal(report.model[1].weight, net[1].weight)


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_a_converted_network_is_saved_and_read_as_any_other(way):
    net = network().eval()
    convert(net, "renorm")
    x = scan()
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(twin(x), net(x))
    assert bytes_of(twin) == bytes_of(net)


@COMPILING
def test_a_compiled_network_computes_with_the_new_layers():
    torch._dynamo.reset()
    net = network()
    compiled = torch.compile(net, backend="aot_eager")
    compiled(scan())
    report = convert(compiled, "group")
    assert report.changed[0].name == "_orig_mod.1"
    assert report.notes == ("The network is compiled: the next call compiles it anew.",)
    assert torch.allclose(compiled(scan()), net(scan()), rtol=1e-5, atol=1e-6)
    assert type(net[1]) is nn.GroupNorm


def test_a_network_in_distributed_data_parallel_is_converted_and_told_to_be_wrapped_again(tmp_path):
    def work():
        net = network()
        wrapped = nn.parallel.DistributedDataParallel(net)
        report = convert(wrapped, "sync")
        assert [layer.name for layer in report.changed] == ["module.1", "module.4"]
        assert report.notes == (
            "DistributedDataParallel listed parameters and buffers when it was built: build it again.",
        )
        wrapped(scan()).sum().backward()
        assert net[1].weight.grad is not None

    run_alone(work, tmp_path)


def test_a_traced_network_is_converted():
    net = network().eval()
    traced = fx.symbolic_trace(net)
    expected = traced(scan())
    assert len(convert(traced, "renorm").changed) == 2
    assert torch.allclose(traced(scan()), expected, rtol=1e-6, atol=1e-6)


def test_a_moving_layer_keeps_what_its_backward_passes_left_unless_their_window_changes():
    layer = ours.MovingBatchNorm(6, window=3)
    layer(images(SHAPES[2]).requires_grad_()).square().sum().backward()
    means = layer.backward_window.means.clone()
    assert means.abs().max() > 0
    convert(layer, "moving", refresh_every=4)
    assert torch.equal(layer.backward_window.means, means)
    assert layer.backward_window.passes == 1
    convert(layer, "moving", window=2)
    assert layer.backward_window.means.shape == (2, 4, 6)
    assert layer.backward_window.passes == 0
