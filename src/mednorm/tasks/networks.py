"""The networks of the tasks, each of which takes any normalization in the same places."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.data import Kind
from mednorm.errors import ConfigError
from mednorm.monai import NormSpec, register_norms
from mednorm.tasks.dropout import Placement, place_dropout

# What MONAI's networks and `get_norm_layer` take. Batch normalization is ours; layer normalization over channels and
# space is one group, at any rank and size (MONAI's own "layer" would need the size of every feature map).
NORMS: dict[str, NormSpec] = {
    "none": "mednorm_none",
    "batch": "mednorm_batch",
    # A share of the run: training says how long it is.
    "renorm": ("mednorm_renorm", {"schedule": 0.3, "total_steps": 1000}),
    "ghost": ("mednorm_ghost", {"ghost_size": 4}),
    # The paper's momentum, 0.98 of the old: training itself rests on it, and 0.1 would be the last ten batches.
    "moving": ("mednorm_moving", {"momentum": 0.02}),
    "range": "mednorm_range",
    "domain": "mednorm_domain",
    "frozen": "mednorm_frozen",
    "group": ("group", {"num_groups": 8}),
    "instance": ("instance", {"affine": True}),
    "layer": ("group", {"num_groups": 1}),
}


@dataclass(frozen=True)
class Shape:
    """What a network is built for: image channels and size, the number of classes, and the sites, where known."""

    channels: int
    size: tuple[int, ...]
    classes: int
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network by its name, and the images it takes.

    Attributes:
        name: what settings and the command line call it.
        kind: "classification" (one logit a class) or "segmentation" (one logit a class and pixel).
        text: for people: the call that builds it.
        build: (shape, norm as MONAI takes it) to the network, without dropout.
        multiple: every side of the images is a multiple of this.
        smallest: and the longest side at least this: then the deepest features still have two values a channel, which
            instance normalization needs.
        dims: numbers of spatial dimensions it takes.
        deeper: name of its deeper variant.
        thinnest: every other side at least this; None for `smallest`.
        shifts: its convolutions have no bias where a norm follows, so "none" keeps the shift that the norm would bring.

    """

    name: str
    kind: Kind
    text: str
    build: Callable[[Shape, NormSpec], nn.Module]
    multiple: int
    smallest: int
    dims: tuple[int, ...]
    deeper: str | None = None
    thinnest: int | None = None
    shifts: bool = False

    def check(self, size: tuple[int, ...]) -> None:
        """Pass if images of this size fit.

        Raises:
            ConfigError: they do not; the message says what would.

        """
        thinnest = self.smallest if self.thinnest is None else self.thinnest
        if len(size) not in self.dims or max(size) < self.smallest or min(size) < thinnest:
            ranks = " or ".join(f"{dim}-D" for dim in self.dims)
            rest = f" on the longest side and {thinnest} on the others" if thinnest < self.smallest else " a side"
            raise ConfigError(
                f"{self.name}: expected {ranks} images of at least {self.smallest}{rest}, got size {size}. "
                "Use --image-size, or another network."
            )
        if any(side % self.multiple for side in size):
            raise ConfigError(
                f"{self.name}: expected every side of the images to be a multiple of {self.multiple}, got {size}. "
                "Use --image-size."
            )


def find_network(name: str, kind: Kind) -> Network:
    """Look a network up by name, or one of the user's own by ``package.module:factory``.

    Raises:
        ConfigError: there is none of that name (the nearest is named), it is of the other kind, or the user's own
            cannot be imported.

    """
    if ":" in name:
        from mednorm.tasks.own import own_network  # it needs `Network`, above

        return own_network(name, kind)
    right = [network.name for network in NETWORKS.values() if network.kind == kind]
    if name in right:
        return NETWORKS[name]
    who = f"network: expected one of {', '.join(right)}, or package.module:factory,"
    if name in NETWORKS:
        raise ConfigError(f"{who} for {kind}, got {name!r}, which is for {NETWORKS[name].kind}.")
    raise ConfigError(f"{who} got {name!r}. {_did_you_mean(name, right)}".rstrip())


def build_network(
    name: str,
    shape: Shape,
    norm: str,
    *,
    kind: Kind,
    dropout: float = 0.0,
    placement: Placement | None = None,
) -> nn.Module:
    """Build a network with one of `NORMS` in every place of a norm.

    After the same ``torch.manual_seed`` the weights of convolutions and dense layers are the same bit by bit whatever
    the norm and the dropout: neither draws a random number, and norm layers start at scale 1 and shift 0.

    Args:
        name: a name in `NETWORKS`, or ``package.module:factory``.
        shape: of the images, and the number of classes.
        norm: a name in `NORMS`.
        kind: what the network is for.
        dropout: share dropped; 0 for no dropout layer.
        placement: where dropout stands; see `place_dropout`. Needed where `dropout` is more than 0.

    Raises:
        ConfigError: an unknown name, the wrong kind, images it cannot take, sites that a norm needs and nobody knows,
            or dropout without a placement.

    Example:
        >>> network = build_network("article_cnn", Shape(1, (28, 28), 2), "batch", kind="classification")
        >>> [name for name, _ in network.named_children()]
        ['conv1', 'relu1', 'norm1', 'conv2', 'relu2', 'norm2', 'pool', 'flatten', 'dense']

    """
    network = find_network(name, kind)
    if norm not in NORMS:
        raise ConfigError(
            f"norm: expected one of {', '.join(NORMS)}, got {norm!r}. {_did_you_mean(norm, NORMS)}".rstrip()
        )
    network.check(shape.size)
    register_norms()
    built = network.build(shape, _spec(norm, network, shape))
    if dropout == 0:
        return built
    if placement is None:
        raise ConfigError(f"{name}: expected a placement for dropout={dropout!r}, got none. Use 'every' or 'last'.")
    place_dropout(built, torch.zeros(1, shape.channels, *shape.size), dropout, placement)
    return built


def _spec(norm: str, network: Network, shape: Shape) -> NormSpec:
    """What MONAI takes for a norm, with what depends on the network or the images."""
    if norm == "none" and network.shifts:
        return "mednorm_none", {"bias": True}
    check_sites(norm, shape.sites)
    return ("mednorm_domain", {"domains": list(shape.sites)}) if norm == "domain" else NORMS[norm]


def check_sites(norm: str, sites: Sequence[str]) -> None:
    """Pass if a norm that keeps statistics of each site knows of sites.

    Raises:
        ConfigError: it does not.

    """
    if norm == "domain" and not sites:
        raise ConfigError(
            "norm: expected images that say which site they are from, for 'domain', got none that does. Add a column "
            "`site` to the manifest, or use 'batch'."
        )


def _did_you_mean(name: str, known: list[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _article_cnn(shape: Shape, norm: NormSpec, *, repeats: int = 0) -> nn.Module:
    """Conv 32, ReLU, norm, Conv 64, ReLU, norm, max-pool, dense; 3×3, each followed by `repeats` more, padded."""
    from monai.networks.layers.utils import get_norm_layer

    height, width = ((side - 4) // 2 for side in shape.size)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, before, width_out in (("1", shape.channels, 32), ("2", 32, 64)):
        for index in range(1 + repeats):
            part = f"{number}_{index + 1}" if index else number
            layers[f"conv{part}"] = nn.Conv2d(width_out if index else before, width_out, 3, padding=1 if index else 0)
            layers[f"relu{part}"] = nn.ReLU()
            layers[f"norm{part}"] = get_norm_layer(norm, spatial_dims=2, channels=width_out)
    layers["pool"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(64 * height * width, shape.classes)
    return nn.Sequential(layers)


def _densenet(shape: Shape, norm: NormSpec, *, blocks: tuple[int, ...]) -> nn.Module:
    from monai.networks.nets import DenseNet

    return DenseNet(len(shape.size), shape.channels, shape.classes, block_config=blocks, norm=norm)


def _resnet(shape: Shape, norm: NormSpec, *, layers: list[int]) -> nn.Module:
    """Build with batch normalization, then put the norm in each of its places.

    Handed over, it would reach the first layer alone: MONAI 1.6 builds the blocks with batch normalization whatever
    `norm` is (its pull request 9028), and starts the weight of a norm that may have none.
    """
    from monai.networks.layers.utils import get_norm_layer
    from monai.networks.nets import ResNet

    dims, planes = len(shape.size), [64, 128, 256, 512]
    network: nn.Module = ResNet(
        block="basic",
        layers=layers,
        block_inplanes=planes,
        spatial_dims=dims,
        n_input_channels=shape.channels,
        num_classes=shape.classes,
        bias_downsample=False,
        norm="batch",
    )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, get_norm_layer(norm, spatial_dims=dims, channels=child.num_features))
    return network


def _basicunet(shape: Shape, norm: NormSpec, *, more: int = 0) -> nn.Module:
    """Build MONAI's BasicUNet with its own LeakyReLU(0.1), each pair of convolutions lengthened by `more`."""
    from monai.networks.nets import BasicUNet
    from monai.networks.nets.basic_unet import TwoConv

    dims = len(shape.size)
    network: nn.Module = BasicUNet(dims, shape.channels, shape.classes, features=(16, 16, 32, 64, 128, 16), norm=norm)
    act = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})
    for pair in [module for module in network.modules() if isinstance(module, TwoConv)]:
        width: Any = pair.get_submodule("conv_1").out_channels
        for number in range(2, 2 + more):
            pair.add_module(f"conv_{number}", _same_width(dims, width, act, norm))
    return network


def _unet(shape: Shape, norm: NormSpec, *, more: int = 0) -> nn.Module:
    """Build MONAI's UNet of seven convolutions, each of the six that a norm follows lengthened by `more`."""
    from monai.networks.blocks import Convolution
    from monai.networks.nets import UNet

    dims = len(shape.size)
    network: nn.Module = UNet(
        dims,
        shape.channels,
        shape.classes,
        channels=(8, 16, 32, 64),
        strides=(2, 2, 2),
        act="relu",
        norm=norm,
    )
    for block in [module for module in network.modules() if isinstance(module, Convolution) and hasattr(module, "adn")]:
        for number in range(1, 1 + more):
            block.add_module(f"more_{number}", _same_width(dims, block.out_channels, "relu", norm))
    return network


def _same_width(dims: int, channels: int, act: str | tuple[str, dict[str, Any]], norm: NormSpec) -> nn.Module:
    from monai.networks.blocks import Convolution

    return Convolution(dims, channels, channels, act=act, norm=norm, dropout=0.0)


def _segresnet(shape: Shape, norm: NormSpec, *, blocks_down: tuple[int, ...]) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(
        len(shape.size),
        init_filters=16,
        in_channels=shape.channels,
        out_channels=shape.classes,
        norm=norm,
        blocks_down=blocks_down,
    )


_NETS = "monai.networks.nets"
_BASIC = f"{_NETS}.BasicUNet(features=(16, 16, 32, 64, 128, 16))"
_UNET = f"{_NETS}.UNet(channels=(8, 16, 32, 64), strides=(2, 2, 2), act='relu')"
_ARTICLE = "conv 32, ReLU, norm, conv 64, ReLU, norm, max-pool, dense; convolutions 3×3"
_DENSE, _RES = f"{_NETS}.DenseNet", f"{_NETS}.ResNet('basic', bias_downsample=False, "
_2D, _2D_3D = (2,), (2, 3)

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("article_cnn", "classification", _ARTICLE, _article_cnn, 1, 6, _2D, "article_cnn_deep"),
        Network(
            "article_cnn_deep",
            "classification",
            f"{_ARTICLE}; each convolution followed by four more of its width",
            partial(_article_cnn, repeats=4),
            1,
            6,
            _2D,
        ),
        *(
            Network(
                f"densenet{layers}",
                "classification",
                f"{_DENSE}{layers}()",
                partial(_densenet, blocks=blocks),
                1,
                61,
                _2D_3D,
                deeper,
                thinnest=29,
                shifts=True,
            )
            for layers, blocks, deeper in ((121, (6, 12, 24, 16), "densenet169"), (169, (6, 12, 32, 32), None))
        ),
        *(
            Network(
                name,
                "classification",
                f"{_RES}layers={layers})",
                partial(_resnet, layers=layers),
                1,
                17,
                _2D_3D,
                deeper,
                thinnest=1,
                shifts=True,
            )
            for name, layers, deeper in (("resnet18", [2, 2, 2, 2], "resnet34"), ("resnet34", [3, 4, 6, 3], None))
        ),
        Network("basicunet", "segmentation", _BASIC, _basicunet, 16, 32, _2D_3D, "basicunet_deep", thinnest=16),
        Network(
            "basicunet_deep",
            "segmentation",
            f"{_BASIC}, each pair of convolutions followed by two more of its width",
            partial(_basicunet, more=2),
            16,
            32,
            _2D_3D,
            thinnest=16,
        ),
        Network("unet", "segmentation", _UNET, _unet, 8, 16, _2D_3D, "unet_deep", thinnest=8),
        Network(
            "unet_deep",
            "segmentation",
            f"{_UNET}, each convolution but the last followed by two more of its width",
            partial(_unet, more=2),
            8,
            16,
            _2D_3D,
            thinnest=8,
        ),
        *(
            Network(
                name,
                "segmentation",
                f"{_NETS}.SegResNet(init_filters=16, blocks_down={blocks})",
                partial(_segresnet, blocks_down=blocks),
                8,
                16,
                _2D_3D,
                deeper,
                thinnest=8,
                shifts=True,
            )
            for name, blocks, deeper in (
                ("segresnet", (1, 2, 2, 4), "segresnet_deep"),
                ("segresnet_deep", (2, 4, 4, 8), None),
            )
        ),
    )
}
