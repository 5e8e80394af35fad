"""What the layers share whose training looks at the moving statistics: these are right from the first batch on."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from mednorm.keras.batch import BNLayer
from mednorm.keras.statistics import Batch, Tensor


class CountingBNLayer(BNLayer):
    r"""A `BNLayer` that counts its updates, so that its moving statistics hold nothing of their initial values.

    .. math:: r_t = r_{t-1} + \frac{1-m}{1-m^t}\,(b_t - r_{t-1})

    which is the moving average that starts at 0 and is divided by :math:`1 - m^t`, kept divided. The weight of the
    first batch is 1 whatever the statistics started at. The fifth weight, ``num_updates``, is t: to go on from the
    statistics of a trained `BNLayer`, give it a number well above 1 / (1 − m) with them,
    ``layer.set_weights([*trained.get_weights(), np.array(1000)])``, as 0 would replace them by those of the next batch.

    Reference:
        Kingma & Ba (2015), "Adam", Section 3, for the division.

    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights: those of `BNLayer`, and the counter."""
        super().build(input_shape)
        self.num_updates = self._counter("num_updates")

    def _counter(self, name: str) -> Any:
        return self.add_weight(name=name, shape=(), dtype="int32", initializer="zeros", trainable=False)

    def _move(self, batch: Batch, variance: Tensor) -> None:
        mean, variance, usable = self._moved(batch, variance)
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        self.num_updates.assign(self.num_updates + ops.cast(ops.any(usable), "int32"))

    def _weight_of_new(self, dtype: Any) -> Any:
        updates = ops.cast(self.num_updates, dtype) + 1
        if self.momentum in (0.0, 1.0):
            return 1.0 if self.momentum == 0 else 1 / updates  # the limit at 1: a plain average
        return (self.momentum - 1) / ops.expm1(updates * math.log(self.momentum))
