"""How far the statistics of a batch are from those of all images: what several rules weigh."""

from __future__ import annotations

import math

from torch import Tensor

from mednorm.examine.records import Layer, Probed, Seen

# Layers whose training does not rest on the statistics of one batch alone, or on few images by intent.
_OTHERWISE = ("BatchRenorm", "MovingBatchNorm", "GhostBatchNorm", "FrozenBatchNorm")
_MOST = 4096


def between_share(seen: Seen) -> Tensor:
    r"""Return the share :math:`\rho` of the variance that lies between images' means, ``(C,)`` in [0, 1]."""
    return (seen.of_means.unbiased_variance / seen.moments.variance).clamp(0, 1)


def noise(seen: Seen, batch_size: int) -> float:
    r"""Return how far the statistics of a batch are from those of all images, in σ: root mean square, median channel.

    .. math:: \sqrt{a^2 + (b/2)^2 + \left(1-\sqrt{1-\rho/n}\right)^2}

    with a and b the noise of the batch's mean and of its variance (`Seen`; half of b is that of σ), and the last what
    the variance lacks in any case: n images hold :math:`1-1/n` of the share :math:`\rho` that lies between images. It
    is the expected `population.distance`, to first order. NaN below two images, or where every channel is constant.

    Example:
        >>> import torch
        >>> from mednorm.moments import Moments
        >>> images = torch.linspace(-2, 2, 64).view(64, 1, 1, 1) + torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
        >>> each = Moments.of(images, per_sample=True)  # half of the variance is between images
        >>> of = [Moments.of(value) for value in (images, each.mean, each.variance)]
        >>> [round(noise(Seen(*of), size), 2) for size in (1, 2, 8)]
        [0.77, 0.63, 0.29]

    """
    mean, variance = seen.noise_of_mean(batch_size), seen.noise_of_variance(batch_size)
    lacking = 1 - (1 - between_share(seen) / batch_size).sqrt()
    return median((mean.square() + (variance / 2).square() + lacking.square()).sqrt())


def enough(seen: Seen, limit: float) -> int | None:
    """Return the smallest power of two whose batches are less noisy than a limit; None where none up to 4096 is."""
    sizes = (2**power for power in range(int(math.log2(_MOST)) + 1))
    return next((size for size in sizes if noise(seen, size) < limit), None)


def median(values: Tensor) -> float:
    """Return the median of those that are finite; NaN where none is."""
    finite = values[values.isfinite()]
    return float(finite.quantile(0.5)) if finite.numel() else math.nan


def taken_over_batches(layer: Layer) -> bool:
    """Tell whether a layer normalizes a training batch with that batch's own statistics."""
    return not layer.state.frozen and layer.kind not in _OTHERWISE


def images_together(layer: Layer, probed: Probed) -> int:
    """Return over how many images a layer takes its statistics in training."""
    return probed.batch_size * (probed.devices if layer.state.synchronized else 1)
