"""The Keras layers in float64 NumPy, from their papers; shares no code with mednorm.

Arrays have shape (N, C, *), as in `batch_norm`, whose forward and backward pass serve where a paper builds on them.
Moving values follow Keras: moving ← m·moving + (1 − m)·batch, with the biased variance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats

from tests.oracle import batch_norm
from tests.oracle.batch_norm import Array, Pass, along_channels

Mask = NDArray[np.bool_] | None


def range_over_std(count: int) -> float:
    """E[range] / E[biased std] of a Gaussian sample, by adaptive quadrature and SciPy's gamma functions."""

    def inside(x: float) -> float:
        above = stats.norm.sf(x)  # the integrand is even, so x > 0 suffices
        return float(-np.expm1(count * np.log1p(-above)) - above**count)

    mean_range = 2 * integrate.quad(inside, 0, 40, epsabs=1e-13, limit=400, points=[1, 2, 3, 4, 5, 6, 7, 8])[0]
    mean_std = np.sqrt(2 / count) * special.poch((count - 1) / 2, 0.5)
    return float(mean_range / mean_std)


class KerasOracle:
    """Batch normalization with Keras's moving statistics; the others differ from it in what they override."""

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-3) -> None:
        self.momentum = momentum
        self.eps = epsilon
        self.gamma = np.ones(channels)
        self.beta = np.zeros(channels)
        self.moving_mean = np.zeros(channels)
        self.moving_variance = np.ones(channels)
        self.updates = 0
        self.last: Pass | None = None

    def train(self, x: Array, mask: Mask = None) -> Array:
        """Normalize a batch in training mode and move the moving statistics."""
        self.last = batch_norm.forward(x, self.gamma, self.beta, eps=self.eps, mask=mask)
        self.move(self.last.mean, self.last.variance)
        return self.last.y

    def backward(self, grad: Array) -> tuple[Array, Array, Array]:
        """Gradients of x, gamma and beta for the last training pass."""
        assert self.last is not None
        return batch_norm.backward(self.last, grad)

    def evaluate(self, x: Array) -> Array:
        """Inference, with the moving statistics."""
        scale = self.gamma / np.sqrt(self.moving_variance + self.eps)
        centred = np.asarray(x, np.float64) - along_channels(self.moving_mean, x.ndim)
        return along_channels(scale, x.ndim) * centred + along_channels(self.beta, x.ndim)

    def move(self, mean: Array, variance: Array) -> None:
        """One step of the moving statistics."""
        self.updates += 1
        old = self.weight_of_old()
        self.moving_mean = old * self.moving_mean + (1 - old) * mean
        self.moving_variance = old * self.moving_variance + (1 - old) * variance

    def weight_of_old(self) -> float:
        """Keras's momentum."""
        return self.momentum


class RangeOracle(KerasOracle):
    """Banner et al. (2018), Section 3: the range over its expectation stands for the standard deviation."""

    def train(self, x: Array, mask: Mask = None) -> Array:
        done = batch_norm.forward(x, self.gamma, self.beta, eps=self.eps, mask=mask)
        axes = (0, *range(2, x.ndim))
        highest = np.where(done.kept, done.x, -np.inf).max(axes)
        lowest = np.where(done.kept, done.x, np.inf).min(axes)
        self.constant = np.array([range_over_std(int(count)) for count in done.count])
        self.extremes = [
            (done.kept & (done.x == along_channels(value, x.ndim)), sign)
            for value, sign in ((highest, 1), (lowest, -1))
        ]
        done.variance = ((highest - lowest) / self.constant) ** 2
        done.normalized = (done.x - along_channels(done.mean, x.ndim)) / self._std(done)
        done.y = along_channels(self.gamma, x.ndim) * done.normalized + along_channels(self.beta, x.ndim)
        self.move(done.mean, done.variance)
        self.last = done
        return done.y

    def backward(self, grad: Array) -> tuple[Array, Array, Array]:
        done = self.last
        assert done is not None
        rank, axes = done.x.ndim, (0, *range(2, done.x.ndim))
        deviation, std = done.x - along_channels(done.mean, rank), self._std(done)
        d_normalized = grad * along_channels(self.gamma, rank)
        d_variance = (d_normalized * deviation * -0.5 * std**-3).sum(axes)
        d_range = d_variance * 2 * np.sqrt(done.variance) / self.constant
        d_mean = (-d_normalized / std).sum(axes)
        d_x = d_normalized / std + np.where(done.kept, along_channels(d_mean / done.count, rank), 0.0)
        for where, sign in self.extremes:  # an extreme value that occurs twice has two halves of the gradient
            d_x = d_x + sign * where * along_channels(d_range / where.sum(axes), rank)
        return d_x, (grad * done.normalized).sum(axes), grad.sum(axes)

    def _std(self, done: Pass) -> Array:
        return np.sqrt(along_channels(done.variance, done.x.ndim) + self.eps)


class DebiasedOracle(KerasOracle):
    """Moving averages that start at 0 and are divided by 1 − mᵗ (Kingma & Ba 2015), here kept as two plain sums."""

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-3) -> None:
        super().__init__(channels, momentum=momentum, epsilon=epsilon)
        self.seen: list[tuple[Array, Array]] = []

    def move(self, mean: Array, variance: Array) -> None:
        self.seen.append((mean, variance))
        weights = self.momentum ** np.arange(len(self.seen))[::-1]
        self.moving_mean, self.moving_variance = (
            np.average(np.stack(values), axis=0, weights=weights) for values in zip(*self.seen, strict=True)
        )


class RenormOracle(DebiasedOracle):
    """Ioffe (2017), Algorithm 1, with the paper's schedule stretched to `schedule_steps`."""

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        rmax: float = 3.0,
        dmax: float = 5.0,
        schedule_steps: int = 40_000,
    ) -> None:
        super().__init__(channels, momentum=momentum, epsilon=epsilon)
        self.rmax, self.dmax, self.schedule_steps = rmax, dmax, schedule_steps

    def clips(self) -> tuple[float, float]:
        """Clips of r and d at this step: the paper's 5k, 25k and 40k steps are 1/8, 5/8 and 1 of the schedule."""
        step = 40_000 * len(self.seen) / self.schedule_steps if self.schedule_steps else 40_000 * bool(self.seen)
        return (
            float(np.interp(step, [5_000, 40_000], [1, self.rmax])),
            float(np.interp(step, [5_000, 25_000], [0, self.dmax])),
        )

    def train(self, x: Array, mask: Mask = None) -> Array:
        rmax, dmax = self.clips()
        done = batch_norm.forward(x, self.gamma, self.beta, eps=self.eps, mask=mask)
        std, moving_std = np.sqrt(done.variance + self.eps), np.sqrt(self.moving_variance + self.eps)
        self.r = np.clip(std / moving_std, 1 / rmax, rmax)
        self.d = np.clip((done.mean - self.moving_mean) / moving_std, -dmax, dmax)
        self.corrected = done.normalized * along_channels(self.r, x.ndim) + along_channels(self.d, x.ndim)
        self.move(done.mean, done.variance)
        self.last = done
        return along_channels(self.gamma, x.ndim) * self.corrected + along_channels(self.beta, x.ndim)

    def backward(self, grad: Array) -> tuple[Array, Array, Array]:
        done = self.last
        assert done is not None
        done.weight = self.gamma * self.r  # r and d are constants to the gradient
        d_x, _, d_beta = batch_norm.backward(done, grad)
        return d_x, (grad * self.corrected).sum((0, *range(2, grad.ndim))), d_beta


class MovingOracle(DebiasedOracle):
    """Moving statistics forward (Yan et al. 2020); backward as batch renormalization with unclipped r (Ioffe 2017)."""

    def __init__(self, channels: int, *, momentum: float = 0.9, epsilon: float = 1e-3, refresh_every: int = 4) -> None:
        super().__init__(channels, momentum=momentum, epsilon=epsilon)
        self.refresh_every, self.steps = refresh_every, 0

    def train(self, x: Array, mask: Mask = None) -> Array:
        self.last = batch_norm.forward(x, self.gamma, self.beta, eps=self.eps, mask=mask)
        if self.steps % self.refresh_every == 0:
            self.move(self.last.mean, self.last.variance)
        self.steps += 1
        return self.evaluate(x)

    def backward(self, grad: Array) -> tuple[Array, Array, Array]:
        done = self.last
        assert done is not None
        rank, axes = grad.ndim, (0, *range(2, grad.ndim))
        std = along_channels(np.sqrt(self.moving_variance + self.eps), rank)
        normalized = (done.x - along_channels(self.moving_mean, rank)) / std
        batch_std = along_channels(np.sqrt(done.variance + self.eps), rank)
        d_x = batch_norm.backward(done, grad)[0] * batch_std / std  # unclipped, r is this quotient, and a constant
        return d_x, (grad * normalized).sum(axes), grad.sum(axes)
