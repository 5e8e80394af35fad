import re
import subprocess
import sys

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet, UNet

from mednorm.layers import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    NoNorm,
    RangeBatchNorm,
)
from mednorm.monai import register_norms

# Each name with arguments of its own, the class it stands for, and what the arguments make of the layer.
REGISTERED = {
    "mednorm_batch": ({"momentum": 0.5}, BatchNorm, {"momentum": 0.5, "process_group": None}),
    "mednorm_sync": ({"eps": 0.5}, BatchNorm, {"eps": 0.5, "process_group": "world"}),
    "mednorm_renorm": ({"schedule": 7, "r_max": 2.0}, BatchRenorm, {"schedule": 7, "r_max": 2.0}),
    "mednorm_ghost": ({"ghost_size": 3}, GhostBatchNorm, {"ghost_size": 3}),
    "mednorm_moving": ({"window": 5, "centering": "weights"}, MovingBatchNorm, {"window": 5, "centering": "weights"}),
    "mednorm_range": ({"eps": 0.5, "affine": False}, RangeBatchNorm, {"eps": 0.5, "weight": None}),
    "mednorm_domain": ({"domains": 2}, DomainBatchNorm, {"domains": ("0", "1")}),
    "mednorm_frozen": ({"eps": 0.5}, FrozenBatchNorm, {"eps": 0.5}),
    "mednorm_none": ({"bias": False}, NoNorm, {"bias": None}),
}
BN = torch.nn.modules.batchnorm._BatchNorm


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_batch_norm_of_a_basic_unet_is_ours_at_every_rank(dimensions):
    register_norms()
    net = BasicUNet(spatial_dims=dimensions, features=(8, 8, 8, 8, 8, 8), norm="mednorm_batch")
    kinds = [type(module) for module in net.modules() if isinstance(module, BN)]
    assert kinds == [BatchNorm] * 18


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("name", list(REGISTERED))
def test_every_name_builds_a_basic_unet_of_its_layer_with_its_arguments_at_every_rank(name, dimensions):
    register_norms()
    arguments, kind, expected = REGISTERED[name]
    net = BasicUNet(spatial_dims=dimensions, features=(4, 4, 4, 4, 4, 4), norm=(name, arguments))
    found = [module for module in net.modules() if isinstance(module, BN | NoNorm | torch.nn.InstanceNorm1d)]
    assert [type(module) for module in found] == [kind] * 18
    for layer in found:
        assert {key: getattr(layer, key) for key in expected} == expected
    if dimensions == 2:
        net(torch.randn(2, 1, 16, 16)).sum().backward()
        gradient = next(net.parameters()).grad
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_normalization_by_site_needs_the_sites():
    register_norms()
    with pytest.raises(TypeError, match="domains"):
        BasicUNet(spatial_dims=2, features=(4, 4, 4, 4, 4, 4), norm="mednorm_domain")


def test_the_names_in_the_factory_are_those_of_the_documentation():
    from monai.networks.layers.factories import Norm

    register_norms()
    ours = [name.lower() for name in Norm.names if name.startswith("MEDNORM_")]
    assert sorted(ours) == sorted(REGISTERED)
    said = re.search(r"The names are `mednorm_` and (.*?)\.\n", register_norms.__doc__, re.DOTALL).group(1)
    said = re.sub(r"\([^)]*\)", "", said)
    listed = re.findall(r"\w+", said.replace(" and ", " "))
    listed = [word for word in listed if word not in ("which", "needs", "domains")]
    assert sorted(f"mednorm_{name}" for name in listed) == sorted(REGISTERED)


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
