"""MN004: images of one site whose statistics are not those that the network normalizes with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed, Seen
from mednorm.examine.rules.noise import median
from mednorm.examine.rules.remedies import thawed
from mednorm.examine.rules.student import NORMAL, student
from mednorm.population.distance import distance

# In σ of the running statistics: what a gain of 1.25, and of 1.5 does to values around 0.
WARNING, ERROR = 0.25, 0.5
# The other sites must be nearer by this factor: where all are far, the fault is not the site's.
NEARER = 1.5
FEWEST = 4
# Of one patient nobody can tell what is the site's and what is the patient's.
FEWEST_PATIENTS = 2
# Of fewer images the statistics are mixed with the old ones, which count for as many.
FEW = 16


@dataclass(frozen=True)
class Away:
    """How far images are from the running statistics: median over channels, corrected for what few images add.

    Attributes:
        distance: in σ.
        error: its standard error.
        times: standard errors that the 95 % interval reaches to either side.

    """

    distance: float
    error: float
    times: float = NORMAL

    @property
    def margin(self) -> float:
        """How far the 95 % interval reaches to either side."""
        return self.times * self.error

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return max(0.0, self.distance - self.margin)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.distance + self.margin


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

    The standard error is from that of the mean, :math:`s_b^2/n` by the spread between the images' means, and that of
    the standard deviation, half the noise of the variance: the root of the sum of their squares. Where patients are
    known, n is theirs (`Seen.by_patient`), and there are few: then each counts as far as the way from the running
    statistics is its own, which of a gain is the standard deviation's alone, and the interval is Student's.
    """
    mean, variance, eps = layer.state.running_mean, layer.state.running_var, layer.state.eps
    if mean is None or variance is None or seen.images < FEWEST:
        return None
    if seen.patients is not None and seen.patients.count < FEWEST_PATIENTS:
        return None
    drawn, draws = seen.by_patient(), seen.draws
    scale = seen.moments.variance / (variance + eps)
    of_mean = scale * drawn.noise_of_mean(draws).square()
    of_std = scale * (drawn.noise_of_variance(draws) / 2).square()
    measured, chance = distance(seen.moments, mean, variance, eps).square(), of_mean + of_std
    squared, times = chance, NORMAL
    if seen.patients is not None:
        offset = (seen.moments.mean - mean).square() / (variance + eps)
        share = offset / measured.clamp(min=torch.finfo(measured.dtype).tiny)
        squared, times = share * of_mean + (1 - share) * of_std, student(draws - 1)
    found = Away(median((measured - chance).clamp(min=0).sqrt()), median(squared.sqrt()), times)
    return found if math.isfinite(found.distance) and math.isfinite(found.error) else None


def _shifted(here: Away, there: Away) -> bool:
    return (
        here.distance >= WARNING
        and here.distance > NEARER * there.distance
        and here.distance - there.distance > math.hypot(here.margin, there.margin)
    )


def _finding(layer: Layer, site: str, seen: Seen, here: Away, there: Away) -> Finding:
    known = seen.patients
    whose = [] if known is None else [Evidence("patients of the site", known.count, unit="patients")]
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
            *whose,
        ),
        thawed(layer, f"mednorm.adapt(model, loader_of_site{mixing})"),
        site=site,
    )


RULE = Rule(code="MN004", name="site-shift", title="A site's images differ from what the network expects", check=check)
