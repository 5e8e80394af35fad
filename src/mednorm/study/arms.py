"""Arms of a study, and their runs gathered: the folds of a seed together, the seeds of an arm beside each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mednorm.errors import RunError
from mednorm.results import Run
from mednorm.tasks.outcomes import Outcomes, Unit, read_outcomes
from mednorm.tasks.rows import join
from mednorm.training.disk import BATCH_OUTCOMES, OUTCOMES

Draws = Mapping[str, np.ndarray]


class Arm(NamedTuple):
    """What may differ between the networks of a study."""

    norm: str
    regularizer: str
    batch_size: int
    network: str = ""
    train_share: float = 1.0

    @staticmethod
    def of(run: Run) -> Arm:
        """Return the arm a run belongs to."""
        return Arm(run.norm, run.regularizer, run.batch_size, run.network, run.train_share)


@dataclass(frozen=True)
class Trial:
    """One arm with one seed: all its folds as one run, and the bootstrap of its test images.

    Attributes:
        run: test metrics are those of the test images of all folds together; other metrics, gradients of the first step
            and epoch, time and memory are means over folds. What else it holds is the first fold's.
        runs: names of the runs behind it.
        draws: replicates of each test_* over patients or images; the same draws for every trial on the same images.
        units: how many patients or images were drawn from.
        diverged: names of those runs that diverged.
        batch: the same with batch statistics, its metrics and draws in place of these; None where there are none.
        sites: the same of the test images of each site.

    """

    run: Run
    runs: tuple[str, ...]
    draws: Draws = field(default_factory=dict)
    units: int = 0
    diverged: tuple[str, ...] = ()
    batch: Trial | None = None
    sites: Mapping[str, Trial] = field(default_factory=dict)


Trials = Mapping[Arm, Mapping[int, Trial]]


def trials(runs: Sequence[Run], folder: Path, unit: Unit, resampled: str) -> dict[Arm, dict[int, Trial]]:
    """Gather runs by arm and seed, with what each predicted read from its folder.

    Raises:
        RunError: what one of several folds predicted is missing, or damaged.

    """
    gathered: dict[Arm, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        gathered[Arm.of(run)][run.seed].append(run)
    return {
        arm: {seed: _trial(folds, folder, unit, resampled) for seed, folds in seeds.items()}
        for arm, seeds in gathered.items()
    }


def _trial(folds: Sequence[Run], folder: Path, unit: Unit, resampled: str) -> Trial:
    running = _joined(folds, folder, OUTCOMES)
    if running is None and len(folds) > 1:
        missing = [run.name for run in folds if not (folder / "runs" / run.name / OUTCOMES).exists()]
        raise RunError(
            f"{folder}: expected {OUTCOMES} in the folder of every fold, got none in {', '.join(missing)}. "
            "Remove that run's run.json; it is then judged again."
        )
    names = tuple(run.name for run in folds)
    diverged = tuple(run.name for run in folds if run.status == "diverged")
    batch = _joined(folds, folder, BATCH_OUTCOMES)
    run = folds[0] if running is None or len(folds) == 1 else _over_folds(folds, running, batch, unit)

    def judged(metrics: Mapping[str, float | None], outcomes: Outcomes | None, **more: Any) -> Trial:
        draws = outcomes.replicates(unit) if outcomes is not None and resampled else {}
        named = {f"test_{name}": values for name, values in draws.items()}
        units = 0 if outcomes is None else outcomes.clusters[1]
        return Trial(run.model_copy(update={"metrics": metrics}), names, named, units, diverged, **more)

    at_site = {} if running is None else running.by_site()
    return judged(
        run.metrics,
        running,
        batch=judged(run.batch_metrics, batch) if run.batch_metrics else None,
        sites={site: judged(metrics, at_site.get(site)) for site, metrics in run.sites.items()},
    )


def _joined(folds: Sequence[Run], folder: Path, name: str) -> Outcomes | None:
    """Read the outcomes of all folds as one table; None where a fold has none."""
    paths = [folder / "runs" / run.name / name for run in folds]
    if not all(path.exists() for path in paths):
        return None
    parts = [read_outcomes(path) for path in paths]
    return join(parts)


def _over_folds(folds: Sequence[Run], running: Outcomes, batch: Outcomes | None, unit: Unit) -> Run:
    test = {f"test_{name}": value for name, value in running.metrics(unit).items()}
    known = dict.fromkeys(name for run in folds for name in run.metrics if not name.startswith("test_"))
    rest = {name: mean((run.metrics.get(name) for run in folds), every=True) for name in known}
    sites = {site: rows.metrics(unit) for site, rows in running.by_site().items()}
    first = folds[0].epochs[0]
    gradients = {n: mean(run.initial_gradient_norms.get(n) for run in folds) for n in folds[0].initial_gradient_norms}
    later = {n: mean(run.epochs[0].gradient_norms.get(n) for run in folds) for n in first.gradient_norms}
    return folds[0].model_copy(
        update={
            "fold": "",
            "status": "diverged" if any(run.status == "diverged" for run in folds) else "finished",
            "metrics": rest | test,
            "batch_metrics": {f"test_{n}": v for n, v in batch.metrics(unit).items()} if batch else {},
            "sites": {site: {f"test_{n}": v for n, v in scores.items()} for site, scores in sites.items()},
            "initial_gradient_norms": gradients,
            "epochs": [first.model_copy(update={"gradient_norms": later}), *folds[0].epochs[1:]],
            "epochs_to_target": mean((run.epochs_to_target for run in folds), every=True),
            "seconds_to_target": mean((run.seconds_to_target for run in folds), every=True),
            "seconds_per_step": mean(run.seconds_per_step for run in folds),
            "peak_memory_mb": mean(run.peak_memory_mb for run in folds),
        }
    )


def mean(values: Iterable[float | None], *, every: bool = False) -> float | None:
    """Average what is there; with `every`, nothing unless all are there."""
    known = list(values)
    present = [value for value in known if value is not None]
    if not present or (every and len(present) < len(known)):
        return None
    return math.fsum(present) / len(present)
