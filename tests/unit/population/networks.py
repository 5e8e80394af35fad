"""Small networks whose running statistics are wrong, and what is to be told of a network that must not have moved."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.harness import bytes_of

SIZES = (7, 3, 1, 4)  # of the batches


def planes() -> nn.Sequential:
    """Three layers in 2-D, dropout between them."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4, affine=False),
    )


class Residual(nn.Module):
    """Two layers in 3-D with a way around them, and one after a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.last = nn.BatchNorm3d(4)  # the order of definition is not that of calls
        self.first = nn.BatchNorm3d(4)
        self.conv = nn.Conv3d(4, 4, 3, padding=1)
        self.second = nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x)).relu()
        x = x + self.second(self.conv(x)).relu()
        return self.last(nn.functional.avg_pool3d(x, 2))


def unet() -> nn.Module:
    from monai.networks.nets import BasicUNet  # slow to import, which processes of their own need not

    return BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4), norm="batch", dropout=0.2)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"planes": planes, "residual 3-D": Residual, "unet": unet}
SHAPES = {"planes": (1, 16, 18), "residual 3-D": (1, 8, 10, 8), "unet": (1, 48, 48)}


def made(name: str) -> nn.Module:
    """A network in training mode whose γ, β and running statistics are no initial ones."""
    network = NETWORKS[name]()
    for layer in norms(network).values():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 3)
        if layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return network.train()


def images_for(name: str) -> Tensor:
    """Images that differ in brightness and contrast, as those of different scanners do."""
    shape = SHAPES[name]
    brightness, contrast = torch.randn(sum(SIZES), *(1 for _ in shape)), 1 + torch.rand(sum(SIZES), *(1 for _ in shape))
    return 3 + 2 * brightness + contrast * torch.randn(sum(SIZES), *shape)


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def population(network: nn.Module, images: Tensor, order: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The running statistics that PyTorch itself gives to each layer of a float64 copy, all images being one batch.

    A layer is put into training for one pass with momentum 1, in which all layers before it are in evaluation.
    """
    twin = copy.deepcopy(network).double().eval()
    for name in order:
        layer = norms(twin)[name]
        layer.momentum = 1.0
        layer.train()
        with torch.no_grad():
            twin(images.double())
        layer.eval()
    return {name: (layer.running_mean, layer.running_var) for name, layer in norms(twin).items()}


def everything_of(network: nn.Module) -> dict[str, Any]:
    """All that must come back: bytes, modes, gradients' requirements, hooks, and the states of random generators."""
    modules = dict(network.named_modules())
    return {
        "bytes": bytes_of(network),
        "modes": {name: module.training for name, module in modules.items()},
        "requires": {name: each.requires_grad for name, each in network.named_parameters()},
        "gradients": {name: each.grad for name, each in network.named_parameters()},
        "identities": {name: id(each) for name, each in (*network.named_parameters(), *network.named_buffers())},
        "hooks": {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in modules.items()},
        "moments": {name: id(m.batch_moments) for name, m in modules.items() if hasattr(m, "batch_moments")},
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


class Broken:
    """A loader that raises after some batches, in the pass of a given number."""

    def __init__(self, batches: list[Any], error: BaseException, at_pass: int, after: int = 2) -> None:
        self.batches, self.error, self.at_pass, self.after, self.passes = batches, error, at_pass, after, 0

    def __iter__(self) -> Any:
        self.passes += 1
        for number, batch in enumerate(self.batches):
            torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
            if self.passes == self.at_pass and number == self.after:
                raise self.error
            yield batch
