"""The small-batch family with PyTorch's conventions in float64 NumPy, from the papers; shares no code with mednorm.

Each is `BatchNormOracle` but for what its paper changes. Arrays have shape (N, C, *); ``mask`` is True on values that
count, with or without the channel axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracle import batch_norm
from tests.oracle.batch_norm import Array, BatchNormOracle, Pass, along_channels
from tests.oracle.keras_norm import RangeOracle

Mask = NDArray[np.bool_] | None


class FamilyOracle(BatchNormOracle):
    """Batch normalization in two stages, of which the family changes either."""

    def train(self, x: Array, mask: Mask = None) -> Array:
        self._last = self.normalize(x, mask)
        self.move(self._last)
        return self._last.y

    def normalize(self, x: Array, mask: Mask) -> Pass:
        """Algorithm 1 of batch normalization."""
        return self.plain(x, mask, self.weight, self.bias)

    def plain(self, x: Array, mask: Mask, weight: Array | None, bias: Array | None) -> Pass:
        """Algorithm 1 with these parameters."""
        options = {"eps": self.eps, "activation": self.activation, "negative_slope": self.negative_slope}
        return batch_norm.forward(x, weight, bias, mask=mask, **options)

    def move(self, done: Pass) -> None:
        """One step of the running statistics."""
        self.num_batches_tracked += 1
        new = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = done.variance * done.count / (done.count - 1)
        self.running_mean = (1 - new) * self.running_mean + new * done.mean
        self.running_var = (1 - new) * self.running_var + new * unbiased

    def scaled(self, normalized: Array) -> tuple[Array, Array, float | None]:
        """γ·x̂ + β, the same rectified, and the slope below 0."""
        gamma = 1.0 if self.weight is None else along_channels(self.weight, normalized.ndim)
        beta = 0.0 if self.bias is None else along_channels(self.bias, normalized.ndim)
        before = gamma * normalized + beta
        return before, *batch_norm.activate(before, self.activation, self.negative_slope)

    def last(self) -> Pass:
        assert self._last is not None
        return self._last


def before_activation(done: Pass, grad_y: Array) -> Array:
    """The gradient of γ·x̂ + β."""
    return grad_y if done.slope is None else grad_y * np.where(done.before > 0, 1.0, done.slope)


class BatchRenormOracle(FamilyOracle):
    """Ioffe (2017), Algorithm 1: r and d bring a batch to the running statistics and are constants to the gradient.

    The paper trains 5k steps without them, and relaxes d until step 25k and r until step 40k; `schedule` stretches it.
    """

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: float = 1000,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, **options)
        self.r_max, self.d_max = r_max, d_max
        self.steps = schedule * total_steps if isinstance(schedule, float) and total_steps is not None else schedule

    def clips(self) -> tuple[float, float]:
        """How far r may be from 1, as a factor, and d from 0 at this step."""
        t = self.num_batches_tracked
        step = 40_000 * t / self.steps if self.steps else 40_000 * (t > 0)
        of_r, of_d = (
            np.interp(step, [5_000, 40_000], [1, self.r_max]),
            np.interp(step, [5_000, 25_000], [0, self.d_max]),
        )
        return float(of_r), float(of_d)

    def normalize(self, x: Array, mask: Mask) -> Pass:
        done = super().normalize(x, mask)
        r_clip, d_clip = self.clips()
        running_std = np.sqrt(self.running_var + self.eps)
        self.r = np.clip(np.sqrt(done.variance + self.eps) / running_std, 1 / r_clip, r_clip)
        self.d = np.clip((done.mean - self.running_mean) / running_std, -d_clip, d_clip)
        corrected = done.normalized * along_channels(self.r, x.ndim) + along_channels(self.d, x.ndim)
        done.weight = done.weight * self.r
        done.before, done.y, done.slope = self.scaled(corrected)
        return done

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        d_x, d_scale, d_bias = super().backward(grad_y)
        return d_x, self.r * d_scale + self.d * d_bias, d_bias


class RangeBatchNormOracle(FamilyOracle):
    """Banner et al. (2018), Section 3; forward and backward are those of the oracle of the Keras layer."""

    def normalize(self, x: Array, mask: Mask) -> Pass:
        self.by_range = RangeOracle(x.shape[1], epsilon=self.eps)
        if self.weight is not None and self.bias is not None:
            self.by_range.gamma, self.by_range.beta = self.weight, self.bias
        self.by_range.train(x, mask)
        done = self.by_range.last
        assert done is not None
        done.before, done.y, done.slope = self.scaled(done.normalized)
        return done

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        return self.by_range.backward(before_activation(self.last(), grad_y))


class FrozenBatchNormOracle(FamilyOracle):
    """Inference in training too: constants normalize, only the parameters learn."""

    def normalize(self, x: Array, mask: Mask) -> Pass:
        done = super().normalize(x, mask)
        std = np.sqrt(self.running_var + self.eps)
        done.normalized = (done.x - along_channels(self.running_mean, x.ndim)) / along_channels(std, x.ndim)
        done.before, done.y, done.slope = self.scaled(done.normalized)
        return done

    def move(self, done: Pass) -> None:
        pass

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        done = self.last()
        rank, axes = grad_y.ndim, (0, *range(2, grad_y.ndim))
        grad = before_activation(done, grad_y)
        scale = done.weight / np.sqrt(self.running_var + self.eps)
        return along_channels(scale, rank) * grad, (grad * done.normalized).sum(axes), grad.sum(axes)
