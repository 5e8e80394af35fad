"""From runs to arms: means over seeds with intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from scipy import stats

from mednorm.results import ArmSummary, Estimate, Run, Target

Arm = tuple[str, str, int]
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


def by_arm(runs: Sequence[Run]) -> dict[Arm, dict[int, Run]]:
    """Group runs by (norm, regularizer, batch size), then by seed."""
    arms: dict[Arm, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        arms[run.norm, run.regularizer, run.batch_size][run.seed] = run
    return dict(arms)


def pairs(ours: Mapping[int, Run], theirs: Mapping[int, Run], quantity: Quantity) -> list[tuple[float, float]]:
    """Return the quantity of both, seed by seed, for the seeds in which both have it."""
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        left, right = quantity(ours[seed]), quantity(theirs[seed])
        if left is not None and right is not None:
            found.append((left, right))
    return found


def paired(ours: Mapping[int, Run], theirs: Mapping[int, Run], quantity: Quantity) -> Estimate:
    """Estimate ours minus theirs, paired by seed."""
    return estimate(left - right for left, right in pairs(ours, theirs, quantity))


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
    norms = list(run.epochs[0].gradient_norms.values())
    if len(norms) < 2 or norms[0] is None or not norms[-1]:
        return None
    return norms[0] / norms[-1]


def choose_target(runs: Sequence[Run], main_metric: str, regularizer: str, size: int, given: float | None) -> Target:
    """Choose the validation metric whose reaching is timed, unless one was given.

    It is the lowest of the best validation metrics of all runs, of any norm, with this regularizer and batch size: a
    level that every one of them reached, so that all can be timed, and that favours no arm.
    """
    name = f"val_{main_metric}"
    if given is not None:
        return Target(metric=name, value=given, source="given")
    bests = [_best(run, main_metric) for run in runs if (run.regularizer, run.batch_size) == (regularizer, size)]
    return Target(
        metric=name,
        value=None if None in bests else min(best for best in bests if best is not None),
        source=f"the level that every run of every norm with regularizer {regularizer} and batch size {size} reached",
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


def summarize(runs: Sequence[Run], main_metric: str) -> list[ArmSummary]:
    """Summarize every arm over its seeds, in the order in which the arms were run."""
    arms = by_arm(runs)
    gap = generalization_gap(main_metric)
    compared: dict[str, Quantity] = {
        **{name: metric(name) for name in runs[0].metrics if name.startswith("test_")},
        "generalization_gap": gap,
        "epochs_to_target": lambda run: run.epochs_to_target,
        "seconds_to_target": lambda run: run.seconds_to_target,
        "gradient_ratio": gradient_ratio,
        "seconds_per_step": lambda run: run.seconds_per_step,
        "peak_memory_mb": lambda run: run.peak_memory_mb,
    }

    def one(arm: Arm, seeds: Mapping[int, Run]) -> ArmSummary:
        norm, regularizer, size = arm
        all_runs = list(seeds.values())
        partner = arms.get(("none", regularizer, size)) if norm != "none" else None
        return ArmSummary(
            norm=norm,
            regularizer=regularizer,
            batch_size=size,
            runs=[run.name for run in all_runs],
            metrics={name: estimate(run.metrics[name] for run in all_runs) for name in all_runs[0].metrics},
            generalization_gap=estimate(map(gap, all_runs)),
            epochs_to_target=estimate(run.epochs_to_target for run in all_runs),
            seconds_to_target=estimate(run.seconds_to_target for run in all_runs),
            gradient_ratio=estimate(map(gradient_ratio, all_runs)),
            seconds_per_step=estimate(run.seconds_per_step for run in all_runs),
            peak_memory_mb=estimate(run.peak_memory_mb for run in all_runs),
            versus_none={key: paired(seeds, partner, quantity) for key, quantity in compared.items()}
            if partner
            else {},
        )

    return [one(arm, seeds) for arm, seeds in arms.items()]


def _best(run: Run, main_metric: str) -> float | None:
    return max((v for e in run.epochs if (v := e.val_metrics.get(main_metric)) is not None), default=None)
