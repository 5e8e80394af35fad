"""What charts of arms show: a quantity of each, with the interval that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mednorm.report import wording
from mednorm.results import ArmSummary, Estimate, Results

Quantity = Callable[[ArmSummary], Estimate | None]


@dataclass(frozen=True)
class Measure:
    """A quantity, its title, and what its bars are."""

    quantity: Quantity
    title: str
    bars: str


def present(arm: ArmSummary, quantity: Quantity) -> Estimate | None:
    """Return the estimate where it has a mean."""
    given = quantity(arm)
    return given if given is not None and given.mean is not None else None


def bars(estimates: Iterable[Estimate | None]) -> str:
    """Say what the bars are, or why there are none."""
    if any(_has_interval(given) for given in estimates):
        return "bars are 95 % Student t intervals over seeds"
    return "one seed each, so there are no intervals"


def main_measure(results: Results, arms: Iterable[ArmSummary]) -> Measure:
    """Return the main test metric of these arms, over seeds; of a single seed, over patients or images."""
    key, arms = f"test_{results.study.main_metric}", list(arms)
    over_seeds = [arm.metrics.get(key) for arm in arms]
    over_units = [arm.over_units.get(key) for arm in arms]
    if any(map(_has_interval, over_seeds)) or not any(map(_has_interval, over_units)):
        return Measure(lambda arm: arm.metrics.get(key), wording.label(key), bars(over_seeds))

    def quantity(arm: ArmSummary) -> Estimate | None:
        given = arm.over_units.get(key)
        return given if _has_interval(given) else arm.metrics.get(key)

    said = f"one seed each, so bars are 95 % bootstrap intervals over {results.study.data.resampled}"
    return Measure(quantity, wording.label(key), said)


def _has_interval(given: Estimate | None) -> bool:
    return given is not None and given.low is not None and given.high is not None
