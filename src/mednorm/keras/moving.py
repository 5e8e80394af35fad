"""Normalization by moving statistics in training too, refreshed every k steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from mednorm.keras.arguments import check_whole, refuse
from mednorm.keras.counting import CountingBNLayer
from mednorm.keras.statistics import Batch, Tensor, all_but, portions, saved


@keras.saving.register_keras_serializable(package="mednorm")
class MovingBNLayer(CountingBNLayer):
    r"""Normalize by the moving statistics, in training as in inference, and refresh these every k steps.

    .. math:: \hat x = \frac{x-\mu}{\sqrt{\sigma^2+\epsilon}}, \qquad y = \gamma\,\hat x + \beta

    with :math:`\mu, \sigma^2` the moving statistics. At every k-th training step the batch's own are taken and move
    them; between, no statistics are taken at all. That is what is sometimes called dynamic batch mean and variance.

    Normalized by constants, the loss has no term that keeps the weights before the layer from growing, and training
    is unstable (Ioffe & Szegedy 2015, Section 2). So the gradient is corrected: it is that of batch renormalization,

    .. math:: \frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}
              \left(g - \overline{g} - \hat x_B\;\overline{g \hat x_B}\right)

    with :math:`g = \partial L/\partial y`, bars for means over this batch, and :math:`\hat x_B` the input normalized
    by this batch: no step changes the mean or the scale of what is normalized. Second derivatives are of this
    formula and mean nothing more. Inference is that of `BNLayer`.

    Args:
        axis: the axis of the channels; -1 for channels last, 1 for channels first.
        momentum: weight of the old value at each refresh, in [0, 1]. The statistics hold nothing of their initial
            values (`CountingBNLayer`): after the first refresh they are the batch's.
        epsilon: added to the variance, above 0.
        center: learn :math:`\beta`.
        scale: learn :math:`\gamma`.
        training: None follows the call; True or False fixes the behaviour.
        refresh_every: k, at least 1. A larger one follows the weights later: with a learning rate that changes them
            by much within k steps, training diverges.
        **kwargs: as for `BNLayer`, except ``synchronized`` and ``renorm``.

    Shape:
        Any, at least two axes; the output has the input's.

    Raises:
        ConfigError, ShapeError: as for `BNLayer`; ConfigError for a `refresh_every` that is no whole number above 0.

    Example:
        >>> import numpy as np
        >>> layer = MovingBNLayer(refresh_every=2)
        >>> batches = np.random.default_rng(0).normal(5, 2, (4, 8, 3)).astype("float32")
        >>> for batch in batches:
        ...     out = layer(batch, training=True)
        >>> int(layer.num_steps), int(layer.num_updates)
        (4, 2)

    Note:
        The noise of a small batch stays out of the forward pass, which is what helps at one to four volumes a batch.

    Reference:
        Yan et al. (2020), "Towards stabilizing batch statistics in backward propagation of batch normalization"
        (MABN): moving statistics forward, and the two means in the backward pass. The paper averages these two over
        steps as well; a Keras layer has no state in the backward pass on every backend, so here they are the batch's,
        as in Ioffe (2017), "Batch Renormalization", Algorithm 1, with r and d unclipped.

    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        training: bool | None = None,
        *,
        refresh_every: int = 4,
        **kwargs: Any,
    ) -> None:
        who = type(self).__name__
        check_whole(who, "refresh_every", refresh_every, 1)
        refuse(who, kwargs, synchronized="its gradient takes means over one replica", renorm="see BatchRenormLayer")
        super().__init__(axis, momentum, epsilon, center, scale, training, **kwargs)
        self.refresh_every = int(refresh_every)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights: those of `BNLayer`, ``num_updates``, and ``num_steps``."""
        super().build(input_shape)
        self.num_steps = self._counter("num_steps")

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` rebuilds the layer from."""
        return {**super().get_config(), "refresh_every": self.refresh_every}

    def _train(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self._refresh(ops.stop_gradient(x), mask)
        mean = saved(self._wide(self.moving_mean, x))
        inverse = saved(ops.rsqrt(self._wide(self.moving_variance, x) + self.epsilon))
        gamma = self._wide(self.gamma, x) if self.scale else ops.ones_like(mean)
        beta = self._wide(self.beta, x) if self.center else ops.zeros_like(mean)
        return _corrected(all_but(self.axis, len(x.shape)), self.epsilon, mask is not None)(
            x, gamma, beta, mean, inverse, portions(self._who, x, self.axis, mask)
        )

    def _refresh(self, x: Tensor, mask: Tensor | None) -> None:
        """Move the moving statistics if it is time, or if they still are the initial ones."""
        due = ops.logical_or(self.num_steps % self.refresh_every == 0, self.num_updates == 0)

        def moved() -> tuple[Tensor, Tensor, Tensor]:
            batch = Batch.of(self._who, x, self.axis, mask, self.synchronized)
            mean, variance, usable = self._moved(batch, batch.variance())
            return mean, variance, ops.cast(ops.any(usable), "int32")

        def kept() -> tuple[Tensor, Tensor, Tensor]:
            mean, variance = (ops.cast(moving, x.dtype) for moving in (self.moving_mean, self.moving_variance))
            return mean, variance, ops.zeros((), dtype="int32")

        mean, variance, updates = ops.cond(due, moved, kept)
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        self.num_updates.assign(self.num_updates + updates)
        self.num_steps.assign(self.num_steps + 1)


def _corrected(axes: tuple[int, ...], epsilon: float, masked: bool) -> Callable[..., Tensor]:
    """Scaling and shifting by constants, with the gradient of batch renormalization over `axes`.

    The function takes x, and with length 1 on these axes γ, β, mean and 1/√(variance + ε), and last what each value of
    x counts for in a mean.
    """

    def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, inverse: Tensor, portion: Tensor) -> Any:
        def total(values: Tensor) -> Tensor:
            return ops.sum(values, axes, keepdims=True)

        def average(values: Tensor) -> Tensor:
            return total(values * portion) if masked else total(values) * portion

        def gradient(*arguments: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
            g = arguments[0] if upstream is None else upstream  # PyTorch hands it over by name
            centred = x - mean
            of_beta, of_gamma = total(g), total(g * centred) * inverse
            # Mean and variance of the batch by now, where the moving ones would be 0 and 1. Shifted by the moving mean
            # and scaled by the moving deviation, E[x²] − E[x]² loses nothing.
            offset = average(centred) * inverse
            spread = average(ops.square(centred)) * ops.square(inverse) - ops.square(offset)
            slope = (of_gamma - offset * of_beta) / (ops.maximum(spread, 0.0) + epsilon * ops.square(inverse))
            scale = gamma * inverse
            through = scale * portion  # what has a value per channel comes first, so that few passes go over x
            of_x = scale * g - (through * slope * inverse) * centred - through * (of_beta - offset * slope)
            return of_x, of_gamma, of_beta, *(ops.zeros_like(constant) for constant in (mean, inverse, portion))

        return (x - mean) * (inverse * gamma) + beta, gradient

    corrected: Callable[..., Tensor] = ops.custom_gradient(normalize)
    return corrected
