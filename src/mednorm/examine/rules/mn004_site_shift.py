"""MN004: images of one site whose statistics are not those that the network normalizes with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed, Seen
from mednorm.examine.rules.noise import median
from mednorm.examine.rules.remedies import thawed
from mednorm.population.distance import distance

# In σ of the running statistics: what a gain of 1.25, and of 1.5 does to values around 0.
WARNING, ERROR = 0.25, 0.5
# The other sites must be nearer by this factor: where all are far, the fault is not the site's.
NEARER = 1.5
FEWEST = 4
# Of fewer images the statistics are mixed with the old ones, which count for as many.
FEW = 16


@dataclass(frozen=True)
class Away:
    """How far images are from the running statistics: median over channels, corrected for what few images add."""

    distance: float
    error: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return max(0.0, self.distance - 1.96 * self.error)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.distance + 1.96 * self.error


def check(probed: Probed) -> Iterator[Finding]:
    """Find sites whose images are far from the running statistics, and farther than those of the other sites."""
    for layer in probed.layers:
        if len(layer.sites) < 2 or layer.kind == "DomainBatchNorm":  # that takes the statistics of each site
            continue
        for site, seen in layer.sites.items():
            others = reduce(Seen.merge, (each for name, each in layer.sites.items() if name != site))
            here, there = away(layer, seen), away(layer, others)
            if here is not None and there is not None and _shifted(here, there):
                yield _finding(layer, site, seen, here, there)


def away(layer: Layer, seen: Seen) -> Away | None:
    r"""Return how far some images are from a layer's running statistics; None for too few, or without statistics.

    The standard error is that of the mean, :math:`s_b^2/n` by the spread between the images' means, and that of the
    standard deviation, half the noise of the variance.
    """
    mean, variance = layer.state.running_mean, layer.state.running_var
    if mean is None or variance is None or seen.images < FEWEST:
        return None
    scale = (seen.moments.variance / (variance + layer.state.eps)).sqrt()
    error = (
        scale * (seen.noise_of_mean(seen.images).square() + (seen.noise_of_variance(seen.images) / 2).square()).sqrt()
    )
    measured = distance(seen.moments, mean, variance, layer.state.eps)
    found = Away(median((measured.square() - error.square()).clamp(min=0).sqrt()), median(error))
    return found if math.isfinite(found.distance) and math.isfinite(found.error) else None


def _shifted(here: Away, there: Away) -> bool:
    return (
        here.distance >= WARNING
        and here.distance > NEARER * there.distance
        and here.distance - there.distance > 1.96 * math.hypot(here.error, there.error)
    )


def _finding(layer: Layer, site: str, seen: Seen, here: Away, there: Away) -> Finding:
    error, mixing = here.distance >= ERROR, ', method="mix"' if seen.images < FEW else ""
    return Finding(
        "MN004",
        "error" if error else "warning",
        layer.name,
        f"Images of site {site!r} are {here.distance:.2f} σ [{here.low:.2f}, {here.high:.2f}] away from what the layer "
        f"normalizes with; those of the other sites {there.distance:.2f} σ.",
        (
            Evidence("distance of the site", here.distance, ERROR if error else WARNING, "σ"),
            Evidence("lower end of its 95 % interval", here.low, unit="σ"),
            Evidence("upper end of its 95 % interval", here.high, unit="σ"),
            Evidence("distance of the other sites", there.distance, unit="σ"),
            Evidence("images of the site", seen.images, unit="images"),
        ),
        thawed(layer, f"mednorm.adapt(model, loader_of_site{mixing})"),
        site=site,
    )


RULE = Rule(code="MN004", name="site-shift", title="A site's images differ from what the network expects", check=check)
