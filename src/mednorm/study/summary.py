"""From runs to arms: means over seeds with intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from mednorm.results import ArmSummary, Estimate, Run, Target
from mednorm.study.arms import Arm, Trial, Trials, mean
from mednorm.tasks.bootstrap import interval

Quantity = Callable[[Run], float | None]


def estimate(values: Iterable[float | None]) -> Estimate:
    """Return mean, standard deviation and 95 % Student t interval; None among the values is left out of n.

    Example:
        >>> shown = estimate([1.0, 2.0, 3.0])
        >>> shown.n, shown.mean, round(shown.low, 3), round(shown.high, 3)
        (3, 2.0, -0.484, 4.484)

    """
    known = [value for value in values if value is not None]
    if not known:
        return Estimate(n=0, mean=None)
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Estimate(n=1, mean=mean)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    if std <= 1e-12 * abs(mean):  # whole numbers of epochs, say, that all agree: no spread to build an interval from
        return Estimate(n=len(known), mean=mean, std=std)
    half = float(stats.t.ppf(0.975, len(known) - 1)) * std / math.sqrt(len(known))
    return Estimate(n=len(known), mean=mean, std=std, low=mean - half, high=mean + half)


def pairs(ours: Mapping[int, Trial], theirs: Mapping[int, Trial], quantity: Quantity) -> list[tuple[float, float]]:
    """Return the quantity of both, seed by seed, for the seeds in which both have it."""
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        left, right = quantity(ours[seed].run), quantity(theirs[seed].run)
        if left is not None and right is not None:
            found.append((left, right))
    return found


def paired(ours: Mapping[int, Trial], theirs: Mapping[int, Trial], quantity: Quantity) -> Estimate:
    """Estimate ours minus theirs, paired by seed."""
    return estimate(left - right for left, right in pairs(ours, theirs, quantity))


def over_units(ours: Mapping[int, Trial], name: str, theirs: Mapping[int, Trial] | None = None) -> Estimate | None:
    """Estimate a test metric, or its difference, as a mean over seeds with its interval over patients or images.

    Every trial was resampled with the same draws, so that a difference is paired by them too: an image that is hard
    for both cancels. The seeds are held fixed; how far they scatter is the other interval's matter.

    Returns:
        None where the trials were not resampled, or no seed has the metric; a seed that lacks it is left out.

    """
    seeds = sorted(ours.keys() if theirs is None else ours.keys() & theirs.keys())
    values, draws = [], []
    for seed in seeds:
        sides = [ours[seed]] if theirs is None else [ours[seed], theirs[seed]]
        known = [side.run.metrics.get(name) for side in sides]
        if any(value is None for value in known):
            continue
        if any(name not in side.draws for side in sides):
            return None
        values.append(known[0] if theirs is None else known[0] - known[1])  # type: ignore[operator]
        draws.append(sides[0].draws[name] if theirs is None else sides[0].draws[name] - sides[1].draws[name])
    if not values:
        return None
    ends = interval(np.mean(draws, axis=0))
    low, high = ends or (None, None)
    return Estimate(n=ours[seeds[0]].units, mean=mean(values), low=low, high=high)


def metric(name: str) -> Quantity:
    """Return the quantity "metric of that name"."""
    return lambda run: run.metrics.get(name)


def generalization_gap(main_metric: str) -> Quantity:
    """Return the quantity "train metric minus test metric"."""

    def gap(run: Run) -> float | None:
        train, test = run.metrics.get(f"train_{main_metric}"), run.metrics.get(f"test_{main_metric}")
        return None if train is None or test is None else train - test

    return gap


def gradient_ratio(run: Run) -> float | None:
    """Return the gradient norm of the first layer over that of the last, in the first epoch."""
    return _first_over_last(run.epochs[0].gradient_norms)


def initial_gradient_ratio(run: Run) -> float | None:
    """Return the gradient norm of the first layer over that of the last, in the first step."""
    return _first_over_last(run.initial_gradient_norms)


def gradient_decades(run: Run) -> float | None:
    """Return the orders of magnitude between the weakest and the strongest layer's gradient norm, first epoch.

    First layer over last misses a gradient that vanishes in between, as it does where skip connections carry it to the
    first layers past the deepest ones.
    """
    return _decades(run.epochs[0].gradient_norms)


def initial_gradient_decades(run: Run) -> float | None:
    """Return the same in the first step."""
    return _decades(run.initial_gradient_norms)


def mode_gap(name: str) -> Quantity:
    """Return the quantity "metric with running statistics minus the same with batch statistics"."""

    def gap(run: Run) -> float | None:
        running, batch = run.metrics.get(name), run.batch_metrics.get(name)
        return None if running is None or batch is None else running - batch

    return gap


def _decades(gradient_norms: Mapping[str, float | None]) -> float | None:
    norms = [norm for norm in gradient_norms.values() if norm is not None]
    if len(norms) < 2 or len(norms) < len(gradient_norms) or min(norms) <= 0:
        return None
    return math.log10(max(norms) / min(norms))


def _first_over_last(gradient_norms: Mapping[str, float | None]) -> float | None:
    norms = list(gradient_norms.values())
    if len(norms) < 2 or norms[0] is None or not norms[-1]:
        return None
    return norms[0] / norms[-1]


def choose_target(runs: Sequence[Run], main_metric: str, base: Arm, given: float | None) -> Target:
    """Choose the validation metric whose reaching is timed, unless one was given.

    It is the lowest of the best validation metrics of all runs, of any norm, that are else as the base arm: a level
    that every one of them reached, so that all can be timed, and that favours no arm.
    """
    name = f"val_{main_metric}"
    if given is not None:
        return Target(metric=name, value=given, source="given")
    bests = [_best(run, main_metric) for run in runs if Arm.of(run)._replace(norm=base.norm) == base]
    return Target(
        metric=name,
        value=None if None in bests else min((best for best in bests if best is not None), default=None),
        source="none: a run of these arms never had a validation metric"
        if None in bests or not bests
        else f"the level that every run of every norm with regularizer {base.regularizer} and batch size "
        f"{base.batch_size} reached",
    )


def with_target(run: Run, main_metric: str, target: float | None) -> Run:
    """Return the run with its epochs and training seconds to the target; None where it was not reached."""
    seconds = 0.0
    for epoch in run.epochs:
        seconds += epoch.seconds
        value = epoch.val_metrics.get(main_metric)
        if target is not None and value is not None and value >= target:
            return run.model_copy(update={"epochs_to_target": epoch.epoch, "seconds_to_target": seconds})
    return run.model_copy(update={"epochs_to_target": None, "seconds_to_target": None})


def summarize(arms: Trials, main_metric: str) -> list[ArmSummary]:
    """Summarize every arm over its seeds, in the order in which the arms were run."""
    first = next(iter(next(iter(arms.values())).values())).run
    tests = [name for name in first.metrics if name.startswith("test_")]
    compared: dict[str, Quantity] = {
        **{name: metric(name) for name in tests},
        "generalization_gap": generalization_gap(main_metric),
        "epochs_to_target": lambda run: run.epochs_to_target,
        "seconds_to_target": lambda run: run.seconds_to_target,
        "gradient_ratio": gradient_ratio,
        "initial_gradient_ratio": initial_gradient_ratio,
        "gradient_decades": gradient_decades,
        "initial_gradient_decades": initial_gradient_decades,
        "seconds_per_step": lambda run: run.seconds_per_step,
        "peak_memory_mb": lambda run: run.peak_memory_mb,
    }

    def one(arm: Arm, seeds: Mapping[int, Trial]) -> ArmSummary:
        partner = arms.get(arm._replace(norm="none")) if arm.norm != "none" else None
        runs = [trial.run for trial in seeds.values()]
        batch = {name: estimate(run.batch_metrics[name] for run in runs) for name in runs[0].batch_metrics}
        sites = sorted({site for run in runs for site in run.sites})
        own = {name: estimate(map(quantity, runs)) for name, quantity in compared.items() if name not in tests}
        return ArmSummary(
            **arm._asdict(),
            runs=[name for trial in seeds.values() for name in trial.runs],
            metrics={name: estimate(run.metrics[name] for run in runs) for name in runs[0].metrics},
            over_units={name: known for name in tests if (known := over_units(seeds, name))},
            batch_metrics=batch,
            mode_gap={name: estimate(map(mode_gap(name), runs)) for name in batch},
            sites={
                site: {name: estimate(run.sites.get(site, {}).get(name) for run in runs) for name in tests}
                for site in sites
            },
            **own,
            versus_none={key: paired(seeds, partner, quantity) for key, quantity in compared.items()}
            if partner
            else {},
            versus_none_over_units={name: known for name in tests if (known := over_units(seeds, name, partner))}
            if partner
            else {},
        )

    return [one(arm, seeds) for arm, seeds in arms.items()]


def _best(run: Run, main_metric: str) -> float | None:
    return max((v for e in run.epochs if (v := e.val_metrics.get(main_metric)) is not None), default=None)
