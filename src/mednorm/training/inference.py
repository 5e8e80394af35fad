"""From images to logits: the whole image at once, or a volume window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from mednorm.layers import DomainBatchNorm, domain

_OVERLAP = 0.25  # MONAI's default


def asks_for_sites(network: nn.Module) -> bool:
    """Tell whether a network has statistics of each site."""
    return any(isinstance(module, DomainBatchNorm) for module in network.modules())


@contextmanager
def at_sites(network: nn.Module, sites: Sequence[str | None] | None) -> Iterator[None]:
    """Say which site each image of the batch inside is from, where the network asks; None where nothing is known."""
    if sites is not None and asks_for_sites(network):
        with domain(network, sites):
            yield
    else:
        yield


def logits_of(
    network: nn.Module,
    images: Tensor,
    patch_size: Sequence[int] | None,
    window_batch: int = 1,
    sites: Sequence[str | None] | None = None,
) -> Tensor:
    """Return logits (N, K, *) of images (N, C, *).

    Volumes are scaled whole, then seen through windows of the patch size that overlap by a quarter and count for more
    in their middle (MONAI's Gaussian importance), so that no seam shows where two windows meet.

    Args:
        network: `scaling` and `net`, as `Task.network_for` builds them.
        images: on the network's device.
        patch_size: of the windows, in voxels; None for the whole image.
        window_batch: windows in a batch, which matters where a norm takes its statistics from the batch.
        sites: of the images, where known.

    """
    if patch_size is None:
        with at_sites(network, sites):
            whole: Tensor = network(images)
            return whole
    from monai.inferers.utils import sliding_window_inference

    net = network.get_submodule("net")

    def look(windows: Tensor) -> Tensor:
        # All of one image where there is one; MONAI does not say which image a window is of.
        with at_sites(net, [sites[0] if sites and len(images) == 1 else None] * len(windows)):
            logits: Tensor = net(windows)
            return logits

    seen = sliding_window_inference(
        network.get_submodule("scaling")(images),
        list(patch_size),
        window_batch,
        look,
        overlap=_OVERLAP,
        mode="gaussian",
    )
    assert isinstance(seen, Tensor)
    return seen
