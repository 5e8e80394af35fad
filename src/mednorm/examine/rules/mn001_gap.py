"""MN001: a network that says something else with its running statistics than with those of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mednorm.examine.findings import Evidence, Finding, Rule, Severity
from mednorm.examine.records import Gap, Layer, Probed
from mednorm.examine.rules.mn006_not_finite import weights_unusable
from mednorm.examine.rules.noise import median, noise
from mednorm.examine.rules.remedies import RECALIBRATE

# Root mean square difference of the outputs over their standard deviation; and how many times what the noise of the
# batches' own statistics, for which the running ones are not to blame, is in the middle layer: it is about one time.
WARNING, ERROR = 0.5, 1.0
OVER_NOISE, FAR_OVER_NOISE = 3, 6
# How much better the metric is with batch statistics; and as many images' worth at least.
LOST, MUCH = 0.05, 0.1
IMAGES, MORE_IMAGES = 2, 2.5
# Share of the gap from which on a layer is named.
SHARE = 0.1


def check(probed: Probed) -> Iterator[Finding]:
    """Find the gap between the two evaluation modes, and the layers that it is from."""
    gap = probed.gap
    if gap is None or any(map(weights_unusable, probed.layers)):  # MN006 says that; no statistics mend it
        return
    judged = _Judged(probed, gap)
    if judged.severity is None:
        return
    yield Finding("MN001", judged.severity, "", judged.message, judged.evidence, RECALIBRATE)
    for layer in probed.layers:
        share = gap.by_layer.get(layer.name, 0.0)
        if share >= SHARE:
            yield Finding(
                "MN001",
                judged.severity,
                layer.name,
                f"{100 * share:.0f} % of the gap goes when this layer takes the statistics of the batch.",
                (Evidence("share of the gap", 100 * share, 100 * SHARE, "%"),),
                RECALIBRATE,
                share=share,
            )


class _Judged:
    """A gap, and how grave it is."""

    def __init__(self, probed: Probed, gap: Gap) -> None:
        noisy = median(torch.tensor([_noise(layer) for layer in probed.layers]))
        self.gap, self.noise = gap, noisy if math.isfinite(noisy) else 0.0
        self.lost = 0.0
        if gap.metric is not None and all(math.isfinite(value) for value in gap.metric):
            self.lost = gap.metric[1] - gap.metric[0]
        self.images_lost = self.lost * min(probed.images, gap.batches * probed.batch_size)

    @property
    def limits(self) -> tuple[float, float]:
        return max(WARNING, OVER_NOISE * self.noise), max(ERROR, FAR_OVER_NOISE * self.noise)

    @property
    def severity(self) -> Severity | None:
        warning, error = self.limits
        if self.gap.divergence >= error or (self.lost >= MUCH and self.images_lost >= MORE_IMAGES):
            return "error"
        some = self.lost >= LOST and self.images_lost >= IMAGES
        return "warning" if self.gap.divergence >= warning or some else None

    @property
    def message(self) -> str:
        text = (
            "On the same images the outputs with running statistics differ from those with the batch's by "
            f"{self.gap.divergence:.2f} of their standard deviation"
        )
        if self.gap.metric is None:
            return f"{text}."
        running, batch = self.gap.metric
        return f"{text}; the metric is {running:.3f} with running, {batch:.3f} with batch statistics."

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        error = self.severity == "error"
        divergence = Evidence("divergence of the outputs", self.gap.divergence, self.limits[error])
        lost = Evidence("metric lost", self.lost, MUCH if error else LOST)
        rest = (
            Evidence("noise of the batches' statistics", self.noise, unit="σ"),
            Evidence("batches compared", self.gap.batches, unit="batches"),
        )
        if self.gap.metric is None:
            return (divergence, *rest)
        return (divergence, lost, *rest) if divergence.value >= self.limits[error] else (lost, divergence, *rest)


def _noise(layer: Layer) -> float:
    """Return the noise of the statistics of the batches that were seen, which may be smaller than those of training."""
    if layer.seen is None or layer.batches is None or layer.seen.images < 2:
        return math.nan
    return noise(layer.seen, max(1, round(layer.seen.images / max(1, int(layer.batches.of_means.count.max())))))


RULE = Rule(
    code="MN001",
    name="train-eval-gap",
    title="The network says something else in evaluation than in training",
    check=check,
    symptom=True,
)
