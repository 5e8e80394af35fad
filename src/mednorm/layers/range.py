"""Batch normalization whose scale is the range of the batch."""

from __future__ import annotations

from torch import Tensor

from mednorm.layers.batch import BatchNorm
from mednorm.moments import Moments


class RangeBatchNorm(BatchNorm):
    r"""Normalize each channel by the range of the batch, scaled so that Gaussian values come out with variance 1.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-\mu}{\sqrt{\hat\sigma^2+\epsilon}} + \beta\right), \qquad
              \hat\sigma = \frac{\max x - \min x}{C(n)}

    with n the values per channel and C(n) the expected range of n Gaussian values over their expected standard
    deviation (`mednorm.reference.range_over_std`): 2 at n = 2, 6.5 at 1000, 9.7 at a million. So :math:`\hat\sigma` has
    the mean of the standard deviation at any count, where the paper's :math:`\sqrt{2\ln n}` approaches it slowly.

    The range needs no squares and no sums, which suits low precision; against that it rests on two values. The gradient
    flows through the mean and through the largest and smallest value, in equal shares where several are equal. The
    running variance moves by :math:`\hat\sigma^2\,n/(n-1)`, and evaluation is that of `BatchNorm`.

    Arguments, attributes, shapes and errors are those of `BatchNorm`.

    Example:
        >>> import torch
        >>> layer = RangeBatchNorm(2)
        >>> y = layer(3 + 5 * torch.randn(16, 2, 64, 64, generator=torch.Generator().manual_seed(0)))
        >>> [round(std) for std in y.std((0, 2, 3)).tolist()]
        [1, 1]

    Note:
        A single outlier, metal or a hot pixel, sets the scale of its whole channel. Medical images are no Gaussian
        noise: background of one value makes the range small against the deviation, heavy tails make it large.

    Reference:
        Banner, Hubara, Hoffer & Soudry (2018), "Scalable methods for 8-bit training of neural networks", Section 3.
        Tippett (1925) for the expected range.

    """

    _at_once, _by_range = False, True

    def _measure(self, x: Tensor, mask: Tensor | None) -> Moments:
        known = x.numel() // self.num_features if mask is None and self._group() is None else None
        return super()._measure(x, mask).by_range(known)

    def _pool(self, batches: list[Moments]) -> Moments:
        return super()._pool(batches).by_range()
