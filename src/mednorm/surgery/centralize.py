"""Weights whose mean is zero, which normalization without a mean needs before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from mednorm.errors import ConfigError
from mednorm.layers import MovingBatchNorm
from mednorm.surgery.chains import followers


class ZeroMean(nn.Module):
    r"""Take from each output channel's weights their mean: :math:`\bar W_o = W_o - \operatorname{mean}(W_o)`.

    Args:
        groups: of the transposed convolution whose weights these are, laid out ``(in, out / groups, *kernel)``; None
            for all other layers, whose weights are ``(out, …)``.

    """

    def __init__(self, groups: int | None = None) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """Return the centred weights."""
        if self.groups is None:
            return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)
        parts = weight.unflatten(0, (self.groups, -1))
        centred: Tensor = parts - parts.mean((1, *range(3, parts.dim())), keepdim=True)
        return centred.flatten(0, 1)


def centralize(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> tuple[str, ...]:
    r"""Centre the weights of each convolution or linear layer before ``MovingBatchNorm(centering="weights")``.

    .. math:: \bar W_o = W_o - \operatorname{mean}(W_o)

    for the weights :math:`W_o` of each output channel: an input that is one constant over the filter's extent, in all
    its channels, then gives 0 (or the layer's bias; under a transposed convolution with a stride, on average), which
    stands in for the mean that the normalization no longer subtracts. The weights stay parameters and learn; what is
    used of them is centred, by ``torch.nn.utils.parametrize``, which names them
    ``….parametrizations.weight.original`` in the state_dict and which ``remove_parametrizations`` bakes in. What is
    centred so already is left as it is.

    Args:
        model: the network, changed in place; what it computes changes too, unless its weights are centred already.
        example: inputs of the network, to find what precedes what where it cannot be traced without.

    Returns:
        Names of the layers whose weights are centred now, those that were before among them.

    Raises:
        ConfigError: no such normalization follows a convolution or linear layer, or one has a single weight an output
            channel, of which nothing would be left. The network is as it was.

    Example:
        >>> norm = MovingBatchNorm(4, centering="weights")
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), norm)
        >>> centralize(network)
        ('0',)
        >>> bool(network[0].weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True

    Reference:
        Yan et al. (2020), MABN, Section 4.2; Qiao et al. (2019), "Micro-Batch Training with Batch-Channel
        Normalization and Weight Standardization".

    """

    def weighted(module: nn.Module) -> bool:
        return isinstance(module, _ConvNd | nn.Linear)

    def uncentred(module: nn.Module) -> bool:
        return isinstance(module, MovingBatchNorm) and module.centering == "weights"

    found = followers(model, weighted, lambda module: isinstance(module, _BatchNorm), example=example)
    modules = dict(model.named_modules(remove_duplicate=False))
    names = tuple(first for first, second in found.pairs if uncentred(modules[second]))
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.reasons.items() if uncentred(modules[name]))
        raise ConfigError(
            f"centralize: expected MovingBatchNorm(centering='weights') after a convolution or linear layer, got none "
            f"in {type(model).__name__}{f' ({reasons})' if reasons else ''}. Convert with "
            "mednorm.convert(model, to='moving', centering='weights'), and pass an example input."
        )
    todo = {name: modules[name] for name in names if not _is_centred(modules[name])}
    for name, layer in todo.items():
        weight: Any = layer.weight
        if weight.numel() == (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels):
            raise ConfigError(
                f"centralize: expected several weights an output channel, got 1 in {type(layer).__name__} at {name!r}, "
                "of which nothing would be left. Use MovingBatchNorm(centering='mean') after it."
            )
    for layer in todo.values():
        groups = layer.groups if isinstance(layer, _ConvTransposeNd) else None
        with torch.random.fork_rng(devices=[]):
            parametrize.register_parametrization(layer, "weight", ZeroMean(groups))
    return names


def _is_centred(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    steps: Any = layer.parametrizations
    return any(isinstance(step, ZeroMean) for step in steps["weight"])
