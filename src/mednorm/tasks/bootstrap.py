"""The cluster bootstrap: metrics of many resamples at once, and the interval they give.

A resample is kept as weights, how often each row was drawn, not as a copy of its rows: the weighted metrics of all
resamples are then a few products of matrices. With all weights one they are the plain metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FEWEST_CLUSTERS = 5
MOST_UNDEFINED = 0.05
BINS = 15
_AT_ONCE = 4_000_000  # weights held in memory at a time, 32 MB


def interval(replicates: Array) -> tuple[float, float] | None:
    """Return the percentile interval of 95 % of bootstrap replicates.

    The 2.5 and 97.5 percentiles of the replicates that are defined. None where more than 5 % of them are NaN: the
    percentiles of what is left would speak only of the resamples that were kind. A sample of fewer than
    `FEWEST_CLUSTERS` clusters has NaN replicates alone, hence no interval, nor has a difference that it is part of.

    Args:
        replicates: one number a resample, or the difference of two networks over the same resamples.

    Example:
        >>> interval(np.arange(1001.0))
        (25.0, 975.0)

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.

    """
    defined = replicates[~np.isnan(replicates)]
    if len(defined) == 0 or len(defined) < (1 - MOST_UNDEFINED) * len(replicates):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def resampled(clusters: Sequence[str], resamples: int, seed: int, width: int = 0) -> Iterator[Array]:
    """Draw clusters with replacement, as many as there are, and yield how often each was drawn.

    What is drawn depends on the names and the seed alone: two networks judged on the same images are resampled alike,
    so that their replicates may be subtracted, and other clusters are resampled independently.

    Args:
        clusters: names, each once, sorted.
        resamples: how many times to draw; the first of them are the same however many follow.
        seed: not negative.
        width: how many rows the counts will be spread over, where that is more; it decides the size of the blocks.

    Yields:
        Float64 counts ``(rows, len(clusters))``, a row a resample, in blocks that fit in memory.

    """
    digest = hashlib.sha256("\0".join(clusters).encode("utf-8", "surrogatepass")).digest()
    random = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    size = len(clusters)
    block = max(1, _AT_ONCE // max(1, size, width))
    for start in range(0, resamples, block):
        rows = range(start, min(start + block, resamples))
        yield np.stack([np.bincount(random.integers(size, size=size), minlength=size) for _ in rows]).astype(float)


def weighted_confusion(targets: Array, predictions: Array, classes: int, weights: Array) -> Array:
    """Sum the weights of each pair of true and predicted class.

    Args:
        targets: class numbers ``(N,)``.
        predictions: class numbers ``(N,)``.
        classes: how many classes there are.
        weights: ``(R, N)``.

    Returns:
        ``(R, K, K)``, truth by prediction.

    """
    pairs = np.eye(classes * classes)[targets * classes + predictions]
    confusion: Array = (weights @ pairs).reshape(len(weights), classes, classes)
    return confusion


def weighted_auc(scores: Array, positive: Array, weights: Array) -> Array:
    """Return the probability that a positive row scores above a negative one, ties counted half.

    Σᵢⱼ wᵢ wⱼ ([sᵢ > sⱼ] + ½ [sᵢ = sⱼ]) / Σᵢⱼ wᵢ wⱼ over positive rows i and negative rows j.

    Args:
        scores: ``(N,)``.
        positive: bool ``(N,)``.
        weights: ``(R, N)``.

    Returns:
        ``(R,)``; NaN where all weight is on one side.

    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # a group a distinct score
    ups = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    downs = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    won = (ups * (downs.cumsum(1) - downs / 2)).sum(1)
    return ratio(won, ups.sum(1) * downs.sum(1))


def weighted_calibration_error(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the expected calibration error: Σ_b |B_b|/n · |accuracy(B_b) − mean confidence(B_b)|.

    The bins are ((b − 1)/15, b/15]. torchmetrics bins [ ) and puts a confidence of exactly 1, which saturated
    networks give, in a sixteenth bin.

    Args:
        confidence: probability of the predicted class ``(N,)``.
        correct: bool ``(N,)``, whether that is the true class.
        weights: ``(R, N)``.

    Returns:
        ``(R,)``.

    Reference:
        Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    """
    bins = np.eye(BINS)[np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)]
    gaps = weights @ (bins * (correct - confidence)[:, np.newaxis])
    return ratio(np.abs(gaps).sum(1), weights.sum(1))


def weighted_mean(values: Array, weights: Array) -> Array:
    """Return the mean ``(R, C)`` of the rows of values ``(N, C)`` that are not NaN; NaN where none has weight."""
    return ratio(weights @ np.nan_to_num(values), weights @ ~np.isnan(values))


def ratio(parts: Array, wholes: Array) -> Array:
    """Divide; NaN, without a warning, where the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: Array = np.where(wholes == 0, np.nan, parts / wholes)
    return quotient
