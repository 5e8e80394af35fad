"""How far the statistics of some images are from those that a layer normalizes with."""

from __future__ import annotations

from torch import Tensor

from mednorm.moments import Moments


def distance(moments: Moments, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    r"""Return for each channel the distance of its distribution from the one a layer expects, in the latter's σ.

    .. math:: d = \sqrt{\frac{(\mu-\mu_r)^2 + (\sigma-\sigma_r)^2}{\sigma_r^2+\epsilon}}

    the Wasserstein distance of two Gaussian distributions: what normalizing with :math:`\mu_r,\sigma_r` leaves of an
    offset and of a wrong scale. 0 where the statistics agree; 0.1 hardly shows; 1 is one standard deviation of offset.

    Args:
        moments: of the images, ``(C,)``.
        mean: that the layer normalizes with, ``(C,)``.
        variance: likewise, biased or not.
        eps: of the layer.

    Returns:
        ``(C,)``, not finite where an argument is not.

    Example:
        >>> import torch
        >>> images = Moments.given(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 4.0]))
        >>> distance(images, torch.zeros(2), torch.ones(2), 0.0)
        tensor([2., 1.])

    Reference:
        Olkin & Pukelsheim (1982), "The distance between two random vectors with given dispersion matrices".

    """
    offset = moments.mean - mean
    scale = moments.std - variance.sqrt()
    return ((offset.square() + scale.square()) / (variance + eps)).sqrt()
