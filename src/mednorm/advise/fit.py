"""Peak memory against batch size: what tensors take grows on a straight line, and what a heap makes of them with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednorm.advise.amount import readable

# What tensors' bytes may lie beside the line, as a share, before the smallest sizes are left out.
TOLERANCE = 0.02
# How far peaks of resident memory scatter: bytes that no tensor holds, and a share of what tensors make of it; and the
# bytes by which what was held before may be off. By trainings in processes of their own: benchmarks/advise_memory.py.
_BYTES, _SHARE, _BEFORE = 64e6, 0.1, 64e6


@dataclass(frozen=True)
class Measured:
    """What a training step took at one batch size.

    Attributes:
        batch_size: images in a step.
        peak: the most bytes that were held at once, by the whole process, or of a GPU by PyTorch.
        tensors: of the peak, the bytes of tensors that the step made, of which activations and gradients are the most.
        seconds_per_image: median over steps after the first.

    """

    batch_size: int
    peak: int
    tensors: int
    seconds_per_image: float


@dataclass(frozen=True)
class MemoryFit:
    r"""Peak memory of a training step of n images, :math:`\max(f,\; a + b\,n)`.

    The line alone does not hold for few images, where the optimizer's step and not the activations is the peak.

    Attributes:
        fixed: a in bytes: the process with its libraries and data, weights, gradients, optimizer state.
        per_image: b in bytes.
        floor: f in bytes, the peak of a step of next to no images.
        overhead: bytes that are held for each byte of tensors; a heap has free space between its blocks.
        error: of this fit without its largest size, at that size: predicted over measured, less 1. None where too few
            sizes could be measured to leave one out.

    """

    fixed: float
    per_image: float
    floor: float
    overhead: float = 1.0
    error: float | None = None

    def at(self, batch_size: int) -> int:
        """Predict the peak in bytes.

        Example:
            >>> MemoryFit(1e9, 5e7, 1.2e9).at(2), MemoryFit(1e9, 5e7, 1.2e9).at(20)
            (1200000000, 2000000000)

        """
        return round(max(self.floor, self.fixed + self.per_image * batch_size))

    def largest(self, limit: float, margin: float = 0.0) -> int:
        """Return the largest batch whose predicted peak, with a margin as a share, stays within a limit; 0 for none.

        Where a batch costs nothing that shows, there is no such batch: 2²⁰ stands for that.

        Example:
            >>> MemoryFit(1e9, 5e7, 1.2e9).largest(2e9), MemoryFit(1e9, 5e7, 1.2e9).largest(1.1e9)
            (20, 0)

        """
        room = limit / (1 + margin)
        if room < self.floor:
            return 0
        if self.per_image <= 0:
            return _ENDLESS
        return max(0, min(_ENDLESS, int((room - self.fixed) / self.per_image + 1e-9)))

    def __str__(self) -> str:
        """One line."""
        checked = "" if self.error is None else f"; checked at a size left out: {100 * self.error:+.1f} %"
        return f"{readable(self.fixed)} + {readable(self.per_image)} an image{checked}"


_ENDLESS = 2**20


def fit(measured: Sequence[Measured], before: float) -> MemoryFit:
    r"""Fit what was measured at several sizes, and check it at the largest, left out.

    The bytes of tensors are the same in every run, and grow on a straight line. The peak is taken to be
    :math:`c + F\,T(n)`, with T the tensors and F the overhead of the heap, by least squares that weigh how far peaks
    scatter; c is known from what was held before, roughly. So a prediction far beyond the sizes that were measured
    does not rest on the difference of two peaks.

    Args:
        measured: at sizes that grow; one size alone gives no line, see `cautious`.
        before: bytes that were held before the steps.

    Example:
        >>> steps = [Measured(n, (100 + 15 * max(4, n)) * 10**6, max(4, n) * 10**7, 1.0) for n in (1, 2, 4, 8, 16)]
        >>> found = fit(steps, 1e8)
        >>> found.fixed / 1e6, found.per_image / 1e6, found.floor / 1e6, found.overhead
        (100.0, 15.0, 160.0, 1.5)

    """
    sizes, peaks, tensors = np.array([(each.batch_size, each.peak, each.tensors) for each in measured], dtype=float).T
    start, slope = _line(sizes, tensors)
    constant, overhead = _heap(peaks, tensors, before)
    error = None
    if len(measured) > 2:
        last = measured[-1]
        error = round(fit(measured[:-1], before).at(last.batch_size) / last.peak - 1, 12)
    return MemoryFit(
        round(constant + overhead * start, 3),
        round(overhead * slope, 3),
        round(constant + overhead * float(tensors.min()), 3),
        round(overhead, 6),
        error,
    )


def cautious(only: Measured, before: int) -> MemoryFit:
    """Make of one size what is too much rather than too little: all of its rise over what was held before grows."""
    per_image = max(0, only.peak - before) / only.batch_size
    return MemoryFit(only.peak - per_image * only.batch_size, per_image, only.peak)


def _line(sizes: NDArray[np.float64], tensors: NDArray[np.float64]) -> tuple[float, float]:
    """Return a line by least squares of the shares, from the smallest size on from which all lie on it."""
    start, slope = 0.0, 0.0
    for first in range(len(sizes) - 1):
        n, t = sizes[first:], tensors[first:]
        (start, slope), *_ = np.linalg.lstsq(np.stack([1 / t, n / t], 1), np.ones_like(t), rcond=None)
        if np.abs((start + slope * n) / t - 1).max() <= TOLERANCE:
            break
    return float(start), max(0.0, float(slope))


def _heap(peaks: NDArray[np.float64], tensors: NDArray[np.float64], before: float) -> tuple[float, float]:
    """Return what is held in any case, and for each byte of tensors: at least that byte."""
    tensors, peaks = np.append(tensors, 0.0), np.append(peaks, before)
    constant, overhead = before, 1.0
    for _ in range(3):  # the share by which peaks scatter is of what the overhead makes of tensors
        weights = 1 / np.square(np.append(np.hypot(_BYTES, _SHARE * overhead * tensors[:-1]), _BEFORE))
        middle, height = np.average(tensors, weights=weights), np.average(peaks, weights=weights)
        aside = tensors - middle
        overhead = max(1.0, float((weights * aside * (peaks - height)).sum() / (weights * aside**2).sum()))
        constant = float(height - overhead * middle)
    return constant, overhead
