"""Batch normalization as Ioffe & Szegedy (2015) write it, in float64 NumPy; shares no code with mednorm.

The forward pass is Algorithm 1, inference is Algorithm 2, and the backward pass takes the chain rule in the stages the
paper prints after Algorithm 1 (x̂, then the variance, then the mean, then x), not in the closed form that
implementations use. Arrays have shape (N, C, *).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def along_channels(vector: Array, rank: int) -> Array:
    """Shape (C,) so that it broadcasts over an array of that many axes."""
    return np.asarray(vector, dtype=np.float64).reshape(1, -1, *([1] * (rank - 2)))


def kept_values(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Bring a mask, with or without its channel axis, to the full shape; all True without one."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    full = np.asarray(mask)
    return np.broadcast_to(full[:, None] if full.ndim == len(shape) - 1 else full, shape)


@dataclass
class Pass:
    """What one forward pass leaves for the backward pass."""

    x: Array
    kept: NDArray[np.bool_]
    count: Array
    mean: Array
    variance: Array
    normalized: Array
    before: Array  # the activation's input
    y: Array
    weight: Array
    eps: float
    slope: float | None


def activate(before: Array, activation: str | None, negative_slope: float) -> tuple[Array, float | None]:
    """Apply ReLU or leaky ReLU; also return its slope below 0."""
    if activation is None:
        return before, None
    slope = {"relu": 0.0, "leaky_relu": negative_slope}[activation]
    return np.where(before > 0, before, slope * before), slope


def forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    mask: NDArray[np.bool_] | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Pass:
    """Algorithm 1. Only what the mask keeps enters mean and variance; every value is normalized with them."""
    x = np.asarray(x, dtype=np.float64)
    channels, rank = x.shape[1], x.ndim
    weight = np.ones(channels) if weight is None else np.asarray(weight, dtype=np.float64)
    bias = np.zeros(channels) if bias is None else np.asarray(bias, dtype=np.float64)
    kept = kept_values(mask, x.shape)
    axes = (0, *range(2, rank))
    count = kept.sum(axes).astype(np.float64)
    mean = np.where(kept, x, 0.0).sum(axes) / count
    deviation = x - along_channels(mean, rank)
    variance = (np.where(kept, deviation, 0.0) ** 2).sum(axes) / count
    normalized = deviation / np.sqrt(along_channels(variance, rank) + eps)
    before = along_channels(weight, rank) * normalized + along_channels(bias, rank)
    y, slope = activate(before, activation, negative_slope)
    return Pass(x, kept, count, mean, variance, normalized, before, y, weight, eps, slope)


def backward(done: Pass, grad_y: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias, stage by stage as in section 3 of the paper."""
    rank = done.x.ndim
    axes = (0, *range(2, rank))
    grad = np.asarray(grad_y, dtype=np.float64)
    if done.slope is not None:
        grad = grad * np.where(done.before > 0, 1.0, done.slope)
    deviation = done.x - along_channels(done.mean, rank)
    std = np.sqrt(along_channels(done.variance, rank) + done.eps)
    counted = np.where(done.kept, deviation, 0.0)

    d_normalized = grad * along_channels(done.weight, rank)
    d_variance = (d_normalized * deviation * -0.5 * std**-3).sum(axes)
    d_mean = (-d_normalized / std).sum(axes) + d_variance * (-2.0 * counted).sum(axes) / done.count
    through_variance = along_channels(d_variance / done.count, rank) * 2.0 * counted
    through_mean = np.where(done.kept, along_channels(d_mean / done.count, rank), 0.0)
    d_x = d_normalized / std + through_variance + through_mean
    return d_x, (grad * done.normalized).sum(axes), grad.sum(axes)


class BatchNormOracle:
    """The layer: Algorithm 1 in training, running statistics by PyTorch's convention, Algorithm 2 in inference.

    Running value ← (1 − m)·running + m·batch, with the unbiased batch variance; m = 1/k at the k-th batch where
    momentum is None, which makes it the plain average of the batches.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        self.eps = eps
        self.momentum = momentum
        self.activation = activation
        self.negative_slope = negative_slope
        self.weight = np.ones(num_features) if affine else None
        self.bias = np.zeros(num_features) if affine else None
        self.running_mean = np.zeros(num_features)
        self.running_var = np.ones(num_features)
        self.num_batches_tracked = 0
        self._last: Pass | None = None

    def train(self, x: Array, mask: NDArray[np.bool_] | None = None) -> Array:
        """Normalize with the batch's statistics and move the running ones."""
        done = forward(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            mask=mask,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )
        self.num_batches_tracked += 1
        new = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = done.variance * done.count / (done.count - 1)
        self.running_mean = (1 - new) * self.running_mean + new * done.mean
        self.running_var = (1 - new) * self.running_var + new * unbiased
        self._last = done
        return done.y

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        """Gradients of x, weight and bias for the last training pass."""
        assert self._last is not None
        return backward(self._last, grad_y)

    def evaluate(self, x: Array) -> Array:
        """Algorithm 2, line 11: an affine map with the running statistics."""
        x = np.asarray(x, dtype=np.float64)
        weight = np.ones_like(self.running_mean) if self.weight is None else self.weight
        bias = np.zeros_like(self.running_mean) if self.bias is None else self.bias
        scale = weight / np.sqrt(self.running_var + self.eps)
        before = along_channels(scale, x.ndim) * x + along_channels(bias - scale * self.running_mean, x.ndim)
        return activate(before, self.activation, self.negative_slope)[0]

    def buffers(self) -> dict[str, Array]:
        """The running state under PyTorch's names."""
        return {
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "num_batches_tracked": np.asarray(self.num_batches_tracked),
        }
