"""Small networks of several architectures, trained in a second or so on images that have what scans have.

An image is a smooth structure, which segmentation looks for, with stripes, whose width is the class, both with a gain
and an offset of the image's own: so a part of the variance lies between images, as between scans.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.modules.batchnorm import _BatchNorm

CLASSES = 2
SIZES = {2: (16, 16), 3: (8, 8, 8)}
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def scans(
    count: int,
    dims: int,
    seed: int,
    *,
    size: Sequence[int] | None = None,
    spread: float = 0.3,
    site: str | None = None,
) -> list[dict[str, Any]]:
    """Return single samples: image (1, *), its class, the mask of its structure, and its site.

    Args:
        count: how many.
        dims: 2 or 3.
        seed: of everything random.
        size: by default `SIZES`.
        spread: of the images' offsets and of the logarithms of their gains.
        site: that all of them are from.

    """
    size = tuple(size or SIZES[dims])
    random = torch.Generator().manual_seed(seed)
    samples = []
    for number in range(count):
        coarse = torch.randn((1, 1, *(max(2, side // 4) for side in size)), generator=random)
        smooth = interpolate(coarse, size=size, mode="bilinear" if dims == 2 else "trilinear", align_corners=True)[0]
        label = number % CLASSES
        phase = torch.arange(size[-1]) * (1.0 + label) + 6 * torch.rand((), generator=random)
        fine = 0.3 * torch.randn((1, *size), generator=random)
        gain, offset = torch.randn(2, generator=random) * spread
        image = (smooth + 0.7 * torch.sin(phase) + fine) * gain.exp() + offset
        samples.append({"image": image, "class": label, "mask": (smooth[0] > 0).long(), "site": site})
    return samples


def loader_of(samples: Sequence[dict[str, Any]], batch_size: int, label: str = "class") -> list[dict[str, Any]]:
    """Return batches of samples, in their order; the last may be smaller."""
    batches = []
    for start in range(0, len(samples), batch_size):
        some = samples[start : start + batch_size]
        labels = torch.stack([torch.as_tensor(each[label]) for each in some])
        batch = {"image": torch.stack([each["image"] for each in some]), "label": labels}
        sites = [each["site"] for each in some]
        batches.append(batch if sites[0] is None else {**batch, "site": sites})
    return batches


def stack(
    dims: int, *, widths: Sequence[int] = (8, 16, 16), norm: Callable[[int], nn.Module] | None = None
) -> nn.Module:
    """Convolution, normalization and ReLU, a few times; then the mean over space and a linear layer."""
    layers: list[nn.Module] = []
    before = 1
    for number, width in enumerate(widths):
        conv = CONV[dims](before, width, 3, padding=1, stride=2 if number else 1, bias=False)
        layers += [conv, (norm or NORM[dims])(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, POOL[dims](1), nn.Flatten(), nn.Linear(before, CLASSES))


def article(dims: int) -> nn.Module:
    """Build the article's network, which is 2-D."""
    from mednorm.tasks.networks import Shape, build_network

    return build_network("article_cnn", Shape(1, SIZES[dims], CLASSES), "batch", kind="classification")


def resnet(dims: int) -> nn.Module:
    """Build MONAI's ResNet of basic blocks, as narrow as this data needs."""
    from monai.networks.nets import ResNet

    return ResNet("basic", [2, 2, 2, 2], [8, 8, 16, 16], dims, n_input_channels=1, num_classes=CLASSES, conv1_t_size=3)


def densenet(dims: int) -> nn.Module:
    """Build MONAI's DenseNet with the 121's four blocks, narrower and shallower."""
    from monai.networks.nets import DenseNet

    return DenseNet(dims, 1, CLASSES, init_features=8, growth_rate=8, block_config=(2, 4, 3, 2))


def basicunet(dims: int) -> nn.Module:
    """Build MONAI's BasicUNet with batch normalization."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(dims, 1, CLASSES, features=(8, 8, 8, 16, 16, 8), norm=("batch", {"affine": True}))


def unet(dims: int) -> nn.Module:
    """Build MONAI's UNet with batch normalization."""
    from monai.networks.nets import UNet

    return UNet(dims, 1, CLASSES, channels=(8, 16, 16), strides=(2, 2), num_res_units=1, norm="batch")


def segresnet(dims: int) -> nn.Module:
    """Build MONAI's SegResNet with batch normalization."""
    from monai.networks.nets import SegResNet

    return SegResNet(dims, 8, 1, CLASSES, norm="batch", blocks_down=(1, 1, 2), blocks_up=(1, 1))


ARCHITECTURES: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "stack": (stack, "class"),
    "article": (article, "class"),
    "resnet": (resnet, "class"),
    "densenet": (densenet, "class"),
    "basicunet": (basicunet, "mask"),
    "unet": (unet, "mask"),
    "segresnet": (segresnet, "mask"),
}
# What its strides need.
LARGER = {
    "resnet": {2: (32, 32), 3: (16, 16, 16)},
    "densenet": {2: (48, 48), 3: (32, 32, 32)},
    "basicunet": {2: (32, 32), 3: (16, 16, 16)},
}


def trained(
    arch: str,
    dims: int,
    seed: int,
    *,
    batch_size: int = 8,
    steps: int = 80,
    momentum: float | None = 0.1,
    change: Callable[[nn.Module], object] | None = None,
    samples: Sequence[dict[str, Any]] | None = None,
    learning_rate: float = 3e-3,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a network from a fixed start, with a learning rate that ends at 0.

    Args:
        arch: a name in `ARCHITECTURES`.
        dims: 2 or 3.
        seed: of weights, images and order.
        batch_size: in training.
        steps: of Adam.
        momentum: of every batch normalization.
        change: is called with the network before training.
        samples: to train on; by default 64 `scans`.
        learning_rate: at the start.

    Returns:
        The network in evaluation mode, and its training images in batches of that size, as dictionaries.

    """
    if change is None and samples is None:
        return copy.deepcopy(_plain(arch, dims, seed, batch_size, steps, momentum, learning_rate))
    return _trained(arch, dims, seed, batch_size, steps, momentum, learning_rate, change, samples)


def _trained(
    arch: str,
    dims: int,
    seed: int,
    batch_size: int,
    steps: int,
    momentum: float | None,
    learning_rate: float,
    change: Callable[[nn.Module], object] | None = None,
    samples: Sequence[dict[str, Any]] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(seed)
    build, label = ARCHITECTURES[arch]
    network = build(dims)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
    if change is not None:
        change(network)
    samples = samples or scans(64, dims, seed, size=size_of(arch, dims))
    train(network, samples, label, batch_size, steps, learning_rate)
    return network.eval(), loader_of(samples, batch_size, label)


_plain = cache(_trained)  # several tests begin with the same one


@cache
def _at_sites(arch: str, dims: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    size = size_of(arch, dims)
    pairs = zip(scans(32, dims, 1, size=size, site="Basel"), scans(32, dims, 2, size=size, site="Lund"), strict=True)
    samples = [scan for pair in pairs for scan in pair]
    return trained(arch, dims, 0, samples=samples)[0], samples


def trained_at_sites(arch: str, dims: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train on two sites that have the same scanner; return the network and the single samples."""
    return copy.deepcopy(_at_sites(arch, dims))


def size_of(arch: str, dims: int) -> tuple[int, ...]:
    """Return the size of images that an architecture takes here."""
    return LARGER.get(arch, SIZES)[dims]


def train(
    network: nn.Module, samples: Sequence[dict[str, Any]], label: str, batch_size: int, steps: int, learning_rate: float
) -> None:
    """Take steps of Adam on samples in a random order, from torch's own random state."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(samples)).tolist()
        some, order = [samples[number] for number in order[:batch_size]], order[batch_size:]
        (batch,) = loader_of(some, batch_size, label)
        loss = cross_entropy(network(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def accuracy(output: Tensor, labels: Tensor) -> float:
    """Share of images, or of voxels, whose class is right."""
    return float((output.argmax(1) == labels).float().mean())
