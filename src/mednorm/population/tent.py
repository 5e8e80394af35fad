"""Entropy minimisation of γ and β."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mednorm.errors import ConfigError, DataError
from mednorm.population.batches import Batch, call
from mednorm.population.judge import Activation, entropy_of
from mednorm.population.layers import Layers, learned_by
from mednorm.population.own_statistics import own_statistics


def minimise_entropy(
    network: nn.Module,
    batches: Iterable[Batch],
    layers: Layers,
    *,
    epochs: int,
    lr: float,
    activation: Activation | None,
    who: str,
) -> None:
    """Let γ and β of some layers learn to make predictions certain; each layer normalizes with the batch's statistics.

    Everything else stays in the mode it is in and moves nowhere, gradients included.

    Raises:
        ConfigError: the layers have no γ and β, or the outputs are no logits.
        DataError: an entropy is no number.

    """
    named = [(layer, key) for layer in layers.values() for key in learned_by(layer)]
    parameters = list({id(each): each for layer, key in named for each in [layer.get_parameter(key)]}.values())
    if not parameters:
        raise ConfigError(
            f"{who}: expected layers with γ and β that are not frozen, got none. Use method='statistics'."
        )
    with _alone(network, parameters), own_statistics(layers, who), torch.enable_grad():
        optimizer = torch.optim.Adam(parameters, lr=lr)
        for _ in range(epochs):
            for number, batch in enumerate(batches, start=1):
                loss = entropy_of(call(network, batch), activation, who).mean()
                if not bool(loss.isfinite()):
                    raise DataError(
                        f"{who}: expected finite outputs, got an entropy of {loss.item()} in batch {number}."
                    )
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()


def check_precision(layers: Layers, who: str) -> None:
    """Refuse γ and β in half precision: it rounds steps of Adam away, and float16 also the ε that it divides by.

    Raises:
        ConfigError: a layer has such.

    """
    for name, layer in layers.items():
        for dtype in {layer.get_parameter(key).dtype for key in learned_by(layer)}:
            if torch.finfo(dtype).bits < 32:
                raise ConfigError(
                    f"{who}: expected γ and β that learn in float32 or float64, got {dtype} in layer {name!r}. Call "
                    "network.float() and give images in float32, or use method='statistics'."
                )


@contextmanager
def _alone(network: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let some parameters require a gradient and no other; give requirements and gradients back."""
    every = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    try:
        for parameter, *_ in every:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required, gradient in every:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def collapsed(before: float, after: float) -> bool:
    """Tell whether one class has swallowed the others: less than a twentieth is left of what they had.

    Example:
        >>> collapsed(0.6, 0.9), collapsed(0.6, 0.99), collapsed(0.97, 0.98)
        (False, True, False)

    """
    return 1 - after < (1 - before) / 20
