"""Normalization by the range of the batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mednorm.keras.arguments import refuse
from mednorm.keras.batch import BNLayer
from mednorm.keras.statistics import Batch, Tensor


@keras.saving.register_keras_serializable(package="mednorm")
class RangeBNLayer(BNLayer):
    r"""Normalize by the range of the batch instead of its variance, which needs neither squares nor their sum.

    .. math:: y = \gamma\,\frac{x-\mu}{\sqrt{\hat\sigma^2+\epsilon}} + \beta, \qquad
              \hat\sigma = \frac{\max x - \min x}{C(n)}

    with C(n) the range that n Gaussian values have on average, over their standard deviation
    (`mednorm.reference.range_over_std`): on Gaussian input the output has standard deviation 1 on average, to about
    1 %, at two values a channel as at a million. In training the moving variance follows :math:`\hat\sigma^2`;
    inference and weights are those of `BNLayer`. A gradient of the range reaches the extreme values alone, shared
    equally among equal ones.

    Args:
        axis: the axis of the channels; -1 for channels last, 1 for channels first.
        momentum: weight of the old value in the moving statistics, in [0, 1].
        epsilon: added to the estimated variance, above 0.
        center: learn :math:`\beta`.
        scale: learn :math:`\gamma`.
        training: None follows the call; True or False fixes the behaviour.
        **kwargs: as for `BNLayer`, except ``synchronized`` and ``renorm``.

    Shape:
        Any, at least two axes; the output has the input's.

    Raises:
        ConfigError, ShapeError: as for `BNLayer`; ConfigError for ``synchronized`` or ``renorm``.

    Example:
        >>> import numpy as np
        >>> gaussian = np.random.default_rng(0).normal(5, 2, (100, 100, 3)).astype("float32")
        >>> out = RangeBNLayer()(gaussian, training=True)
        >>> f"{keras.ops.std(out):.1f}"
        '1.0'

    Note:
        One outlier sets the scale: a metal implant or a burnt-in letter in one image dims its channel in the whole
        batch. Clip intensities first.

    Reference:
        Banner et al. (2018), "Scalable methods for 8-bit training of neural networks", Section 3, with C(n) exact.

    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        training: bool | None = None,
        **kwargs: Any,
    ) -> None:
        refuse(
            type(self).__name__,
            kwargs,
            synchronized="the range of other replicas is not known",
            renorm="see BatchRenormLayer",
        )
        super().__init__(axis, momentum, epsilon, center, scale, training, **kwargs)

    def _variance_of(self, batch: Batch) -> Tensor:
        return ops.square(batch.range() / batch.range_over_std())
