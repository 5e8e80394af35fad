"""MN004: images of one site whose statistics are not those that the network normalizes with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed, Seen
from mednorm.examine.rules.noise import median
from mednorm.examine.rules.remedies import thawed
from mednorm.examine.rules.student import student
from mednorm.population.distance import distance

# In σ of the running statistics: what a gain of 1.25, and of 1.5 does to values around 0.
WARNING, ERROR = 0.25, 0.5
# The other sites must be nearer by this factor: where all are far, the fault is not the site's.
NEARER = 1.5
# How often chance alone may name any site at any layer of a network.
CHANCE, CHANCE_OF_ERROR = 0.05, 0.01
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
    times: float = student(math.inf)

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


@dataclass(frozen=True)
class Compared:
    """One site at one layer, beside all other sites.

    Attributes:
        layer: where.
        site: its name.
        seen: of the site.
        here: how far the site is.
        there: how far the others are.
        error: standard error of the difference, were the site's images drawn from those of the others.
        freedom: degrees of freedom of that.

    """

    layer: Layer
    site: str
    seen: Seen
    here: Away
    there: Away
    error: float
    freedom: float

    @property
    def difference(self) -> float:
        """By how much farther the site is than the others."""
        return self.here.distance - self.there.distance

    def by_chance(self, level: float) -> float:
        """Return the difference that one site at one layer has by chance, in the share `level` of all cases."""
        return student(self.freedom, level) * self.error

    def shifted(self) -> bool:
        """Tell whether the site is far, farther than the others, and that beyond its own 95 % interval."""
        return (
            self.here.distance >= WARNING
            and self.here.distance > NEARER * self.there.distance
            and self.difference > math.hypot(self.here.margin, self.there.margin)
        )


def check(probed: Probed) -> Iterator[Finding]:
    """Find sites whose images are far from the running statistics, and farther than those of the other sites."""
    compared = [each for layer in probed.layers for each in compare(layer)]
    tests = len(compared)
    for each in compared:
        if each.shifted() and each.difference > each.by_chance(CHANCE / tests):
            yield _finding(each, tests)


def compare(layer: Layer) -> Iterator[Compared]:
    """Hold each site against the others, at one layer; those that can be judged."""
    if len(layer.sites) < 2 or layer.kind == "DomainBatchNorm":  # that takes the statistics of each site
        return
    for site, seen in layer.sites.items():
        others = reduce(Seen.merge, (each for name, each in layer.sites.items() if name != site))
        here, there = away(layer, seen), away(layer, others)
        if here is not None and there is not None:
            drawn = _error(layer, seen, others)
            yield Compared(layer, site, seen, here, there, math.hypot(drawn, there.error), others.draws - 1)


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
    measured = distance(seen.moments, mean, variance, eps).square()
    corrected = median((measured - sum(_squared_errors(layer, seen, seen))).clamp(min=0).sqrt())
    times = student(math.inf if seen.patients is None else seen.draws - 1)
    found = Away(corrected, _error(layer, seen, seen), times)
    return found if math.isfinite(found.distance) and math.isfinite(found.error) else None


def _error(layer: Layer, seen: Seen, like: Seen) -> float:
    """Return the standard error of the distance of some images, if they vary like others do."""
    of_mean, of_std = _squared_errors(layer, seen, like)
    squared = of_mean + of_std
    if seen.patients is not None:
        mean, variance, eps = layer.state.running_mean, layer.state.running_var, layer.state.eps
        assert mean is not None
        assert variance is not None
        measured = distance(seen.moments, mean, variance, eps).square()
        offset = (seen.moments.mean - mean).square() / (variance + eps)
        share = offset / measured.clamp(min=torch.finfo(measured.dtype).tiny)
        squared = share * of_mean + (1 - share) * of_std
    return median(squared.sqrt())


def _squared_errors(layer: Layer, seen: Seen, like: Seen) -> tuple[Tensor, Tensor]:
    """Return those of mean and deviation, ``(C,)``: of as many draws as the images are, from others' spread."""
    variance = layer.state.running_var
    assert variance is not None
    drawn, draws = like.by_patient(), seen.draws
    scale = like.moments.variance / (variance + layer.state.eps)
    return scale * drawn.noise_of_mean(draws).square(), scale * (drawn.noise_of_variance(draws) / 2).square()


def _finding(compared: Compared, tests: int) -> Finding:
    layer, site, seen, here, there = compared.layer, compared.site, compared.seen, compared.here, compared.there
    rare = compared.by_chance(CHANCE_OF_ERROR / tests)
    error = here.distance >= ERROR and compared.difference > rare
    by_chance = rare if error else compared.by_chance(CHANCE / tests)
    known, mixing = seen.patients, ', method="mix"' if seen.images < FEW else ""
    whose = [] if known is None else [Evidence("patients of the site", known.count, unit="patients")]
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
            Evidence("difference, of which chance makes the threshold", compared.difference, by_chance, "σ"),
            Evidence("sites and layers compared", tests, unit="comparisons"),
            Evidence("images of the site", seen.images, unit="images"),
            *whose,
        ),
        thawed(layer, f"mednorm.adapt(model, loader_of_site{mixing})"),
        site=site,
    )


RULE = Rule(code="MN004", name="site-shift", title="A site's images differ from what the network expects", check=check)
