"""Peak memory against batch size: a floor, and from some size on a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mednorm.advise.amount import readable

# What the points may lie beside the line, as a share of the peak, before the smallest of them are left out.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Measured:
    """What a training step took at one batch size.

    Attributes:
        batch_size: images in a step.
        peak: the most bytes that were held at once, by the whole process, or of a GPU by PyTorch.
        seconds_per_image: median over steps after the first.

    """

    batch_size: int
    peak: int
    seconds_per_image: float


@dataclass(frozen=True)
class MemoryFit:
    r"""Peak memory of a training step of n images, :math:`\max(f,\; a + b\,n)`.

    The line alone does not hold for few images, where the optimizer's step and not the activations is the peak.

    Attributes:
        fixed: a in bytes: the process with its libraries and data, weights, gradients, optimizer state.
        per_image: b in bytes.
        floor: f in bytes, the least peak that was measured.
        error: of this fit without its largest size, at that size: predicted over measured, less 1. None where too few
            sizes could be measured to leave one out.

    """

    fixed: float
    per_image: float
    floor: float
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


def fit(measured: Sequence[Measured]) -> MemoryFit:
    """Fit a line to what was measured at several sizes, and check it at the largest, left out.

    Args:
        measured: at sizes that grow; one size alone gives no line, see `cautious`.

    Example:
        >>> found = fit([Measured(n, round(max(130, 100 + 10 * n)) * 10**6, 1.0) for n in (1, 2, 4, 8, 16)])
        >>> found.fixed / 1e6, found.per_image / 1e6, found.floor / 1e6, found.error
        (100.0, 10.0, 130.0, 0.0)

    """
    fixed, per_image = _line(measured)
    floor = min(each.peak for each in measured)
    error = None
    if len(measured) > 2:
        before, last = MemoryFit(*_line(measured[:-1]), floor), measured[-1]
        error = round(before.at(last.batch_size) / last.peak - 1, 12)
    return MemoryFit(fixed, per_image, floor, error)


def cautious(only: Measured, before: int) -> MemoryFit:
    """Make of one size what is too much rather than too little: all of its rise over what was held before grows."""
    per_image = max(0, only.peak - before) / only.batch_size
    return MemoryFit(only.peak - per_image * only.batch_size, per_image, only.peak)


def _line(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return a and b by least squares of the shares, from the smallest size on from which all lie on a line."""
    for start in range(len(measured) - 1):
        sizes = np.array([each.batch_size for each in measured[start:]], dtype=float)
        peaks = np.array([each.peak for each in measured[start:]], dtype=float)
        (per_image, fixed), *_ = np.linalg.lstsq(
            np.stack([sizes, np.ones_like(sizes)], 1) / peaks[:, None], np.ones_like(peaks), rcond=None
        )
        if np.abs((fixed + per_image * sizes) / peaks - 1).max() <= TOLERANCE:
            break
    return round(float(fixed), 3), max(0.0, round(float(per_image), 3))
