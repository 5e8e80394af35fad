"""The table of arms: one row an arm, one cell a quantity, each cell with the number it sorts by."""

from __future__ import annotations

from dataclasses import dataclass

from mednorm.report import wording
from mednorm.results import ArmSummary, Estimate, Results


@dataclass(frozen=True)
class Column:
    """A heading; `numeric` says how the column sorts."""

    title: str
    note: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What is printed, what stands small beneath it, and what the row sorts by (empty: missing, always last)."""

    text: str
    notes: tuple[str, ...] = ()
    sort: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows, ready for the template."""

    columns: list[Column]
    rows: list[list[Cell]]


def judged_metrics(results: Results) -> list[str]:
    """List the test metrics of all arms, the study's main one first."""
    main = f"test_{results.study.main_metric}"
    keys = dict.fromkeys(key for arm in results.summary for key in arm.metrics if key.startswith("test_"))
    return sorted(keys, key=lambda key: key != main)


def _cell(given: Estimate | None, kind: wording.Kind, *, signed: bool = False) -> Cell:
    if given is None or given.mean is None:
        return Cell(wording.MISSING)
    return Cell(
        wording.value(given.mean, kind, signed=signed),
        (wording.interval(given, kind, signed=signed),),
        repr(given.mean),
    )


def _reached(arm: ArmSummary) -> Cell:
    reached = f"{arm.epochs_to_target.n} of {wording.plural(len(arm.runs), 'seed')}"
    if arm.epochs_to_target.mean is None:
        return Cell(wording.MISSING, (reached,))
    cell = _cell(arm.epochs_to_target, "epochs")
    bounds = [note for note in cell.notes if note.startswith("[")]
    return Cell(cell.text, (*bounds, reached), cell.sort)


def arms_table(results: Results) -> Table:
    """Lay out the summary of every arm, in the order of the file."""
    metrics = judged_metrics(results)
    main = f"test_{results.study.main_metric}"
    diverged = {run.name for run in results.runs if run.status == "diverged"}
    columns = [
        Column("norm", numeric=False),
        Column("regularizer", numeric=False),
        Column("batch size"),
        Column("seeds"),
        *(Column(wording.label(metric)) for metric in metrics),
        Column("difference to none", wording.label(main)),
        Column("generalization gap", f"train − test {wording.label(results.study.main_metric)}"),
        Column("epochs to target"),
        Column("seconds to target"),
        Column("gradient ratio", "first layer / last"),
        Column("seconds per step"),
        Column("peak memory", "MB"),
    ]
    rows = []
    for arm in results.summary:
        lost = sum(name in diverged for name in arm.runs)
        rows.append(
            [
                Cell(arm.norm, sort=arm.norm),
                Cell(arm.regularizer, sort=arm.regularizer),
                Cell(str(arm.batch_size), sort=str(arm.batch_size)),
                Cell(str(len(arm.runs)), (f"{lost} diverged",) if lost else (), str(len(arm.runs))),
                *(_cell(arm.metrics.get(metric), "metric") for metric in metrics),
                _cell(arm.versus_none.get(main), "metric", signed=True),
                _cell(arm.generalization_gap, "metric", signed=True),
                _reached(arm),
                _cell(arm.seconds_to_target, "seconds"),
                _cell(arm.gradient_ratio, "metric"),
                _cell(arm.seconds_per_step, "seconds"),
                _cell(arm.peak_memory_mb, "megabytes"),
            ]
        )
    return Table(columns, rows)
