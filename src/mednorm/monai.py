"""Our layers under names in MONAI's `Norm` factory, so that every MONAI network takes them."""

from __future__ import annotations

from mednorm.layers import BatchNorm


def register_norms() -> None:
    """Add `mednorm_batch` to MONAI's `Norm` factory; doing it twice is harmless.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> register_norms()
        >>> net = BasicUNet(spatial_dims=2, features=(8, 8, 16, 16, 32, 8), norm="mednorm_batch")
        >>> sum(isinstance(module, BatchNorm) for module in net.modules())
        18

    """
    from monai.networks.layers.factories import Norm

    if "MEDNORM_BATCH" not in Norm.names:
        Norm.add_factory_callable("mednorm_batch", lambda spatial_dims: BatchNorm)
