"""Moving averages in both directions (Yan et al. 2020, MABN), in float64 NumPy; shares no code with mednorm.

The backward pass is written as the projection that it is: per channel, g' less its least-squares fit by 1 and x̂ (by x̂
alone where the weights are centred), with every mean in the normal equations averaged over the last passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracle.batch_norm import Array, Pass, along_channels
from tests.oracle.family import FamilyOracle, Mask, before_activation


class MovingBatchNormOracle(FamilyOracle):
    """Running statistics forward, refreshed before they are used; the backward pass's means over a window of passes."""

    def __init__(
        self,
        num_features: int,
        *,
        refresh_every: int = 1,
        window: int = 16,
        centering: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(num_features, **options)
        self.refresh_every, self.window, self.centering = refresh_every, window, centering
        self.forward_passes = 0
        self.refreshes: list[tuple[Array, Array]] = []
        self.passes: list[Array] = []

    def normalize(self, x: Array, mask: Mask) -> Pass:
        done = super().normalize(x, mask)
        if self.forward_passes % self.refresh_every == 0:
            self.refresh(done)
        self.forward_passes += 1
        std = np.sqrt(self.running_var + self.eps)
        done.normalized = (done.x - along_channels(self.running_mean, x.ndim)) / along_channels(std, x.ndim)
        done.before, done.y, done.slope = self.scaled(done.normalized)
        return done

    def move(self, done: Pass) -> None:
        """Nothing moves after the pass."""

    def refresh(self, done: Pass) -> None:
        """Exponentially weighted means of all refreshes; what the buffers started at has no weight in them."""
        if self.centering == "weights":
            self.refreshes.append((np.zeros_like(done.mean), done.variance + done.mean**2))
        else:
            self.refreshes.append((done.mean, done.variance * done.count / (done.count - 1)))
        self.num_batches_tracked += 1
        age = np.arange(len(self.refreshes))[::-1]
        weights = np.ones(len(age)) if self.momentum is None else (1 - self.momentum) ** age
        means, variances = zip(*self.refreshes, strict=True)
        self.running_mean = np.average(np.stack(means), axis=0, weights=weights)
        self.running_var = np.average(np.stack(variances), axis=0, weights=weights)

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        done = self.last()
        rank, axes = grad_y.ndim, (0, *range(2, grad_y.ndim))
        grad = before_activation(done, grad_y)
        scaled = along_channels(done.weight, rank) * grad

        def mean(values: Array) -> Array:
            return np.where(done.kept, values, 0.0).sum(axes) / done.count

        normalized = done.normalized
        products = (scaled, scaled * normalized, normalized, normalized**2)
        self.passes.append(np.stack([mean(values) for values in products]))
        b, a, first, second = np.mean(self.passes[-self.window :], axis=0)
        second = second + self.eps / (self.running_var + self.eps)
        zero, one = np.zeros_like(first), np.ones_like(first)
        if self.centering == "weights":
            b, first = zero, zero
        system = np.stack([np.stack([one, first], -1), np.stack([first, second], -1)], -2)
        constant, slope = np.linalg.solve(system, np.stack([b, a], -1)[..., None])[..., 0].T
        fit = along_channels(constant, rank) + along_channels(slope, rank) * normalized
        std = along_channels(np.sqrt(self.running_var + self.eps), rank)
        d_x = (scaled - np.where(done.kept, fit, 0.0)) / std
        return d_x, (grad * normalized).sum(axes), grad.sum(axes)
