"""Batch normalization for Keras: the article's layer, corrected."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mednorm.keras.arguments import check_arguments, check_axis, mask_axis
from mednorm.keras.statistics import Batch, Tensor, widen


@keras.saving.register_keras_serializable(package="mednorm")
class BNLayer(keras.layers.BatchNormalization):
    r"""Normalize each channel over the batch and every other axis; a drop-in for `keras.layers.BatchNormalization`.

    .. math:: y = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta

    In training :math:`\mu` and the biased :math:`\sigma^2` are those of the batch, and the moving statistics follow:
    :math:`r \leftarrow m\,r + (1-m)\,b` with momentum :math:`m` the weight of the *old* value (Keras's convention;
    PyTorch's is the weight of the new). In inference :math:`\mu, \sigma^2` are the moving statistics, so an image's
    result does not depend on its neighbours. A layer with ``trainable=False`` is in inference, whatever else is asked.

    Beyond Keras's layer: the variance is taken around the mean, also on PyTorch (Keras computes E[x²] − E[x]² there);
    a mask works with channels first and together with ``synchronized``; and a batch whose mean or variance is not
    finite in any channel (an overflow in mixed precision, a NaN voxel), or of which the mask keeps nothing, moves no
    moving statistic.

    Args:
        axis: the axis of the channels; -1 for channels last, 1 for channels first.
        momentum: weight of the old value in the moving statistics, in [0, 1].
        epsilon: added to the variance, above 0.
        center: learn :math:`\beta`.
        scale: learn :math:`\gamma`.
        training: None follows the call (``fit`` trains, ``predict`` does not); True or False fixes the behaviour.
        **kwargs: every other argument of `keras.layers.BatchNormalization`: initializers, regularizers, constraints,
            ``synchronized`` (TensorFlow), ``renorm`` (Keras's own), ``name``, ``dtype``. The weights are, in this
            order, ``gamma, beta, moving_mean, moving_variance``: ``set_weights`` takes those of Keras's layer.

    Shape:
        Any, at least two axes; the output has the input's. The mask has the input's without `axis`; one without the
        last axis, which is what Keras's layer takes with channels first, is understood where the lengths tell the two
        apart. Half precision computes in float32 inside.

    Raises:
        ConfigError: an argument is out of its range. Like every error here it is a ValueError.
        ShapeError: `axis` is out of bounds, the number of channels is not known, or the mask does not fit.

    Example:
        >>> import numpy as np
        >>> layer = BNLayer()
        >>> images = np.random.default_rng(0).normal(5, 2, (8, 16, 16, 3)).astype("float32")
        >>> out = keras.ops.convert_to_numpy(layer(images, training=True))
        >>> f"{abs(out.mean()):.3f} {out.std():.3f}"
        '0.000 1.000'
        >>> [weight.name for weight in layer.weights]
        ['gamma', 'beta', 'moving_mean', 'moving_variance']

    Note:
        Below about 8 images a batch the batch statistics are noisy, and the default momentum still holds 60 % of the
        initial moving statistics after 50 steps: on small data, use 0.9.

    Reference:
        Ioffe & Szegedy (2015), "Batch Normalization", Algorithms 1 and 2.

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
        check_arguments(type(self).__name__, axis, momentum, epsilon, training)
        super().__init__(axis, momentum, epsilon, center, scale, **kwargs)
        # Not `training`: on PyTorch a Keras layer is a torch.nn.Module, whose own `training` lives under that name.
        self.fixed_training = training

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, one number a channel."""
        check_axis(self._who, self.axis, input_shape)
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is True on the values that count in the statistics."""
        training = training if self.fixed_training is None else self.fixed_training
        if mask is not None:
            mask_axis(self._who, self.axis, tuple(mask.shape), tuple(inputs.shape))
        if getattr(self, "renorm", False):
            return super().call(inputs, training=training, mask=mask)
        x = widen(inputs)
        y = self._train(x, mask) if training and self.trainable else self._infer(x)
        return ops.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` rebuilds the layer from, and Keras's own where `training` is not fixed."""
        fixed = {} if self.fixed_training is None else {"training": self.fixed_training}
        return {**super().get_config(), **fixed}

    def _train(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalize by the batch, and move the moving statistics."""
        batch = Batch.of(self._who, x, self.axis, mask, self.synchronized)
        variance = self._variance_of(batch)
        self._move(batch, variance)
        inverse = ops.rsqrt(variance + self.epsilon)
        return self._scaled(batch.centred, inverse, -batch.drift * inverse)

    def _variance_of(self, batch: Batch) -> Tensor:
        """What estimates the variance."""
        return batch.variance()

    def _infer(self, x: Tensor) -> Tensor:
        """Normalize by the moving statistics, as the backend does it fastest."""
        mean, variance = (ops.cast(moving, x.dtype) for moving in (self.moving_mean, self.moving_variance))
        gamma = ops.cast(self.gamma, x.dtype) if self.scale else None
        beta = ops.cast(self.beta, x.dtype) if self.center else None
        return ops.batch_normalization(x, mean, variance, self.axis, beta, gamma, self.epsilon)

    def _scaled(self, values: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
        """Return γ·(values·inverse + shift) + β, with what has a value per channel computed first."""
        if self.scale:
            gamma = self._wide(self.gamma, values)
            inverse = inverse * gamma
            shift = shift * gamma
        if self.center:
            shift = shift + self._wide(self.beta, values)
        return values * inverse + shift

    def _move(self, batch: Batch, variance: Tensor) -> None:
        """Move the moving statistics towards the batch's."""
        mean, variance, _ = self._moved(batch, variance)
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)

    def _moved(self, batch: Batch, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moving mean and variance after this batch, and which channels moved: if all are finite, those not masked."""
        weight = self._weight_of_new(batch.mean.dtype)
        moved, usable = [], True if batch.share is None else ops.reshape(batch.share > 0, (-1,))
        for moving, value in ((self.moving_mean, batch.mean), (self.moving_variance, variance)):
            old = ops.cast(moving, value.dtype)
            new = old * (1 - weight) + ops.stop_gradient(ops.reshape(value, (-1,))) * weight
            moved.append((old, new))
            # In the variable's own type: a variance that float32 holds may be infinite in float16.
            usable = ops.logical_and(usable, ops.all(ops.isfinite(ops.cast(new, moving.dtype))))
        mean, variance = (ops.where(usable, new, old) for old, new in moved)
        return mean, variance, usable

    def _weight_of_new(self, dtype: Any) -> Any:
        """Weight of this batch in the moving statistics."""
        return 1 - self.momentum

    def _wide(self, vector: Tensor, like: Tensor) -> Tensor:
        """A vector over channels, to broadcast over `like`, in its type."""
        shape = [1] * len(like.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(vector, like.dtype), shape)

    @property
    def _who(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"
