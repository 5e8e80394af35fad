"""Lean steps give the bits of ordinary ones, and keep less."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.networks.nets import BasicUNet, DenseNet121, SegResNet
from monai.networks.nets import UNet as ResidualUNet
from torch import nn

import mednorm
from mednorm import BatchNorm, activation_memory, lean_activations
from mednorm.errors import ConfigError
from tests.unit.layers.kinds import IMAGES, KINDS, at_sites, network
from tests.unit.lean.steps import UNet, after_a_step, assert_same_bits, scan

RELU = ("relu", {"inplace": True})
BASIC = partial(BasicUNet, in_channels=1, out_channels=2, features=(4, 4, 8, 8, 8, 4), norm="batch")
SEG = partial(SegResNet, init_filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1), norm="batch")
# The network, the spatial axes and size of its input, and the most of PyTorch's bytes that it may keep.
NETWORKS = {
    "BasicUNet 3-D": (partial(BASIC, spatial_dims=3, act=RELU), (3, 16), 0.52),
    "BasicUNet 2-D, leaky": (partial(BASIC, spatial_dims=2), (2, 32), 0.56),
    "BasicUNet 2-D, interpolating": (partial(BASIC, spatial_dims=2, act="gelu", upsample="nontrainable"), (2, 32), 0.5),
    "SegResNet 3-D": (partial(SEG, spatial_dims=3, act=RELU), (3, 8), 0.6),
    "SegResNet 2-D, concatenating": (partial(SEG, spatial_dims=2, upsample_mode="deconv"), (2, 16), 0.6),
    "residual UNet, PReLU": (
        partial(ResidualUNet, 2, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=2, norm="batch"),
        (2, 16),
        0.7,
    ),
    "DenseNet": (
        partial(DenseNet121, 2, 1, 2, init_features=8, growth_rate=4, block_config=(3, 3)),
        (2, 32),
        0.55,
    ),
}
ALL_NETWORKS = pytest.mark.parametrize("name", NETWORKS)


def made(name):
    build, (rank, size), most = NETWORKS[name]
    torch.manual_seed(0)
    return build(), scan(rank, size), most


@ALL_NETWORKS
def test_a_lean_step_of_a_network_of_torch_has_the_ordinary_bits(name):
    net, x, _ = made(name)
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))


@ALL_NETWORKS
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_a_lean_step_of_a_converted_network_has_the_ordinary_bits_and_keeps_less(name, fused):
    net, x, most = made(name)
    before = activation_memory(net, x).ordinary
    mednorm.convert(net, "batch", fuse_activation=fused, example=[x])
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))
    assert activation_memory(net, x).lean < most * before


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "in the block"])
def test_the_backward_pass_may_run_inside_or_after(rank, act, inside):
    net, x = UNet(rank, act), scan(rank)
    lean, ordinary = (after_a_step(net, x, lean=lean, inside=inside) for lean in (True, False))
    assert_same_bits(lean, ordinary)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_the_family_is_lean(kind):
    net, x = network(kind), scan(channels=2, size=IMAGES[-1])

    def run(net, x):
        with at_sites(net, [0, 2, 0]):
            return net(x)

    assert_same_bits(after_a_step(net, x, lean=True, run=run), after_a_step(net, x, lean=False, run=run))
    outputs = 4 * x.shape[0] * (4 * 6 * 6 + 3 * 4 * 4)  # bytes of what follows the two norms
    kept = activation_memory(net, x)
    assert kept.ordinary - kept.lean > 0.8 * outputs


def test_channels_last_stays_and_has_the_ordinary_bits():
    net, x = UNet(), scan().contiguous(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))
    assert activation_memory(net, x).ratio < 0.6


@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "in the block"])
def test_in_mixed_precision_a_tensor_is_computed_again_in_the_precision_it_had(inside):
    def run(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    net, x = UNet(), scan()
    lean, ordinary = (after_a_step(net, x, lean=lean, inside=inside, run=run) for lean in (True, False))
    assert ordinary["output"].dtype == torch.bfloat16
    assert_same_bits(lean, ordinary)


def test_a_mask_and_a_view_of_the_output_are_no_obstacle():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), BatchNorm(4, activation="relu")
            self.dense = nn.Linear(4 * 36, 1)

        def forward(self, x):
            return self.dense(self.norm(self.conv(x), mask=(torch.arange(6) < 4).expand(len(x), 6, 6)).flatten(1))

    net, x = Masked(), scan()
    assert_same_bits(after_a_step(net, x, lean=True), after_a_step(net, x, lean=False))
    assert activation_memory(net, x).by_layer()["dense"].lean < 4 * 4 * 36


def test_without_gradients_nothing_is_kept_or_remembered():
    net, x = UNet(), scan()
    with lean_activations(net), torch.no_grad():
        inside = net(x)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), net(x))
    assert inside.grad_fn is None


@pytest.mark.parametrize(("model", "got"), [(nn.Linear(2, 2), "Linear"), ("unet", "str")])
def test_a_network_without_batch_normalization_is_refused(model, got):
    with pytest.raises(ConfigError, match=f"expected a network with batch normalization, got {got} without"):
        lean_activations(model).__enter__()
