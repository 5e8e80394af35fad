"""A whole study: every run in turn, then what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tomli_w
import torch
from rich.progress import Progress

from mednorm.files import write_atomically
from mednorm.results import DataSummary, Results, Run, Study
from mednorm.study.environment import describe_environment, now
from mednorm.study.settings import StudySettings
from mednorm.study.statements import statements
from mednorm.study.summary import choose_target, summarize, with_target
from mednorm.tasks import Prepared, Task, find_task
from mednorm.training.disk import exclusive, open_run
from mednorm.training.progress import RunProgress, progress_display
from mednorm.training.run import check_batch_size, train


def run_study(
    settings: StudySettings,
    out: Path,
    command: str,
    display: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train every arm with every seed, compare them, and write `results.json`.

    A study that was killed goes on where it stopped: finished runs are not trained again, the unfinished one goes on
    from its last epoch. Validation chooses each run's epoch; the test images are used once, at its end.

    Args:
        settings: the study.
        out: its folder.
        command: what is written down as the command that made the results.
        display: where progress is shown.
        say: takes lines for the person who waits.

    Raises:
        RunError: the folder is in use, or holds runs with other settings.
        DataError: the data cannot be used.

    """
    task = find_task(settings.task)
    started = now()
    with exclusive(out):
        say(f"Reading the images of {settings.task} …")
        prepared = task.prepare(settings.data, settings.classes, settings.split_seed, settings.image_size)
        planned = settings.runs(prepared.images.classes, prepared.shape.size, prepared.digest)
        say(f"{len(planned)} runs of {settings.epochs} epochs on {_counts(prepared)}; results in {out}")
        folders = [out / "runs" / plan.name for plan in planned]
        for plan, folder in zip(planned, folders, strict=True):
            check_batch_size(plan, prepared)
            if (folder / "config.toml").exists():
                open_run(plan, folder)  # so that other runs are refused at once, and nothing is written among them
        write_atomically(out / "study.toml", tomli_w.dumps(settings.model_dump(exclude_none=True)))
        display = display or progress_display(disable=True)
        study_row = display.add_task("study", total=len(planned), note="")
        runs: list[Run] = []
        for plan, folder in zip(planned, folders, strict=True):
            row = RunProgress(display, plan.name, task.main_metric)
            run = train(plan, task, prepared, folder, [row])
            runs.append(run.model_copy(update={"samples": f"runs/{plan.name}/samples.npz"}))
            row.remove()
            display.advance(study_row)
            if not display.console.is_terminal:  # a log shows no bars
                say(f"{len(runs)}/{len(planned)} {plan.name}: {_score(runs[-1], task.main_metric)}")
        results = _results(settings, task, prepared, runs, command, started)
        write_atomically(out / "results.json", results.model_dump_json(by_alias=True, indent=1) + "\n")
    return results


def _results(
    settings: StudySettings, task: Task, prepared: Prepared, runs: list[Run], command: str, started: str
) -> Results:
    _, regularizer, size = settings.arms()[0]
    target = choose_target(runs, task.main_metric, regularizer, size, settings.target)
    runs = [with_target(run, task.main_metric, target.value) for run in runs]
    study = Study(
        task=task.name,
        preset=settings.preset,
        main_metric=task.main_metric,
        network=task.network,
        parameters=sum(p.numel() for p in task.network_for(prepared.shape, "none", 0.0).parameters()),
        norms=list(settings.norms),
        regularizers=settings.regularizers,
        batch_sizes=settings.batch_sizes,
        base_batch_size=settings.base_batch_size,
        seeds=settings.seeds,
        grid=settings.grid,
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        target=target,
        data=_data(prepared),
        settings=settings.model_dump(),
    )
    summary = summarize(runs, task.main_metric)
    device = "cpu" if settings.device == "cpu" or not torch.cuda.is_available() else torch.cuda.get_device_name()
    return Results(
        schema_version=1,
        study=study,
        runs=runs,
        summary=summary,
        statements=statements(study, runs, summary, study.headline_metrics(summary[0].metrics)),
        environment=describe_environment(command, started, device),
    )


def _data(prepared: Prepared) -> DataSummary:
    arrays = prepared.arrays
    patients = {split: len(set(a.patients)) for split, a in arrays.items() if None not in a.patients}
    return DataSummary(
        source=prepared.images.source,
        kind=prepared.images.kind,
        classes=list(prepared.images.classes),
        shape=list(arrays["train"].images.shape[1:]),
        images={split: len(a.names) for split, a in arrays.items()},
        patients=patients,
        sites=sorted({site for a in arrays.values() for site in a.sites if site is not None}),
        note=prepared.images.note,
    )


def _score(run: Run, main_metric: str) -> str:
    value = run.metrics[f"test_{main_metric}"]
    return f"test {main_metric} {'not defined' if value is None else f'{value:.3f}'}, {run.seconds:.0f} s"


def _counts(prepared: Prepared) -> str:
    return ", ".join(f"{len(arrays.names)} {split}" for split, arrays in prepared.arrays.items()) + " images"
