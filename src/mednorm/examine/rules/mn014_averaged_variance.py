"""MN014: running variances that are averages over small batches, and lack what lies between images."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.noise import images_together, median
from mednorm.examine.rules.remedies import RECALIBRATE, thawed
from mednorm.examine.rules.residuals import Residuals, residuals

# Median over channels of running over population variance: outputs are too large by 12 % and by 20 %.
WARNING, ERROR = 0.8, 0.7
# Where it is the cause: the share of the squared residuals that averaging explains, and how near the means are, in σ.
EXPLAINED, NEAR = 0.6, 0.25
# The layers that tell over how many images was averaged. Farther on the error has grown: a layer whose variance is too
# small makes the inputs of the next too large.
FIRST = 3
# A layer tells it whose variance lies between images to this share, and whose residuals averaging explains so well.
BETWEEN, TELLING = 0.05, 0.8
# Averaging takes away no more than the share between images, by so much by chance; anything else is another cause.
HIGHEST, CHANCE = 1.4, 0.1
# Averaged batches that hold no more than so many images, and this part of a training batch, are a cause of their own.
MOST, SMALLER = 3, 2 / 3


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers whose running variance is far below that of all images, because variances were averaged."""
    found = [(layer, each) for layer in probed.layers if (each := _judged(layer)) is not None]
    factor = _factor([each for _, each in found][:FIRST])
    if factor is None:
        return
    for layer, each in found:
        ratio, fit = 1 + median(each.variance), each.averaged
        explains = fit.explained >= EXPLAINED and fit.explained > each.initial.explained
        if ratio < WARNING and explains and median(each.mean.abs()) <= NEAR:
            yield _finding(layer, each, ratio, 1 / factor, images_together(layer, probed))


def _factor(first: list[Residuals]) -> float | None:
    """Return one over the images of each averaged batch, as the first layers show it; None where they show no such."""
    for each in first:
        lacking = -median(each.variance)
        if median(each.mean.abs()) > NEAR or not -CHANCE <= lacking <= HIGHEST * median(each.between) + CHANCE:
            return None
    telling = [each.averaged for each in first if median(each.between) >= BETWEEN]
    fits = [fit for fit in telling if fit.explained >= TELLING and 0 < fit.factor <= HIGHEST]
    return max(fits, key=lambda fit: fit.explained).factor if fits else None


def _judged(layer: Layer) -> Residuals | None:
    return None if layer.kind == "RangeBatchNorm" else residuals(layer)  # its variances are of another kind


def _finding(layer: Layer, found: Residuals, ratio: float, size: float, images: int) -> Finding:
    # Where training batches are as small, MN003 is the cause, and this what it left behind.
    size = max(1.0, size)
    error = ratio < ERROR and size <= min(MOST, SMALLER * images)
    return Finding(
        "MN014",
        "error" if error else "warning",
        layer.name,
        f"The running variance is {100 * ratio:.0f} % of that of all images, with the right mean: it is an average of "
        f"variances within batches of about {size:.1f} images, and lacks what lies between them.",
        (
            Evidence("running over population variance", ratio, ERROR if error else WARNING),
            Evidence("share of the variance between images", 100 * median(found.between), unit="%"),
            Evidence("images in each averaged batch", size, unit="images"),
            Evidence("distance of the means", median(found.mean.abs()), unit="σ"),
        ),
        thawed(layer, RECALIBRATE),
    )


RULE = Rule(
    code="MN014", name="averaged-variance", title="Variances were averaged over batches, not pooled", check=check
)
