"""Networks that were broken on purpose, each in the way that one of the rules MN005-MN012 is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

import mednorm
from tests.unit.examine.broken_a import Broken, Built
from tests.unit.examine.networks import ARCHITECTURES, CLASSES, CONV, NORM, POOL, stack, train, trained


def with_dead_channels(arch: str, dims: int, kill: Callable[[list[_BatchNorm]], object]) -> Built:
    """Train, and let channels die."""
    network, loader = trained(arch, dims, 0)
    with torch.no_grad():
        kill(_norms(network))
    return network, loader


def zero_gamma(norms: list[_BatchNorm]) -> None:
    """Prune the middle layer wholly."""
    norms[len(norms) // 2].weight.zero_()
    norms[len(norms) // 2].bias.zero_()


def far_below_zero(norms: list[_BatchNorm]) -> None:
    """Let every channel of the second layer but one die before its ReLU, as after a step that was too large."""
    norms[1].bias[1:] = -20.0


def with_nan_statistics(arch: str, dims: int, value: float) -> Built:
    """Let a batch reach PyTorch's running statistics that is no number, in training at the very end."""
    network, loader = trained(arch, dims, 0)
    network.train()
    with torch.no_grad():
        network(torch.full_like(loader[0]["image"], value))
    return network.eval(), loader


def with_negative_variance(arch: str, dims: int) -> Built:
    """Extrapolate between the states of two networks, buffers as well: 5 a - 4 b."""
    network, loader = trained(arch, dims, 0)
    layer = _norms(network)[1]
    with torch.no_grad():
        other = 1.5 * layer.running_var
        layer.running_var.mul_(5).sub_(4 * other)
    return network, loader


def with_skipped_batches(arch: str, dims: int) -> Built:
    """Train our layers on images of which most batches hold one that is no number."""
    network, loader = trained(arch, dims, 0, change=lambda network: mednorm.convert(network, to="batch"))
    network.train()
    with torch.no_grad():
        for _ in range(12):
            for batch in loader:
                network(torch.full_like(batch["image"], torch.nan))
    return network.eval(), loader


def with_dropout(dims: int, rate: float, *, between: bool = False) -> Built:
    """Train with dropout before each normalization but the first."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        before = 1
        for width in (8, 16, 16):
            drop = [nn.Dropout(rate)] if layers else []
            conv = CONV[dims](before, width, 3, padding=1, stride=2 if layers else 1, bias=False)
            inside = [conv, *drop] if between else [*drop, conv]
            layers += [*inside, NORM[dims](width), nn.ReLU()]
            before = width
        return nn.Sequential(*layers, POOL[dims](1), nn.Flatten(), nn.Linear(before, CLASSES))

    return _built(build, dims)


def with_biases(arch: str, dims: int) -> Built:
    """Train with a bias before each normalization."""

    def add(network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, CONV[dims]):
                module.bias = nn.Parameter(torch.zeros(module.out_channels))

    return trained(arch, dims, 0, change=add)


def with_decay(arch: str, dims: int, decay: float) -> Broken:
    """Train, and tell with which optimizer, weight decay on everything."""
    told: dict[str, Any] = {}

    def build() -> Built:
        network, loader = trained(arch, dims, 0)
        told["optimizer"] = torch.optim.AdamW(network.parameters(), weight_decay=decay)
        return network, loader

    return Broken(f"weight decay {decay:g} on everything, {dims}-D", "MN009", build, told)


class Repeated(nn.Module):
    """A network of blocks that are computed again in the backward pass."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run the first block as it is, and checkpoint the second."""
        x = self.network[:3](x)
        x = checkpoint(self.network[3:9], x, use_reentrant=False)
        return self.network[9:](x)


class Twice(nn.Module):
    """Two paths with a normalization in common: of the image, and of its fine structure ten times enlarged."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.coarse, self.fine = CONV[dims](1, 8, 3, bias=False), CONV[dims](1, 8, 3, bias=False)
        self.shared = NORM[dims](8)
        self.last = CONV[dims](16, 16, 3, bias=False)
        self.norm = NORM[dims](16)
        self.head = nn.Sequential(nn.ReLU(), POOL[dims](1), nn.Flatten(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Join both."""
        paths = self.shared(self.coarse(x)).relu(), self.shared(self.fine(5 * x + 10)).relu()
        return self.head(self.norm(self.last(torch.cat(paths, 1))))


class Forgetful(nn.Module):
    """A network one of whose layers never leaves evaluation mode."""

    def __init__(self, network: nn.Sequential, layer: int) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.network(x)

    def train(self, mode: bool = True) -> Forgetful:
        """Set the mode of all but one."""
        super().train(mode)
        self.network[self.layer].eval()
        return self


def standing_still(arch: str, dims: int) -> Built:
    """Train, and then on with one layer in evaluation mode by the network's own doing, from whatever it held."""
    network, loader = trained(arch, dims, 0)
    held = Forgetful(network, 4)  # type: ignore[arg-type]
    train(held, samples_of(loader), "class", 8, 40, 1e-3)
    return held.eval(), loader


def half_frozen(arch: str, dims: int) -> Built:
    """Freeze the weights of the first half and train on, statistics and all."""
    network, loader = trained(arch, dims, 0)
    for layer in list(network)[: len(list(network)) // 2]:
        layer.requires_grad_(False)
    train(network, samples_of(loader), "class", 8, 40, 1e-3)
    return network.eval(), loader


def in_two_modes(arch: str, dims: int) -> Built:
    """Put one layer into training mode by hand, and the rest into evaluation mode."""
    network, loader = trained(arch, dims, 0)
    _norms(network)[-1].train()
    return network, loader


def of_faint_images(dims: int, scale: float) -> Built:
    """Train on images in a unit in which their intensities are tiny."""

    def build() -> nn.Module:
        network = ARCHITECTURES["stack"][0](dims)
        return nn.Sequential(Scale(scale), *network)

    return _built(build, dims)


def in_half_precision(arch: str, dims: int, dtype: torch.dtype, offset: float) -> Built:
    """Train on images far from 0, with full precision, and look in half."""
    network, loader = trained(arch, dims, 0)
    first = next(module for module in network.modules() if isinstance(module, CONV[dims]))
    first.bias = nn.Parameter(torch.full((first.out_channels,), offset))
    _norms(network)[0].running_mean += offset
    return network.to(dtype), [{**batch, "image": batch["image"].to(dtype)} for batch in loader]


class Scale(nn.Module):
    """Multiply by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.factor * x


def _built(network: Callable[[], nn.Module], dims: int) -> Built:
    """Train a network that is not in `ARCHITECTURES` as those are trained."""
    _, loader = trained("stack", dims, 0, steps=1)
    torch.manual_seed(0)
    made = network()
    train(made, samples_of(loader), "class", 8, 80, 3e-3)
    return made.eval(), loader


def samples_of(loader: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return single samples again."""
    pairs = (pair for batch in loader for pair in zip(batch["image"], batch["label"], strict=True))
    return [{"image": image, "class": label, "site": None} for image, label in pairs]


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _stack(dims: int) -> nn.Sequential:
    return stack(dims)  # type: ignore[return-value]


BROKEN: tuple[Broken, ...] = (
    Broken("a layer's γ all 0", "MN005", lambda: with_dead_channels("stack", 2, zero_gamma)),
    Broken("a layer's γ all 0, 3-D", "MN005", lambda: with_dead_channels("unet", 3, zero_gamma)),
    Broken("β far below 0 before ReLU", "MN005", lambda: with_dead_channels("stack", 2, far_below_zero)),
    Broken("β far below 0 before ReLU, 3-D", "MN005", lambda: with_dead_channels("stack", 3, far_below_zero)),
    Broken("a NaN batch", "MN006", lambda: with_nan_statistics("stack", 2, torch.nan)),
    Broken("an infinite volume", "MN006", lambda: with_nan_statistics("unet", 3, torch.inf)),
    Broken("negative running variance", "MN006", lambda: with_negative_variance("unet", 2)),
    Broken("most batches skipped, 3-D", "MN006", lambda: with_skipped_batches("stack", 3)),
    Broken("dropout 0.5 before the convolutions", "MN007", lambda: with_dropout(2, 0.5)),
    Broken("dropout 0.5 before the normalization", "MN007", lambda: with_dropout(2, 0.5, between=True)),
    Broken("dropout 0.5 before the normalization, 3-D", "MN007", lambda: with_dropout(3, 0.5, between=True)),
    Broken("biased convolutions", "MN008", lambda: with_biases("stack", 2)),
    Broken("biased convolutions, 3-D", "MN008", lambda: with_biases("stack", 3)),
    with_decay("stack", 2, 0.01),
    with_decay("stack", 3, 0.1),
    Broken("checkpointing", "MN010", lambda: _built(lambda: Repeated(_stack(2)), 2)),
    Broken("checkpointing, 3-D", "MN010", lambda: _built(lambda: Repeated(_stack(3)), 3)),
    Broken("one layer for two paths", "MN010", lambda: _built(lambda: Twice(2), 2)),
    Broken("one layer for two paths, 3-D", "MN010", lambda: _built(lambda: Twice(3), 3)),
    Broken("a layer never updated", "MN010", lambda: _built(lambda: Forgetful(_stack(2), 4), 2)),
    Broken("a layer never updated, 3-D", "MN010", lambda: _built(lambda: Forgetful(_stack(3), 4), 3)),
    Broken("a layer that stands still after a while", "MN010", lambda: standing_still("stack", 2)),
    Broken("half of the weights frozen", "MN011", lambda: half_frozen("stack", 2)),
    Broken("half of the weights frozen, 3-D", "MN011", lambda: half_frozen("stack", 3)),
    Broken("a layer left in training mode, 3-D", "MN011", lambda: in_two_modes("unet", 3)),
    Broken("intensities of 0.001", "MN012", lambda: of_faint_images(2, 1e-3)),
    Broken("intensities of 0.001, 3-D", "MN012", lambda: of_faint_images(3, 1e-3)),
    Broken("float16 far from 0", "MN012", lambda: in_half_precision("stack", 2, torch.float16, 4000.0)),
    Broken("bfloat16 far from 0, 3-D", "MN012", lambda: in_half_precision("stack", 3, torch.bfloat16, 500.0)),
)
