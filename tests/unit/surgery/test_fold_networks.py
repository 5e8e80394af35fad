"""MONAI's networks are folded as far as that is exact, and give what they gave."""

import pytest
import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import BatchNorm
from mednorm.monai import register_norms
from mednorm.surgery.fold import fold
from tests.unit.surgery.networks import seasoned

register_norms()

FEATURES = (4, 4, 8, 8, 8, 4)


def basic_unet(dims, norm):
    return nets.BasicUNet(dims, 1, 2, features=FEATURES, norm=norm)


def unet(dims, norm):
    return nets.UNet(dims, 1, 2, (4, 8, 8), (2, 2), num_res_units=2, norm=norm)


def dynunet(dims, norm):
    return nets.DynUNet(dims, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 4, 8, 8], norm_name=norm)


def segresnet(dims, norm):
    return nets.SegResNet(
        dims, init_filters=4, in_channels=1, out_channels=2, norm=norm, blocks_down=(1, 1), blocks_up=(1,)
    )


def densenet(dims, norm):
    return nets.DenseNet(dims, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2, 2), norm=norm)


def resnet(dims, norm):
    return nets.ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], dims, 1, num_classes=2, norm=norm)


def efficientnet(dims, norm):
    return nets.EfficientNet(
        ["r1_k3_s11_e1_i32_o8_se0.25", "r2_k3_s22_e2_i8_o8_se0.25"], dims, 1, 2, 0.25, 1.0, 0.2, 32, norm=norm
    )


def vnet(dims, norm):
    return nets.VNet(dims, 1, 2)


def watched(dims, norm):
    # Not to be traced by torch.fx: it makes a tensor of the sizes of others.
    return nets.HighResNet(dims, 1, 2, norm_type=norm, layer_params=HIGH_RES)


HIGH_RES = (
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 8, "kernels": (3, 3), "repeat": 2},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
)

# How many of its normalizations are folded; the others take sums and concatenations.
NETWORKS = {
    basic_unet: 18,
    unet: 9,
    dynunet: 14,
    segresnet: 3,
    densenet: 7,
    resnet: 12,
    efficientnet: 10,
    vnet: 24,
    watched: 5,
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("build", list(NETWORKS), ids=lambda build: build.__name__)
def test_a_network_of_monai_gives_the_same_and_every_norm_is_folded_or_left_with_a_reason(build, dims):
    network = seasoned(build(dims, "batch"))
    norms = sum(isinstance(module, _BatchNorm) for module in network.modules())
    x = torch.randn(1, 1, *[32 if dims == 2 else 16] * dims)
    with torch.no_grad():
        before = network(x)
        report = fold(network, x)
        after = network(x)
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert report.equivalent
    assert len(report.folded) == NETWORKS[build]
    assert len(report.folded) + len(report.left) == norms
    assert sum(isinstance(module, _BatchNorm) for module in network.modules()) == len(report.left)
    assert all(layer.reason for layer in report.left)


def test_with_and_without_an_example_the_same_is_folded():
    networks = [seasoned(segresnet(2, "batch")) for _ in range(2)]
    with_example, without = fold(networks[0], torch.randn(1, 1, 16, 16)), fold(networks[1])
    assert [layer.norm for layer in with_example.folded] == [layer.norm for layer in without.folded]
    assert with_example.left == without.left


def test_our_layer_in_a_network_of_monai_is_folded_with_its_activation():
    network = seasoned(nets.UNet(2, 1, 2, (4, 8), (2,), act=None, norm=("mednorm_batch", {"activation": "relu"})))
    assert any(isinstance(module, BatchNorm) for module in network.modules())
    report = fold(network, torch.randn(1, 1, 16, 16))
    assert report.equivalent
    assert report.left == ()
    assert sum(isinstance(module, nn.ReLU) for module in network.modules()) == len(report.folded)
