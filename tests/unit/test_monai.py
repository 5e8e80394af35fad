import subprocess
import sys

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet, UNet

from mednorm.layers import BatchNorm
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
    before = Norm["mednorm_batch", 2]
    names = len(Norm.names)
    register_norms()
    assert Norm["mednorm_batch", 2] is before is BatchNorm
    assert len(Norm.names) == names


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
        "print(Norm['mednorm_batch', 2] is mednorm.BatchNorm)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
