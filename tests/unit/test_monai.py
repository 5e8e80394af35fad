import subprocess
import sys

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet, UNet

from mednorm.layers import BatchNorm, NoNorm
from mednorm.monai import register_norms

BN = torch.nn.modules.batchnorm._BatchNorm


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_batch_norm_of_a_basic_unet_is_ours_at_every_rank(dimensions):
    register_norms()
    net = BasicUNet(spatial_dims=dimensions, features=(8, 8, 8, 8, 8, 8), norm="mednorm_batch")
    kinds = [type(module) for module in net.modules() if isinstance(module, BN)]
    assert kinds == [BatchNorm] * 18


def test_arguments_of_the_norm_reach_our_layer():
    register_norms()
    net = SegResNet(spatial_dims=2, init_filters=8, norm=("mednorm_batch", {"eps": 0.25, "momentum": 0.5}))
    layers = [module for module in net.modules() if isinstance(module, BatchNorm)]
    assert layers
    assert {(layer.eps, layer.momentum) for layer in layers} == {(0.25, 0.5)}


def test_registering_twice_changes_nothing():
    from monai.networks.layers.factories import Norm

    register_norms()
    before = Norm["mednorm_batch", 2], Norm["mednorm_none", 2]
    names = len(Norm.names)
    register_norms()
    assert (Norm["mednorm_batch", 2], Norm["mednorm_none", 2]) == before == (BatchNorm, NoNorm)
    assert len(Norm.names) == names


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_no_norm_of_a_basic_unet_learns_a_shift_for_each_channel_only_where_asked(dimensions, bias):
    register_norms()
    features = (8, 8, 16, 16, 32, 8)
    norm = ("mednorm_none", {"bias": bias})
    net = BasicUNet(spatial_dims=dimensions, features=features, norm=norm)
    layers = [module for module in net.modules() if isinstance(module, NoNorm)]
    assert not [module for module in net.modules() if isinstance(module, BN | torch.nn.InstanceNorm1d)]
    encoder = [width for width in features[:5] for _ in range(2)]
    assert [layer.num_features for layer in layers] == [*encoder, 16, 16, 16, 16, 8, 8, 8, 8]
    assert {layer.bias is not None for layer in layers} == {bias}


def test_a_monai_network_without_norm_computes_what_it_computes_with_monais_empty_norm():
    register_norms()
    made = {}
    for norm in ("mednorm_none", ("mednorm_none", {"bias": True}), ""):
        torch.manual_seed(1)
        made[str(norm)] = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm=norm)
    images = torch.randn(3, 1, 16, 16)
    ours, shifting, theirs = (net(images) for net in made.values())
    assert torch.equal(ours, theirs)
    assert torch.equal(shifting, theirs)


def test_a_monai_network_with_our_norm_computes_what_it_computes_with_torchs():
    register_norms()
    made = {}
    for norm in ("mednorm_batch", "batch"):
        torch.manual_seed(1)
        made[norm] = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm=norm)
    images = torch.randn(3, 1, 16, 16)
    ours, theirs = (made[norm](images) for norm in ("mednorm_batch", "batch"))
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (made[norm].eval()(images) for norm in ("mednorm_batch", "batch"))
    torch.testing.assert_close(ours, theirs)


def test_the_norms_are_registered_through_the_package_alone():
    code = (
        "import mednorm; mednorm.monai.register_norms()\n"
        "from monai.networks.layers.factories import Norm\n"
        "print(Norm['mednorm_batch', 2] is mednorm.BatchNorm, Norm['mednorm_none', 2].__name__)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True NoNorm\n"), done.stderr
