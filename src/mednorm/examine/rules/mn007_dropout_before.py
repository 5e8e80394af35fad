"""MN007: dropout before a layer, which widens its training inputs and not those of evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule, Severity
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.noise import median

# Median over channels of running over population variance: outputs too small by 5 % and by 16 %, the error as MN014's.
WARNING, ERROR = 1 / 0.9, 1 / 0.7
# Rate from which on it is said where no image was seen.
RATE = 0.2


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers after a dropout whose running variance is that of the dropped-out values."""
    for layer in probed.layers:
        if layer.around.dropout_before is None or layer.state.running_var is None or layer.state.updates == 0:
            continue
        ratio = _ratio(layer)
        if ratio is None:
            if layer.around.dropout_rate >= RATE:
                yield _unmeasured(layer)
        elif ratio >= WARNING:
            yield _measured(layer, ratio)


def _ratio(layer: Layer) -> float | None:
    """Return running over population variance, median channel; None where no image was seen."""
    seen, running = layer.seen, layer.state.running_var
    if seen is None or seen.images < 2 or running is None:
        return None
    eps = layer.state.eps
    ratio = median((running + eps) / (seen.moments.unbiased_variance + eps))
    return ratio if math.isfinite(ratio) else None


def _measured(layer: Layer, ratio: float) -> Finding:
    severity: Severity = "error" if ratio >= ERROR else "warning"
    around = layer.around
    return Finding(
        "MN007",
        severity,
        layer.name,
        f"Dropout {around.dropout_before!r} of rate {around.dropout_rate:g} stands before it: the running variance is "
        f"{ratio:.2f} times that of the images without dropout, so that outputs in evaluation are too small by "
        f"{100 * (1 - 1 / math.sqrt(ratio)):.0f} %.",
        (
            Evidence("running over population variance", ratio, ERROR if severity == "error" else WARNING),
            Evidence("dropout rate", around.dropout_rate),
        ),
        REMEDY,
    )


def _unmeasured(layer: Layer) -> Finding:
    around = layer.around
    return Finding(
        "MN007",
        "warning",
        layer.name,
        f"Dropout {around.dropout_before!r} of rate {around.dropout_rate:g} stands before it: in training its inputs "
        "vary more than in evaluation. No image was seen to tell by how much.",
        (Evidence("dropout rate", around.dropout_rate, RATE),),
        REMEDY,
    )


# Population statistics are taken without dropout. Before the next training: dropout after the last normalization.
REMEDY = "mednorm.recalibrate(model, loader)"

RULE = Rule(
    code="MN007", name="dropout-before", title="Dropout before the layer widens its running variance", check=check
)
