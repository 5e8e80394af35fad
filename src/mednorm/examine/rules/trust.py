"""How far into a network what reaches its layers can be judged: as far as running statistics before them are right."""

from __future__ import annotations

import math

from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules import mn002_lag, mn010_updates
from mednorm.examine.rules.mn006_not_finite import unusable
from mednorm.examine.rules.residuals import residuals

# Distance of running statistics from what is seen, in σ: what a gain of 1.5 does, an error where a site is so far off.
FAR = 0.5
# Their running variances are of another kind, or those of one domain alone.
_OTHERWISE = ("RangeBatchNorm", "DomainBatchNorm")


def first_wrong(probed: Probed) -> float:
    """Return the place of the first layer whose running statistics are wrong; infinite where all are right.

    What is seen behind it passed through them, and says nothing of the network once they are mended: those layers are
    to be judged by what they hold alone. What reaches this layer itself is sound.
    """
    if probed.own_statistics:
        return math.inf
    places = {layer.name: layer.place for layer in probed.layers}
    said = [finding for check in (mn002_lag.check, mn010_updates.check) for finding in check(probed)]
    wrong = [places[finding.layer] for finding in said if finding.severity == "error"]
    wrong += [layer.place for layer in probed.layers if unusable(layer) or _far(layer)]
    return min(wrong, default=math.inf)


def _far(layer: Layer) -> bool:
    found = None if layer.kind in _OTHERWISE else residuals(layer)
    return found is not None and found.distance >= FAR
