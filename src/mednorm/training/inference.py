"""From images to logits: the whole image at once, or a volume window by window."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_OVERLAP = 0.25  # MONAI's default


def logits_of(network: nn.Module, images: Tensor, patch_size: Sequence[int] | None, window_batch: int = 1) -> Tensor:
    """Return logits (N, K, *) of images (N, C, *).

    Volumes are scaled whole, then seen through windows of the patch size that overlap by a quarter and count for more
    in their middle (MONAI's Gaussian importance), so that no seam shows where two windows meet.

    Args:
        network: `scaling` and `net`, as `Task.network_for` builds them.
        images: on the network's device.
        patch_size: of the windows, in voxels; None for the whole image.
        window_batch: windows in a batch, which matters where a norm takes its statistics from the batch.

    """
    if patch_size is None:
        whole: Tensor = network(images)
        return whole
    from monai.inferers.utils import sliding_window_inference

    seen = sliding_window_inference(
        network.get_submodule("scaling")(images),
        list(patch_size),
        window_batch,
        network.get_submodule("net"),
        overlap=_OVERLAP,
        mode="gaussian",
    )
    assert isinstance(seen, Tensor)
    return seen
