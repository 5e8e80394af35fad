"""Let layers normalize with the statistics of the batch while a network is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.errors import ShapeError


@contextmanager
def own_statistics(layers: Mapping[str, _BatchNorm], who: str) -> Iterator[None]:
    """Let some layers in evaluation mode normalize with the statistics of the batch, each process with its own.

    Raises:
        ShapeError: inside, where a batch gives a single value per channel to one of them.

    """
    named = list(layers.items())
    kept = [(layer, layer.running_mean, layer.running_var, vars(layer).get("process_group")) for _, layer in named]
    hooks = [layer.register_forward_pre_hook(partial(_refuse_one_value, name, who)) for name, layer in named]
    try:
        for layer, *_, group in kept:
            layer.running_mean = layer.running_var = None
            if group is not None:  # processes with unequal numbers of batches would wait for each other for ever
                layer.process_group = None  # type: ignore[assignment]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mean, var, group in kept:
            layer.running_mean, layer.running_var = mean, var
            if group is not None:
                layer.process_group = group


def _refuse_one_value(name: str, who: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    if args and args[0].numel() == args[0].shape[1]:
        raise ShapeError(
            f"{who}: expected batches that give layer {name!r} at least 2 values per channel to take statistics of, "
            f"got 1 (input shape {tuple(args[0].shape)}). Use larger batches (drop_last=True), or the method that "
            "takes none of a batch: recalibrate(…, 'sequential'), adapt(…, 'statistics')."
        )
