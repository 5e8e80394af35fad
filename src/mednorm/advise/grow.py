"""Measure growing batches, and never one that is predicted to be too large."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from mednorm.advise.fit import Measured, MemoryFit, cautious, fit
from mednorm.advise.step import FEWEST

MARGIN = 0.05  # of a predicted peak, for what the prediction is off by
_SIZES, _LARGEST = 4, 1024


class Measures(Protocol):
    """What tells the cost of a batch size: `Trainer.measure`."""

    def __call__(self, images: int, /) -> Measured:
        """Run some steps."""


def grow(
    measure: Measures,
    limit: float,
    before: int,
    seconds: float,
    tell: Callable[[int], object] = lambda images: None,
) -> tuple[tuple[Measured, ...], MemoryFit | None]:
    """Measure batches of 1, 2, 4, … images, as far as the limit and the time allow.

    A size is run if what was measured so far predicts that its peak stays within the limit, with a margin; the second,
    if it would with twice the rise of the first; after four sizes, if twice as many images would fit as well, as a step
    near the limit tells little for its risk. A network that refuses a single image, as batch normalization of one
    value a channel does, is begun with two.

    Args:
        measure: runs some steps of a size.
        limit: in bytes, of the peak.
        before: bytes that were held before the first.
        seconds: stop before a size that would make the measuring last longer; four sizes are measured in any case.
        tell: called with each size before it is run.

    Returns:
        What was measured, and the fit; None where the first size was out of memory.

    """
    started, found, size = time.perf_counter(), list[Measured](), 1
    while size <= _LARGEST and (not found or (1 + MARGIN) * _predicted(found, before).at(size) <= limit):
        if len(found) >= _SIZES:
            lasts = FEWEST * size * found[-1].seconds_per_image
            if time.perf_counter() - started + lasts > seconds or _predicted(found, before).at(2 * size) > limit:
                break
        tell(size)
        try:
            found.append(measure(size))
        except torch.OutOfMemoryError:
            break
        except ValueError:
            if size > 1 or found:
                raise
        size *= 2
    return tuple(found), _predicted(found, before) if found else None


def _predicted(found: list[Measured], before: int) -> MemoryFit:
    return fit(found, before) if len(found) > 1 else cautious(found[0], before)
