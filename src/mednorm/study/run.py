"""A whole study: every run in turn, then what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tomli_w
import torch
from rich.progress import Progress

from mednorm.errors import ConfigError
from mednorm.files import write_atomically
from mednorm.results import DataSummary, Results, Run, Study
from mednorm.study.arms import Arm, trials
from mednorm.study.environment import describe_environment, now
from mednorm.study.settings import StudySettings
from mednorm.study.statements import statements
from mednorm.study.summary import choose_target, summarize, with_target
from mednorm.tasks import Prepared, Task, find_task
from mednorm.tasks.networks import find_network
from mednorm.training.disk import exclusive, open_run
from mednorm.training.progress import RunProgress, progress_display
from mednorm.training.run import check_batch_size, train
from mednorm.training.settings import prepare


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
        prepared = prepare(settings)
        left_out = undefined_arms(settings, task, prepared)
        for arm, why in left_out.items():
            say(f"Left out: {_words(arm)}: {why}")
        planned = settings.runs(prepared, left_out)
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
            home = {
                key: f"runs/{plan.name}/{getattr(run, key)}" for key in ("samples", "outcomes") if getattr(run, key)
            }
            runs.append(run.model_copy(update=home))
            row.remove()
            display.advance(study_row)
            if not display.console.is_terminal:  # a log shows no bars
                say(f"{len(runs)}/{len(planned)} {plan.name}: {_score(runs[-1], task.main_metric)}")
        results = _results(settings, task, prepared, runs, left_out, out, command, started)
        write_atomically(out / "results.json", results.model_dump_json(by_alias=True, indent=1) + "\n")
    return results


def undefined_arms(settings: StudySettings, task: Task, prepared: Prepared) -> dict[Arm, str]:
    """Find the arms whose norm has no statistics: of one image with a single value per channel, or of unknown sites.

    A norm that fails so at batch size 1 cannot be trained at that size. Where every arm fails, the first one's error
    is raised.

    Raises:
        ConfigError: no arm is left.

    """
    shape = prepared.shape_for(settings.patch_size)
    left_out: dict[Arm, str] = {}
    for arm in settings.arms():
        if arm.norm == "domain" and not shape.sites:
            left_out[arm] = "domain: expected images that say which site they are from, got none that does."
        if arm.batch_size > 1 or arm in left_out:
            continue
        with torch.random.fork_rng():
            network = task.network_for(shape, arm.network, arm.norm)
            try:
                network(torch.randn(1, shape.channels, *shape.size))
            except ValueError as error:  # PyTorch's norms and ours say it with one
                left_out[arm] = " ".join(str(error).split())
    if len(left_out) == len(settings.arms()):
        raise ConfigError(f"study: expected an arm that can be trained, got none: {next(iter(left_out.values()))}")
    return left_out


def _results(
    settings: StudySettings,
    task: Task,
    prepared: Prepared,
    runs: list[Run],
    left_out: dict[Arm, str],
    out: Path,
    command: str,
    started: str,
) -> Results:
    target = choose_target(runs, task.main_metric, settings.arms()[0], settings.target)
    runs = [with_target(run, task.main_metric, target.value) for run in runs]
    network = find_network(settings.network, task.kind)
    built = task.network_for(prepared.shape_for(settings.patch_size), settings.network, "none")
    study = Study(
        task=task.name,
        preset=settings.preset,
        main_metric=task.main_metric,
        network=network.text,
        networks=settings.networks(),
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        norms=list(settings.norms),
        regularizers=settings.regularizers,
        batch_sizes=settings.batch_sizes,
        base_batch_size=settings.base_batch_size,
        train_shares=settings.train_shares,
        folds=[fold.name for fold in prepared.folds],
        left_out={_words(arm): why for arm, why in left_out.items()} | _no_deeper(settings),
        seeds=settings.seeds,
        grid=settings.grid,
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        target=target,
        data=_data(task, prepared),
        settings=settings.model_dump(),
    )
    gathered = trials(runs, out, task.unit, prepared.resampled)
    summary = summarize(gathered, task.main_metric)
    device = "cpu" if settings.device == "cpu" or not torch.cuda.is_available() else torch.cuda.get_device_name()
    return Results(
        schema_version=1,
        study=study,
        runs=runs,
        summary=summary,
        statements=statements(study, gathered, summary, study.headline_metrics(summary[0].metrics)),
        environment=describe_environment(command, started, device),
    )


def _data(task: Task, prepared: Prepared) -> DataSummary:
    arrays, parts = prepared.arrays, prepared.splits()
    known = None not in arrays.patients
    return DataSummary(
        source=prepared.images.source,
        kind=prepared.images.kind,
        classes=list(prepared.images.classes),
        shape=list(arrays.images[0].shape),
        images={split: len(part.names) for split, part in parts.items()},
        patients={split: len(set(part.patients)) for split, part in parts.items()} if known else {},
        sites=sorted({site for site in arrays.sites if site is not None}),
        note=" ".join(part for part in (prepared.images.note, _division(prepared)) if part),
        unit="patient" if task.unit == "patient" and known else "image",
        resampled=prepared.resampled,
    )


def _division(prepared: Prepared) -> str:
    """Say how the images were divided, where it is not by their own splits, and what is missing."""
    count, total = len(prepared.folds), len(prepared.arrays.names)
    unit = "image" if None in prepared.arrays.patients else "patient"
    said = []
    if count > 1 and prepared.folds[0].name.startswith("site-"):
        said.append(f"Each of {count} sites was the test once, the others were trained on.")
    elif count > 1:
        said.append(
            f"{count}-fold cross-validation by {unit}: each of {total} images was a test image once; counts of images "
            "are those of the first fold, and test metrics those of all folds' test images together."
        )
    elif prepared.folds[0].name:
        said.append(f"Tested on {prepared.folds[0].name.replace('-', ' ', 1)}, trained on the others.")
    if any("val" not in fold.rows for fold in prepared.folds):
        said.append("There are no validation images: the last epoch of each run is judged.")
    return " ".join(said)


def _no_deeper(settings: StudySettings) -> dict[str, str]:
    """Say that a deeper variant was asked for and there is none."""
    if not settings.deeper or len(settings.networks()) > 1:
        return {}
    return {f"a deeper variant of {settings.network}": "none is known; see the list of networks"}


def _words(arm: Arm) -> str:
    parts = [
        arm.norm,
        "" if arm.regularizer == "none" else arm.regularizer,
        f"batch size {arm.batch_size}",
        arm.network,
    ]
    return ", ".join(part for part in parts if part)


def _score(run: Run, main_metric: str) -> str:
    value = run.metrics[f"test_{main_metric}"]
    return f"test {main_metric} {'not defined' if value is None else f'{value:.3f}'}, {run.seconds:.0f} s"


def _counts(prepared: Prepared) -> str:
    counts = ", ".join(f"{len(part.names)} {split}" for split, part in prepared.splits().items())
    return f"{counts} images" + (f" in each of {len(prepared.folds)} folds" if len(prepared.folds) > 1 else "")
