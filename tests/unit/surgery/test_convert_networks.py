"""The eight MONAI networks, 2-D and 3-D: to every target and back."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
from monai.networks.nets import (
    BasicUNet,
    DenseNet121,
    DynUNet,
    EfficientNetBN,
    ResNet,
    SegResNet,
    UNet,
    VNet,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.layers import BatchNorm
from mednorm.surgery.convert import convert

OPTIONS = {"domain": {"domains": ["Basel", "Lund"]}, "ghost": {"ghost_size": 2}}
EXACT = ["batch", "sync", "renorm", "ghost", "moving", "range", "domain", "frozen"]
INEXACT = ["group", "instance", "layer"]

NETWORKS = {
    "BasicUNet": lambda d: BasicUNet(spatial_dims=d, features=(4, 4, 8, 8, 8, 4), norm="batch"),
    "UNet": lambda d: UNet(d, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch", act="relu"),
    "DynUNet": lambda d: DynUNet(d, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 4, 8], norm_name="batch"),
    "SegResNet": lambda d: SegResNet(d, 4, 1, 2, blocks_down=(1, 1), blocks_up=(1,), norm="batch"),
    "DenseNet121": lambda d: DenseNet121(
        spatial_dims=d, in_channels=1, out_channels=2, init_features=4, growth_rate=2, bn_size=2
    ),
    "ResNet18": lambda d: ResNet(
        block="basic",
        layers=[2, 2, 2, 2],
        block_inplanes=[4, 4, 8, 8],
        spatial_dims=d,
        n_input_channels=1,
        num_classes=2,
    ),
    "EfficientNet": lambda d: EfficientNetBN(
        "efficientnet-b0", spatial_dims=d, in_channels=1, num_classes=2, pretrained=False
    ),
    "VNet": lambda d: VNet(spatial_dims=d, in_channels=1, out_channels=2),
}
# The smallest at which two values a channel are left at the bottom: PyTorch's instance normalization refuses one.
SIZES = {"BasicUNet": 16, "DenseNet121": 32, "ResNet18": 16, "EfficientNet": 32, "VNet": 16}
EVERY_NETWORK = pytest.mark.parametrize(
    ("name", "rank"), [(name, rank) for name in NETWORKS for rank in (2, 3)], ids=lambda value: str(value)
)


@cache
def prepared(name, rank):
    """The network in evaluation with statistics, γ and β that all matter, an input, and its output."""
    torch.manual_seed(0)
    net = NETWORKS[name](rank).eval()
    size = SIZES.get(name, 8)
    x = torch.randn(1, 1, 2 * size, *[size] * (rank - 1))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                # Each layer's statistics are near those of its input, so that the numbers stay of order 1.
                module.register_forward_pre_hook(_measure)
        net(x)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module._forward_pre_hooks.clear()
                module.num_batches_tracked.fill_(7)
        return net, x, net(x)


def _measure(layer, args):
    values = args[0].transpose(0, 1).flatten(1)
    channels = len(values)
    layer.running_mean.copy_(values.mean(1) + 0.1 * torch.randn(channels))
    layer.running_var.copy_(values.var(1, correction=0) * (0.5 + torch.rand(channels)) + 0.1)
    layer.weight.copy_(0.5 + torch.rand(channels))
    layer.bias.copy_(0.3 * torch.randn(channels))


def difference(net, x, expected):
    with torch.no_grad():
        return float((net(x) - expected).abs().max() / expected.abs().max())


def tolerance(net, x, expected):
    """1e-5, or where a network amplifies rounding, twice what PyTorch's own float32 output is from that in float64."""
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    return max(1e-5, 2 * float((expected - exact).abs().max() / exact.abs().max()))


def norm_types(net):
    return [type(module) for module in net.modules() if isinstance(module, _BatchNorm)]


@EVERY_NETWORK
def test_to_every_kind_with_running_statistics_and_back_evaluates_equal(name, rank):
    net, x, expected = prepared(name, rank)
    work = copy.deepcopy(net)
    types = norm_types(net)
    assert expected.abs().max() > 1e-3
    allowed = tolerance(net, x, expected)
    for to in EXACT:  # each into the next, and so back from each
        report = convert(work, to, **OPTIONS.get(to, {}))
        assert report.exact
        assert len(report.changed) == len(types)
        assert report.left == ()
        assert difference(work, x, expected) <= allowed, to
    report = convert(work, "torch")
    assert report.exact
    assert norm_types(work) == types
    states = work.state_dict(), net.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*(s.values() for s in states), strict=True))


@EVERY_NETWORK
def test_kinds_without_running_statistics_keep_gamma_and_beta_and_the_report_says_that_outputs_differ(name, rank):
    net, x, expected = prepared(name, rank)
    parameters = dict(net.named_parameters())
    for to in INEXACT:
        report = convert(net, to, inplace=False)
        work = report.model
        assert not any(layer.exact for layer in report.changed)
        assert len(report.changed) == len(norm_types(net))
        assert difference(work, x, expected) > 1e-3
        assert list(dict(work.named_parameters())) == list(parameters)
        assert not convert(work, "torch").exact
        assert norm_types(work) == norm_types(net)
        assert all(torch.equal(value, parameters[key]) for key, value in work.named_parameters())
        assert difference(work, x, expected) > 1e-3
        work.load_state_dict(net.state_dict(), strict=True)
        assert difference(work, x, expected) == 0


@EVERY_NETWORK
def test_fusing_activations_and_giving_them_back_evaluates_equal(name, rank):
    net, x, expected = prepared(name, rank)
    fused = convert(net, "batch", inplace=False, fuse_activation=True)
    assert difference(fused.model, x, expected) <= tolerance(net, x, expected)
    within = sum(bool(getattr(module, "activation", None)) for module in fused.model.modules())
    # In DynUNet one activation serves two places, in EfficientNet and VNet it is SiLU and ELU.
    assert (within > 0) == (name not in ("DynUNet", "EfficientNet", "VNet"))
    assert list(fused.model.state_dict()) == list(net.state_dict())
    convert(fused.model, "torch")
    assert [type(module) for module in fused.model.modules()] == [type(module) for module in net.modules()]
    assert difference(fused.model, x, expected) == 0


@pytest.mark.parametrize("to", [*EXACT, *INEXACT])
def test_a_converted_network_trains(to):
    net = copy.deepcopy(prepared("BasicUNet", 2)[0]).train()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    convert(net, to, **OPTIONS.get(to, {}))
    x = torch.randn(4, 1, 32, 32)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_network_of_instance_normalization_becomes_one_of_batch_normalization():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = BasicUNet(spatial_dims=3, features=(4, 4, 8, 8, 8, 4))
    report = convert(net, "batch")
    assert {layer.source for layer in report.changed} == {"InstanceNorm3d"}
    assert not any(isinstance(module, nn.InstanceNorm3d) for module in net.modules())
    x = torch.randn(2, 1, 16, 16, 16)
    net.train()(x)
    assert {int(m.num_batches_tracked) for m in net.modules() if isinstance(m, BatchNorm)} == {1}
