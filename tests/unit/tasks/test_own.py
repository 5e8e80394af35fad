import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers import BatchNorm, NoNorm
from mednorm.tasks.networks import NORMS, Shape, build_network, find_network
from mednorm.tasks.own import own_network

SHAPE = Shape(1, (16, 16), 3, ("A", "B"))
EXAMPLE = Path(__file__).parents[3] / "examples" / "own_network.py"

GOOD = """
from monai.networks.nets import UNet

def net(spatial_dims, in_channels, out_channels, norm):
    return UNet(spatial_dims, in_channels, out_channels, channels=(8, 16), strides=(2,), norm=norm)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder; its name is new each time, as Python imports a name once."""
    monkeypatch.chdir(tmp_path)
    made = []

    def write(text, name=None):
        name = name or f"own_{tmp_path.name}_{len(made)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def build(name, norm="batch", shape=SHAPE):
    return build_network(name, shape, norm, kind="segmentation")


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_factory_in_the_current_folder_builds_a_network_with_the_norm_asked_for(module, norm):
    network = build(f"{module(GOOD)}:net", norm)
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 3, 16, 16)
    layer = network.model[0].adn.N
    if norm == "none":
        assert isinstance(layer, NoNorm)
        assert layer.bias is not None
    else:
        assert isinstance(layer, BatchNorm) == (norm not in ("group", "instance", "layer"))
        assert (type(layer) is BatchNorm) == (norm == "batch")
        assert isinstance(layer, nn.InstanceNorm2d) == (norm == "instance")
        assert getattr(layer, "num_groups", None) == {"group": 8, "layer": 1}.get(norm)


def test_the_factory_is_told_dimensions_channels_and_classes(module):
    name = module(GOOD.replace("return", "net.told = (spatial_dims, in_channels, out_channels, norm)\n    return"))
    build(f"{name}:net", "group", Shape(2, (16, 16, 8), 5))
    assert sys.modules[name].net.told == (3, 2, 5, ("group", {"num_groups": 8}))


def test_a_factory_may_import_its_neighbours_while_it_runs(module):
    helper = module("CHANNELS = (8, 24)\n")
    text = GOOD.replace("return", f"from {helper} import CHANNELS\n    return").replace("(8, 16)", "CHANNELS")
    assert build(f"{module(text)}:net").model[1].submodule.conv.out_channels == 24


def test_dropout_finds_its_places_in_a_network_of_ones_own(module):
    network = build_network(f"{module(GOOD)}:net", SHAPE, "batch", kind="segmentation", dropout=0.3, placement="last")
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout) and m.p > 0] == [0.3]


def test_a_class_and_any_keywords_do_as_a_factory(module):
    text = "from monai.networks.nets import BasicUNet\ndef net(**options):\n    return BasicUNet(**options)\n"
    name = module(text)
    assert sum(isinstance(m, BatchNorm) for m in build(f"{name}:net", shape=Shape(1, (32, 32), 3)).modules()) == 18
    assert (
        sum(isinstance(m, BatchNorm) for m in build(f"{name}:BasicUNet", shape=Shape(1, (32, 32), 3)).modules()) == 18
    )


def test_a_network_of_ones_own_is_known_by_its_name_and_kind(module):
    name = f"{module(GOOD)}:net"
    network = find_network(name, "segmentation")
    assert (network.name, network.kind, network.text, network.deeper) == (name, "segmentation", name, None)


@pytest.mark.parametrize("fails", [False, True])
def test_the_search_path_is_as_before_whatever_happens(module, fails):
    before = list(sys.path)
    name = module("raise OSError('on purpose')\n" if fails else GOOD)
    if fails:
        with pytest.raises(ConfigError, match="on purpose"):
            own_network(f"{name}:net", "segmentation")
    else:
        build(f"{name}:net")
    assert sys.path == before


def error_of(name, norm="batch"):
    with pytest.raises(ConfigError) as caught:
        build(name, norm)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for():
    message = error_of("no_such_module_7:net")
    assert "expected a module no_such_module_7" in message
    assert "current folder" in message


def test_a_package_that_is_not_there_is_named_by_its_missing_part():
    assert "'no_such_package_7' was not found" in error_of("no_such_package_7.nets:net")


def test_a_module_that_imports_something_missing_is_not_called_missing_itself(module):
    message = error_of(f"{module('import no_such_library_7')}:net")
    assert "raised ModuleNotFoundError: No module named 'no_such_library_7'" in message


def test_a_module_that_cannot_be_read_is_an_error_with_its_reason(module):
    assert "raised SyntaxError" in error_of(f"{module('def net(:')}:net")


def test_a_factory_that_is_not_there_is_named_with_its_nearest(module):
    message = error_of(f"{module(GOOD)}:nett")
    assert "expected a factory 'nett'" in message
    assert "Did you mean 'net'" in message


def test_what_cannot_be_called_is_named_by_its_type(module):
    assert "expected a function or class, got int" in error_of(f"{module('net = 7')}:net")


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("spatial_dims, in_channels, out_channels", "got no norm in (spatial_dims, in_channels, out_channels)"),
        ("dims, channels=1, **rest", "got dims without a default"),
        ("spatial_dims, in_channels, out_channels, norm, depth", "got depth without a default"),
        ("spatial_dims, in_channels, out_channels, norm, /", "got no spatial_dims, in_channels, out_channels, norm"),
    ],
)
def test_a_factory_that_cannot_be_called_with_the_four_keywords_is_told_its_parameters(module, parameters, told):
    assert told in error_of(f"{module(f'def net({parameters}): ...')}:net")


def test_what_is_no_network_is_named_by_its_type(module):
    text = "def net(spatial_dims, in_channels, out_channels, norm):\n    return [norm]\n"
    assert "expected a torch.nn.Module, got list" in error_of(f"{module(text)}:net")


def test_an_error_of_the_factory_is_told_with_what_it_was_called_with(module):
    message = error_of(f"{module(GOOD.replace('(8, 16)', '(8,)'))}:net", "group")
    assert "the factory raised ValueError: the length of `channels` should be no less than 2" in message
    assert "spatial_dims=2, in_channels=1, out_channels=3, norm=('group', {'num_groups': 8})" in message


def test_a_network_that_takes_norm_and_builds_none_is_refused(module):
    text = (
        "from torch import nn\ndef net(spatial_dims, in_channels, out_channels, norm):\n    return nn.Conv2d(1, 3, 1)\n"
    )
    assert "got no norm layer at all" in error_of(f"{module(text)}:net")


def test_a_network_that_keeps_norms_of_its_own_is_refused_with_the_place_of_one(module):
    text = """
from monai.networks.nets import UNet
from torch import nn

def net(spatial_dims, in_channels, out_channels, norm):
    unet = UNet(spatial_dims, in_channels, 8, channels=(8, 16), strides=(2,), norm=norm)
    return nn.Sequential(unet, nn.BatchNorm2d(8), nn.Conv2d(8, out_channels, 1))
"""
    name = f"{module(text)}:net"
    for norm in NORMS:
        assert "got BatchNorm2d in 1 (1 of 3 norm layers)" in error_of(name, norm)


def test_a_layer_norm_of_its_own_is_left_to_the_network(module):
    text = """
from monai.networks.blocks import Convolution
from torch import nn

def net(spatial_dims, in_channels, out_channels, norm):
    return nn.Sequential(Convolution(2, in_channels, 8, norm=norm), nn.LayerNorm(16), nn.Conv2d(8, out_channels, 1))
"""
    network = build(f"{module(text)}:net")
    assert [type(m) for m in network.modules() if isinstance(m, BatchNorm | nn.LayerNorm)] == [BatchNorm, nn.LayerNorm]


@pytest.mark.parametrize("name", [":net", "package.module:", ":"])
def test_half_a_name_is_told_what_a_whole_one_is(name):
    assert f"expected package.module:factory, got {name!r}" in error_of(name)


def test_the_example_builds_its_network_with_every_norm(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    counts = {
        norm: int(n.replace(",", "")) for norm, n in re.findall(r"^(\w+): ([\d,]+) parameters$", done.stdout, re.M)
    }
    assert list(counts) == list(NORMS)
    # Without a norm the shifts stay and the scales go: one for each of the 16 + 32 + 16 + 16 channels.
    assert {norm: counts["batch"] - count for norm, count in counts.items()} == {
        norm: 80 if norm == "none" else 0 for norm in NORMS
    }


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        ("[y]", r"expected logits of shape \(1, 3, 16, 16\) for one image, got list"),
        ("y[:, :2]", r"expected logits of shape \(1, 3, 16, 16\) for one image, got \(1, 2, 16, 16\)"),
        ("y.mean((2, 3))", r"for one image, got \(1, 3\)"),
        ("y + torch.zeros(7)", r"expected it to take an image of 1 channels and size \(16, 16\), got RuntimeError"),
    ],
)
def test_a_network_whose_output_is_no_logits_is_refused_before_any_training(module, returns, told):
    name = module(
        f"""
import torch
from monai.networks.blocks import Convolution

class Net(torch.nn.Module):
    def __init__(self, spatial_dims, in_channels, out_channels, norm):
        super().__init__()
        self.conv = Convolution(spatial_dims, in_channels, 4, norm=norm)
        self.head = Convolution(spatial_dims, 4, out_channels, conv_only=True)

    def forward(self, x):
        y = self.head(self.conv(x))
        return {returns}
"""
    )
    with pytest.raises(ConfigError, match=told):
        build_network(f"{name}:Net", SHAPE, "batch", kind="segmentation")
