"""Batch renormalization, with the schedule of its paper."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mednorm.keras.arguments import check_number, check_whole, refuse
from mednorm.keras.counting import CountingBNLayer
from mednorm.keras.statistics import Batch, Tensor, saved

# When the paper lets go, as shares of its 40,000 steps: batch normalization to 5,000, d at 25,000, r at 40,000.
_FREE_FROM, _D_AT, _R_AT = 1 / 8, 5 / 8, 1.0


@keras.saving.register_keras_serializable(package="mednorm")
class BatchRenormLayer(CountingBNLayer):
    r"""Normalize by the batch, corrected towards the moving statistics, so that training sees what inference will.

    .. math:: y = \gamma\left(\frac{x-\mu_B}{\sigma_B}\,r + d\right) + \beta, \qquad
              r = \operatorname{clip}_{[1/r_{max},\,r_{max}]}\frac{\sigma_B}{\sigma}, \qquad
              d = \operatorname{clip}_{[-d_{max},\,d_{max}]}\frac{\mu_B-\mu}{\sigma}

    with :math:`\mu_B` and :math:`\sigma_B=\sqrt{\sigma^2_B+\epsilon}` those of the batch, :math:`\mu` and
    :math:`\sigma` the moving ones before this batch, and no gradient through r and d. Unclipped, the output is
    :math:`\gamma(x-\mu)/\sigma+\beta`: training equals inference, and only the gradient still knows the batch.

    The clips widen over `schedule_steps` as in the paper: batch normalization (r = 1, d = 0) for the first eighth, then
    linearly to `dmax` at five eighths and to `rmax` at the end. Inference is that of `BNLayer`.

    Args:
        axis: the axis of the channels; -1 for channels last, 1 for channels first.
        momentum: weight of the old value in the moving statistics, in [0, 1]. They hold nothing of their initial
            values (`CountingBNLayer`).
        epsilon: added to the variance, above 0.
        center: learn :math:`\beta`.
        scale: learn :math:`\gamma`.
        training: None follows the call; True or False fixes the behaviour.
        rmax: the widest clip of r, at least 1; 1 for none of the correction.
        dmax: the widest clip of d, at least 0.
        schedule_steps: after how many updates the clips are at their widest: set it to about the length of the run. 0
            for at once, from the second update on.
        **kwargs: as for `BNLayer`, except ``renorm``.

    Shape:
        Any, at least two axes; the output has the input's.

    Raises:
        ConfigError, ShapeError: as for `BNLayer`; ConfigError for a clip or number of steps out of its range.

    Example:
        >>> import numpy as np
        >>> layer = BatchRenormLayer(schedule_steps=0)
        >>> batches = np.random.default_rng(0).normal(5, 2, (200, 4, 3)).astype("float32")
        >>> for batch in batches:
        ...     out = layer(batch, training=True)
        >>> moved = keras.ops.mean(keras.ops.abs(out - layer(batch)))  # inference on the batch just trained on
        >>> bool(moved < 0.05)
        True

    Note:
        Made for batches of one to eight volumes. It does not help where the moving statistics themselves are wrong: a
        site that comes late, or fewer than some hundred steps.

    Reference:
        Ioffe (2017), "Batch Renormalization", Algorithm 1 and Section 4. The paper moves :math:`\sigma`; here the
        variance moves, so that the first four weights are those of `BNLayer` (and see `CountingBNLayer`).

    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        training: bool | None = None,
        *,
        rmax: float = 3.0,
        dmax: float = 5.0,
        schedule_steps: int = 40_000,
        **kwargs: Any,
    ) -> None:
        who = type(self).__name__
        check_number(who, "rmax", rmax, 1, float("inf"))
        check_number(who, "dmax", dmax, 0, float("inf"))
        check_whole(who, "schedule_steps", schedule_steps, 0)
        refuse(who, kwargs, renorm="this layer is one already")
        super().__init__(axis, momentum, epsilon, center, scale, training, **kwargs)
        self.rmax = float(rmax)
        self.dmax = float(dmax)
        self.schedule_steps = int(schedule_steps)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` rebuilds the layer from."""
        own = {"rmax": self.rmax, "dmax": self.dmax, "schedule_steps": self.schedule_steps}
        return {**super().get_config(), **own}

    def clips(self, dtype: Any = "float32") -> tuple[Tensor, Tensor]:
        """Return the clips of r and d at the next update."""
        updates = ops.cast(self.num_updates, dtype)
        share = updates / self.schedule_steps if self.schedule_steps else ops.cast(updates > 0, dtype)
        r, d = (ops.clip((share - _FREE_FROM) / (at - _FREE_FROM), 0.0, 1.0) for at in (_R_AT, _D_AT))
        return 1 + (self.rmax - 1) * r, self.dmax * d

    def _train(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch = Batch.of(self._who, x, self.axis, mask, self.synchronized)
        variance = batch.variance()
        inverse = ops.rsqrt(variance + self.epsilon)
        old_inverse = ops.rsqrt(self._wide(self.moving_variance, x) + self.epsilon)
        rmax, dmax = self.clips(x.dtype)
        r = ops.clip(old_inverse / inverse, 1 / rmax, rmax)
        d = ops.clip((batch.mean - self._wide(self.moving_mean, x)) * old_inverse, -dmax, dmax)
        r, d = (saved(ops.stop_gradient(correction)) for correction in (r, d))
        self._move(batch, variance)
        return self._scaled(batch.centred, inverse * r, d - batch.drift * inverse * r)
