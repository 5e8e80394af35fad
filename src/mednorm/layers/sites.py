"""The context that says where samples come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers.domain import DomainBatchNorm, Site


@contextmanager
def domain(network: nn.Module, ids: Any, *, key: str = "site") -> Iterator[None]:
    """Say which site each sample of the batches inside comes from, to every `DomainBatchNorm` of a network.

    Args:
        network: any network, or one layer.
        ids: one site a sample: names, numbers (-1 or None for an unknown site), or a tensor of numbers. Or a batch as
            a dictionary, whose `key` holds them; or whose images are MONAI's, with `key` in their metadata.
        key: where a batch has its sites.

    Raises:
        ConfigError: the network has no such layer, the batch no such key, or a site is neither name nor number.

    Example:
        >>> import torch
        >>> from mednorm import DomainBatchNorm
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), DomainBatchNorm(4, domains=2))
        >>> batch = {"image": torch.randn(4, 1, 8, 8), "site": torch.tensor([0, 1, 1, -1])}
        >>> with domain(network.eval(), batch):
        ...     y = network(batch["image"])

    """
    layers = [module for module in network.modules() if isinstance(module, DomainBatchNorm)]
    if not layers:
        raise ConfigError(
            f"domain: expected a network with a DomainBatchNorm, got none in {type(network).__name__}. Make them with "
            "mednorm.convert(network, to='domain', domains=[…])."
        )
    sites = _sites(ids, key)
    before = [layer.sites for layer in layers]
    try:
        for layer in layers:
            layer.sites = sites
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.sites = old


def _sites(ids: Any, key: str) -> tuple[Site, ...]:
    found = _of_batch(ids, key) if isinstance(ids, Mapping) else ids
    meta = getattr(found, "meta", None) or {}  # of MONAI's tensors
    found = meta.get(key, found)
    if isinstance(found, str):
        raise ConfigError(f"domain: expected one site a sample, got the text {found!r}. Pass a list: [{found!r}, …].")
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, Sequence):
        raise ConfigError(f"domain: expected one site a sample, got {found!r}. Pass a list or a tensor of them.")
    for value in values:
        known = value is None or isinstance(value, str | Integral)
        if not known or isinstance(value, bool):
            raise ConfigError(f"domain: expected names or whole numbers of sites, got {value!r}.")
    return tuple(values)


def _of_batch(batch: Mapping[str, Any], key: str) -> Any:
    if key in batch:
        return batch[key]
    for value in batch.values():
        if key in (getattr(value, "meta", None) or {}):
            return value.meta[key]
    raise ConfigError(f"domain: expected {key!r} in the batch or in the metadata of its images, got {list(batch)}.")
