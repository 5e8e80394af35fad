"""Frozen layers stay as they are whatever a training loop does, and come back exactly."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mednorm.errors import ConfigError
from mednorm.layers import BatchNorm, BatchRenorm, DomainBatchNorm, GhostBatchNorm, MovingBatchNorm, RangeBatchNorm
from mednorm.surgery.freeze import freeze, is_frozen, unfreeze
from tests.harness import COMPILING, bytes_of, images
from tests.processes import run_alone

SHAPE = (4, 3, 5, 6)
LAYERS = {
    "torch 1-D": (nn.BatchNorm1d, (6, 3, 7)),
    "torch 2-D": (nn.BatchNorm2d, SHAPE),
    "torch 3-D": (nn.BatchNorm3d, (2, 3, 4, 4, 4)),
    "torch sync": (nn.SyncBatchNorm, SHAPE),
    "torch instance": (lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True), SHAPE),
    "batch": (BatchNorm, SHAPE),
    "renorm": (BatchRenorm, SHAPE),
    "ghost": (lambda c: GhostBatchNorm(c, ghost_size=2), SHAPE),
    "moving": (MovingBatchNorm, SHAPE),
    "range": (RangeBatchNorm, SHAPE),
    "domain": (lambda c: DomainBatchNorm(c, domains=2), SHAPE),
}
EVERY_LAYER = pytest.mark.parametrize("kind", list(LAYERS))


def trained(kind="torch 2-D"):
    build, shape = LAYERS[kind]
    layer = build(3)
    for seed in range(2):
        layer(images(shape, seed=seed))
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    return layer, images(shape, seed=9)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), BatchNorm(3), nn.Tanh())


def batch():
    return torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(5)) * 3 + 2


def step(net):
    net.zero_grad()
    loss = net(batch()).square().mean()
    loss.backward()
    return loss.detach()


@EVERY_LAYER
def test_a_frozen_layer_in_training_gives_what_it_gave_in_evaluation_and_moves_nothing(kind):
    layer, x = trained(kind)
    expected = layer.eval()(x)
    before = bytes_of(layer)
    assert freeze(layer).names == (type(layer).__name__,)
    layer.train()
    assert torch.equal(layer(x), expected)
    assert bytes_of(layer) == before
    assert layer.training


@EVERY_LAYER
def test_an_unfrozen_layer_trains_as_if_it_had_never_been_frozen(kind):
    layer, x = trained(kind)
    twin = copy.deepcopy(layer)
    freeze(layer, affine=True)
    layer(x)
    unfreeze(layer)
    assert torch.equal(layer.train()(x), twin.train()(x))
    assert bytes_of(layer) == bytes_of(twin)
    assert vars(layer).keys() == vars(twin).keys()
    assert layer.momentum == twin.momentum


def test_what_renews_statistics_leaves_those_that_are_held_and_not_the_others():
    net = network()
    for _ in range(2):
        net(batch())
    freeze(net, where="1")
    kept = {name: value.clone() for name, value in net.named_buffers()}
    twin = copy.deepcopy(net)
    for each in (net, twin, pickle.loads(pickle.dumps(net))):
        torch.optim.swa_utils.update_bn([batch() + 1], each)
        for name, value in each.named_buffers():
            if "num_batches" not in name or name.startswith("1"):
                assert torch.equal(value, kept[name]) == name.startswith("1")
    unfreeze(net)
    net[1].reset_running_stats()
    assert net[1].num_batches_tracked.item() == 0


def test_freezing_touches_neither_mode_nor_momentum_nor_keys():
    net = network()
    net[4].momentum = None
    keys, modes = list(net.state_dict()), [module.training for module in net.modules()]
    freeze(net)
    step(net)
    assert list(net.state_dict()) == keys
    assert [module.training for module in net.modules()] == modes
    assert (net[1].momentum, net[4].momentum) == (0.1, None)


def test_gradients_are_those_of_the_layer_in_evaluation():
    net = network()
    twin = copy.deepcopy(net)
    freeze(net)
    step(net.train())
    step(twin.eval())
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_statistics_stay_and_the_rest_learns_through_a_training_loop_with_epochs():
    net = network()
    freeze(net)
    kept = {name: value.clone() for name, value in net.named_buffers()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    first = net[1].weight.clone()
    for _ in range(3):
        net.train()
        step(net)
        optimizer.step()
        net.eval()
        net(batch())
    assert all(torch.equal(value, kept[name]) for name, value in net.named_buffers())
    assert not torch.equal(net[1].weight, first)


def test_a_loaded_checkpoint_sets_the_statistics_and_leaves_the_layer_frozen():
    source = network()
    for _ in range(3):
        source(batch())
    net = network()
    freeze(net)
    net.load_state_dict(source.state_dict(), strict=True)
    kept = {name: value.clone() for name, value in source.named_buffers()}
    step(net.train())
    assert is_frozen(net)
    for name in source.state_dict():
        if "running" in name:
            assert torch.equal(net.state_dict()[name], kept[name])


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_copies_are_frozen_by_themselves_and_can_be_unfrozen(way):
    net = network()
    freeze(net, affine=True)
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    elif way == "deepcopy":
        twin = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    before = bytes_of(twin)
    step(twin.train())
    assert bytes_of(twin) == before
    unfreeze(twin)
    assert twin[1].weight.requires_grad
    step(twin)
    assert bytes_of(twin) != before
    assert is_frozen(net)
    assert not net[1].weight.requires_grad


def test_a_hook_registered_after_unpickling_does_not_replace_those_that_freeze():
    net = pickle.loads(pickle.dumps(_frozen_network()))
    for _ in range(50):
        net[1].register_forward_pre_hook(lambda module, args: None)
        net[1].register_forward_hook(lambda module, args, output: None)
    before = bytes_of(net)
    step(net.train())
    assert bytes_of(net) == before


def _frozen_network():
    net = network()
    freeze(net)
    return net


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_sees_the_frozen_layer_both_times(reentrant):
    net, twin = _frozen_network().train(), _frozen_network().train()
    before = bytes_of(net)
    x = batch().requires_grad_()
    checkpoint(net, x, use_reentrant=reentrant).square().mean().backward()
    step(twin)
    assert bytes_of(net) == before
    assert all(module.training for module in net.modules())
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("where", ["forward", "a hook before", "a hook after"])
def test_an_exception_in_the_middle_leaves_the_layer_in_its_own_mode(where):
    layer = nn.BatchNorm2d(3)
    if where == "a hook before":
        layer.register_forward_pre_hook(_fails)
    freeze(layer)
    if where == "a hook after":
        layer.register_forward_hook(_fails)
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.randn(2, 5, 3, 3) if where == "forward" else torch.randn(2, 3, 3, 3))
    assert layer.training
    unfreeze(layer)
    assert "_mednorm_modes" not in vars(layer)


def _fails(module, args, output=None):
    raise ValueError("stop")


def test_a_layer_called_within_its_own_forward_pass_stays_frozen():
    layer, x = trained()
    expected = layer.eval()(x)
    freeze(layer)
    inside = []

    def again(module, args):
        if not inside:
            inside.append(None)
            module(x)

    layer.train().register_forward_pre_hook(again)
    before = bytes_of(layer)
    assert torch.equal(layer(x), expected)
    assert bytes_of(layer) == before
    assert layer.training


@COMPILING
def test_a_compiled_network_trains_to_the_same_numbers():
    torch._dynamo.reset()
    net, twin = _frozen_network().train(), _frozen_network().train()
    before = bytes_of(net)
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        assert torch.allclose(step(compiled), step(twin), rtol=1e-6)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert bytes_of(net) == before
    assert all(module.training for module in net.modules())
    unfreeze(net)
    step(compiled)
    assert bytes_of(net) != before


def test_distributed_data_parallel_keeps_it_frozen(tmp_path):
    def work():
        net = network()
        freeze(net, affine=True)
        wrapped = nn.parallel.DistributedDataParallel(net)
        before = bytes_of(net)
        conv = net[0].weight
        step(wrapped.train())
        assert bytes_of(net) == before
        assert conv.grad is not None
        assert unfreeze(wrapped).names == ("module.1", "module.4")

    run_alone(work, tmp_path)


def test_affine_holds_gamma_and_beta_through_an_optimizer_that_has_a_momentum_and_decay():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    step(net)
    optimizer.step()
    freeze(net, affine=True)
    before = {name: value.clone() for name, value in net.named_parameters()}
    loss = net(batch()).square().mean()  # without zero_grad: the gradients of the step before are still there
    loss.backward()
    optimizer.step()
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_unfreezing_gives_each_parameter_what_it_required_before():
    net = network()
    net[1].bias.requires_grad_(False)
    freeze(net, affine=True)
    freeze(net, affine=True)
    assert not any(net[i].weight.requires_grad or net[i].bias.requires_grad for i in (1, 4))
    unfreeze(net)
    assert (net[1].weight.requires_grad, net[1].bias.requires_grad) == (True, False)
    assert (net[4].weight.requires_grad, net[4].bias.requires_grad) == (True, True)


def test_a_parameter_of_two_layers_is_held_until_the_last_of_them_is_let_go():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    net[1].weight = net[0].weight
    freeze(net, affine=True, where="0")
    freeze(net, affine=True, where="1")
    unfreeze(net, where="0")
    assert not net[0].weight.requires_grad
    assert net[0].bias.requires_grad
    unfreeze(net)
    assert net[0].weight.requires_grad


def test_the_last_call_says_what_is_held():
    layer, x = trained()
    freeze(layer, affine=True)
    freeze(layer)
    assert is_frozen(layer)
    assert layer.weight.requires_grad
    freeze(layer, statistics=False, affine=True)
    before = layer.running_mean.clone()
    layer.train()(x)
    assert not torch.equal(layer.running_mean, before)
    assert not layer.weight.requires_grad
    assert not is_frozen(layer)


def test_where_chooses_by_name_pattern_and_function_and_unfreezing_goes_by_parts():
    net = nn.Sequential(network(), network())
    assert freeze(net, where="0").names == ("0.1", "0.4")
    assert freeze(net, where=["*.4"]).names == ("0.4", "1.4")
    assert freeze(net, where=lambda name, module: type(module) is nn.BatchNorm2d).names == ("0.1", "1.1")
    assert unfreeze(net, where="1").names == ("1.1", "1.4")
    assert is_frozen(net[0])
    assert not is_frozen(net)
    assert not is_frozen(net[1])


def test_a_name_that_is_not_there_is_refused_and_nothing_is_frozen():
    net = network()
    with pytest.raises(ConfigError, match="got 'encoder', which none has"):
        freeze(net, where=["1", "encoder"])
    assert not is_frozen(net[1])


def test_freezing_nothing_is_refused():
    with pytest.raises(ConfigError, match="got statistics=False, affine=False"):
        freeze(network(), statistics=False)


def test_layers_without_statistics_are_left_with_the_reason():
    net = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.LazyBatchNorm2d(), nn.BatchNorm2d(3)
    )
    report = freeze(net)
    assert report.names == ("3",)
    assert [(layer.name, layer.reason.split(":")[0]) for layer in report.left] == [
        ("0", "it keeps no running statistics to normalize with"),
        ("1", "it keeps no running statistics to normalize with"),
        ("2", "it is lazy and has no statistics yet"),
    ]
    assert freeze(net[0], affine=True).layers[0].affine
    assert not net[0].weight.requires_grad
    assert freeze(net[1], statistics=False, affine=True).left[0].reason == "it has no γ and β yet, or none at all"


def test_that_there_was_nothing_to_do_is_said_aloud():
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    assert str(freeze(plain)) == "Nothing was frozen: found no layer with running statistics."
    assert str(unfreeze(network())) == "Nothing was unfrozen: found no frozen layer."
    assert not is_frozen(plain)


def test_the_report_names_what_is_held_and_is_ready_for_json():
    report = freeze(network(), affine=True)
    assert str(report).splitlines() == [
        "2 layers frozen.",
        "  1  BatchNorm2d  statistics and γ and β",
        "  4  BatchNorm  statistics and γ and β",
    ]
    assert report.to_dict()["layers"][1] == {
        "name": "4",
        "kind": "BatchNorm",
        "statistics": True,
        "affine": True,
        "reason": "",
    }
