"""Tables of arms: one row an arm, one cell a quantity, each cell with the number it sorts by."""

from __future__ import annotations

from dataclasses import dataclass

from mednorm.report import wording
from mednorm.report.conditions import seeds_of
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


def _both(results: Results, seeds: Estimate | None, units: Estimate | None, *, signed: bool = False) -> Cell:
    """Print a metric with its interval over seeds and, where there is one, that over patients or images."""
    cell = _cell(seeds, "metric", signed=signed)
    if not cell.sort or units is None or units.low is None or units.high is None:
        return cell
    bounds = wording.interval(units, "metric", signed=signed)
    over_seeds = tuple(f"{note} seeds" if note.startswith("[") else note for note in cell.notes)
    return Cell(cell.text, (*over_seeds, f"{bounds} {results.study.data.resampled}"), cell.sort)


def _reached(results: Results, arm: ArmSummary) -> Cell:
    reached = f"{arm.epochs_to_target.n} of {wording.plural(seeds_of(results, arm), 'seed')}"
    if arm.epochs_to_target.mean is None:
        return Cell(wording.MISSING, (reached,))
    cell = _cell(arm.epochs_to_target, "epochs")
    bounds = [note for note in cell.notes if note.startswith("[")]
    return Cell(cell.text, (*bounds, reached), cell.sort)


def _named(results: Results) -> tuple[list[Column], list[list[Cell]]]:
    """Name each arm: its norm, regularizer and batch size; its network and share of the data where these vary."""
    columns = [Column("norm", numeric=False), Column("regularizer", numeric=False), Column("batch size")]
    rows = [
        [
            Cell(arm.norm, sort=arm.norm),
            Cell(arm.regularizer, sort=arm.regularizer),
            Cell(str(arm.batch_size), sort=str(arm.batch_size)),
        ]
        for arm in results.summary
    ]
    if len({arm.network for arm in results.summary}) > 1:
        columns.append(Column("network", numeric=False))
        for row, arm in zip(rows, results.summary, strict=True):
            row.append(Cell(arm.network, sort=arm.network))
    if len({arm.train_share for arm in results.summary}) > 1:
        columns.append(Column("train share"))
        for row, arm in zip(rows, results.summary, strict=True):
            row.append(Cell(wording.share(arm.train_share), sort=repr(arm.train_share)))
    return columns, rows


def arms_table(results: Results) -> Table:
    """Lay out the summary of every arm, in the order of the file, with the few metrics that matter most."""
    metrics = results.study.headline_metrics(judged_metrics(results))
    main = f"test_{results.study.main_metric}"
    diverged = {run.name for run in results.runs if run.status == "diverged"}
    first_step = any(arm.initial_gradient_decades.mean is not None for arm in results.summary)
    names, rows = _named(results)
    columns = [
        *names,
        Column("seeds"),
        *(Column(wording.label(metric)) for metric in metrics),
        Column("difference to none", wording.label(main)),
        Column("generalization gap", f"train − test {wording.label(results.study.main_metric)}"),
        Column("epochs to target"),
        Column("seconds to target"),
        *([Column("gradient spread", "orders of magnitude, first step")] * first_step),
        Column("gradient ratio", "first layer / last"),
        Column("seconds per step"),
        Column("peak memory", "MB"),
    ]
    for row, arm in zip(rows, results.summary, strict=True):
        lost = sum(name in diverged for name in arm.runs)
        seeds = str(seeds_of(results, arm))
        row += [
            Cell(seeds, (f"{lost} diverged",) if lost else (), seeds),
            *(_both(results, arm.metrics.get(metric), arm.over_units.get(metric)) for metric in metrics),
            _both(results, arm.versus_none.get(main), arm.versus_none_over_units.get(main), signed=True),
            _cell(arm.generalization_gap, "metric", signed=True),
            _reached(results, arm),
            _cell(arm.seconds_to_target, "seconds"),
            *([_cell(arm.initial_gradient_decades, "metric")] * first_step),
            _cell(arm.gradient_ratio, "metric"),
            _cell(arm.seconds_per_step, "seconds"),
            _cell(arm.peak_memory_mb, "megabytes"),
        ]
    return Table(columns, rows)


def metrics_table(results: Results) -> Table | None:
    """Lay out every test metric of every arm; nothing where the first table holds them all."""
    metrics = judged_metrics(results)
    batch = [name for name in metrics if any(name in arm.batch_metrics for arm in results.summary)]
    if len(results.study.headline_metrics(metrics)) == len(metrics) and not batch:
        return None
    columns, rows = _named(results)
    for metric in metrics:
        columns.append(Column(wording.label(metric)))
        for row, arm in zip(rows, results.summary, strict=True):
            row.append(_both(results, arm.metrics.get(metric), arm.over_units.get(metric)))
        if metric in batch:
            columns.append(Column(wording.label(metric), "batch statistics"))
            for row, arm in zip(rows, results.summary, strict=True):
                row.append(_cell(arm.batch_metrics.get(metric), "metric"))
    return Table(columns, rows)
