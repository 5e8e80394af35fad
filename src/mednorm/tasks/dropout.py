"""Where dropout stands beside the normalization, which decides whether the two get on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mednorm.errors import ConfigError
from mednorm.layers import NoNorm

Placement = Literal["every", "before", "last"]

# Types, at every rank; `NoNorm` too, so that an arm without normalization drops out in the same places.
NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, NoNorm)


def place_dropout(network: nn.Module, example: Tensor, rate: float, placement: Placement) -> None:
    """Put dropout into a network, in places given by its norm layers; the network itself is changed.

    Dropout scales what it keeps by 1/(1 − rate) in training alone, so the variance that a batch normalization *behind*
    it sees in training is not the variance of evaluation, and its running variance fits only the former. "last" has no
    normalization behind it and is free of this shift; "every" and "before" are not.

    A norm layer that gets a dropout becomes ``Sequential(norm=…, dropout=…)`` in its place, so its parameters get the
    prefix ``norm.``, the same for every kind of norm. Weights, buffers, modes and random state stay as they were.

    Args:
        network: the network. One layer used in several places stays one layer.
        example: images (N, C, *) it takes; "last" sends them through once, in evaluation mode.
        rate: share dropped, more than 0 and less than 1.
        placement: "every": right after every norm layer, before the activation where one follows; "before": right
            before every norm layer; "last": right after the norm layer that the forward pass comes to last.

    Raises:
        ConfigError: the network has no norm layer inside, its forward pass comes to none, or `rate` or `placement` is
            not one of the above.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> place_dropout(net, torch.zeros(1, 1, 8, 8), 0.25, "every")
        >>> [type(layer).__name__ for layer in net[1]]
        ['BatchNorm2d', 'Dropout']

    Reference:
        Li, Chen, Hu & Yang (2019), "Understanding the Disharmony between Dropout and Batch Normalization by Variance
        Shift": apply dropout after all batch normalization layers.

    """
    if not 0 < rate < 1:
        raise ConfigError(f"dropout: expected a rate of more than 0 and less than 1, got {rate!r}.")
    if placement not in get_args(Placement):
        raise ConfigError(f"dropout: expected a placement of {', '.join(get_args(Placement))}, got {placement!r}.")
    layers: list[nn.Module] = [
        each for each in network.modules() if isinstance(each, NORM_LAYERS) and each is not network
    ]
    if not layers:
        raise ConfigError(
            f"dropout: expected a network with norm layers, beside which it is placed, got {type(network).__name__} "
            "with none inside. Build its norm layers from `norm`, or leave dropout out."
        )
    if placement == "last":
        layers = _in_forward_order(network, example, layers)[-1:]
    for layer in layers:
        dropout = nn.Dropout(rate)
        parts = {"norm": layer, "dropout": dropout} if placement != "before" else {"dropout": dropout, "norm": layer}
        _replace(network, layer, nn.Sequential(OrderedDict(parts)))


def _in_forward_order(network: nn.Module, example: Tensor, layers: list[nn.Module]) -> list[nn.Module]:
    """Send the example through and return the layers in the order it came to them, each as often as it did.

    Raises:
        ConfigError: it came to none of them.

    """
    order: list[nn.Module] = []
    with _observed(network, layers, lambda layer, *_: order.append(layer)):
        network(example)
    if not order:
        raise ConfigError(
            f"dropout: expected the forward pass to come to one of the {len(layers)} norm layers of "
            f"{type(network).__name__}, got none of them. Use placement 'every'."
        )
    return order


@contextmanager
def _observed(network: nn.Module, layers: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Hold the network in evaluation, without gradients, with a hook on the layers; afterwards all is as before."""
    modes = [(module, module.training) for module in network.modules()]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` hangs."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
