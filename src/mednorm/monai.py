"""Our layers under names in MONAI's `Norm` factory, so that every MONAI network takes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from mednorm.layers import BatchNorm, NoNorm

# What a MONAI network takes as `norm`: a name in the factory, or the name with the arguments of the layer.
NormSpec = str | tuple[str, dict[str, Any]]

_LAYERS: dict[str, type[nn.Module]] = {"mednorm_batch": BatchNorm, "mednorm_none": NoNorm}


def register_norms() -> None:
    """Add `mednorm_batch` and `mednorm_none` to MONAI's `Norm` factory; doing it twice is harmless.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> register_norms()
        >>> net = BasicUNet(spatial_dims=2, features=(8, 8, 16, 16, 32, 8), norm="mednorm_batch")
        >>> sum(isinstance(module, BatchNorm) for module in net.modules())
        18
        >>> net = BasicUNet(spatial_dims=2, features=(8, 8, 16, 16, 32, 8), norm=("mednorm_none", {"bias": True}))
        >>> sum(isinstance(module, NoNorm) for module in net.modules())
        18

    """
    from monai.networks.layers.factories import Norm

    for name, layer in _LAYERS.items():
        if name.upper() not in Norm.names:
            Norm.add_factory_class(name, layer)
