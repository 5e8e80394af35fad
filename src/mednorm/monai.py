"""Our layers under names in MONAI's `Norm` factory, so that every MONAI network takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from mednorm import layers

# What a MONAI network takes as `norm`: a name in the factory, or the name with the arguments of the layer.
NormSpec = str | tuple[str, dict[str, Any]]

_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "mednorm_batch": layers.BatchNorm,
    "mednorm_sync": partial(layers.BatchNorm, process_group="world"),
    "mednorm_renorm": layers.BatchRenorm,
    "mednorm_ghost": layers.GhostBatchNorm,
    "mednorm_moving": layers.MovingBatchNorm,
    "mednorm_range": layers.RangeBatchNorm,
    "mednorm_domain": layers.DomainBatchNorm,
    "mednorm_frozen": layers.FrozenBatchNorm,
    "mednorm_none": layers.NoNorm,
}


def register_norms() -> None:
    """Add every layer to MONAI's `Norm` factory; doing it twice is harmless.

    The names are `mednorm_` and batch, sync (batch over all processes), renorm, ghost, moving, range, domain (which
    needs ``{"domains": …}``), frozen and none.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> register_norms()
        >>> net = BasicUNet(spatial_dims=2, features=(8, 8, 16, 16, 32, 8), norm="mednorm_batch")
        >>> sum(isinstance(module, layers.BatchNorm) for module in net.modules())
        18
        >>> norm = ("mednorm_ghost", {"ghost_size": 2})
        >>> net = BasicUNet(spatial_dims=2, features=(8, 8, 16, 16, 32, 8), norm=norm)
        >>> sum(isinstance(module, layers.GhostBatchNorm) for module in net.modules())
        18

    """
    from monai.networks.layers.factories import Norm

    for name, layer in _LAYERS.items():
        if name.upper() not in Norm.names:
            Norm.add_factory_callable(name, partial(_same_at_any_rank, layer))


def _same_at_any_rank(layer: Callable[..., nn.Module], _: int) -> Callable[..., nn.Module]:
    return layer
