"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mednorm.data import Description
    from mednorm.results import Estimate, Results, Run

_MARKS = {"better": "[green]+[/]", "worse": "[red]−[/]", "not distinguishable": "[yellow]≈[/]", "info": "·"}


def show_results(results: Results, console: Console) -> None:
    """Print one row an arm, then the sentences; a narrow terminal gets fewer columns, never cut numbers."""
    metrics = results.headline_metrics()
    forms: list[tuple[list[str], bool, bool]] = [  # from the widest to the narrowest
        (metrics, True, False),
        (metrics, True, True),
        (metrics, False, True),
        (metrics[:1], False, True),
    ]
    tables = [_arms(results, *form) for form in forms]
    unbounded = console.options.update(width=10_000)
    fitting = [table for table in tables if console.measure(table, options=unbounded).maximum <= console.width]
    console.print((fitting or tables[-1:])[0])
    for statement in results.statements:
        console.print(f"{_MARKS[statement.verdict]} {escape(statement.text)}", highlight=False)


def _arms(results: Results, metrics: list[str], costs: bool, two_lines: bool) -> Table:
    """Lay out one row an arm, with or without what it costs, its intervals beside or below their means."""
    title = f"{results.study.task}: {len(results.runs)} runs, mean and 95 % interval over seeds"
    table = Table(title=title, title_justify="left", show_lines=two_lines)
    for name in ["norm", "regularizer", "batch"] if costs else ["norm\nregularizer, batch"]:
        table.add_column(name, overflow="fold")
    columns = [*(name.replace("_", " ") for name in metrics), "against none"]
    for name in [*columns, *(["gap", "epochs\nto target", "ms/step", "peak MB"] if costs else [])]:
        table.add_column(name, justify="right", overflow="fold")
    for arm in results.summary:
        names = [arm.norm, arm.regularizer, str(arm.batch_size)]
        numbers = [escape(arm.metrics[name].text(3)) for name in metrics]
        numbers.append(escape(arm.versus_none[metrics[0]].text(3, signed=True)) if arm.versus_none else "–")
        if two_lines:
            numbers = [number.replace(" ", "\n", 1) for number in numbers]
        if costs:
            reached = arm.epochs_to_target
            numbers += [
                _number(arm.generalization_gap, 3),
                f"{_number(reached, 1)} ({reached.n}/{len(arm.runs)})",
                _number(arm.seconds_per_step, 1, 1e3),
                _number(arm.peak_memory_mb, 0),
            ]
        table.add_row(*(names if costs else [f"{arm.norm}\n{arm.regularizer}, {arm.batch_size}"]), *numbers)
    return table


def show_metrics(run: Run, console: Console) -> None:
    """Print the metrics of one run, a row a metric."""
    names = list(dict.fromkeys(key.split("_", 1)[1] for key in run.metrics))
    table = Table(
        title=f"{escape(run.name)}: epoch {run.best_epoch} of {len(run.epochs)}, chosen by validation",
        title_justify="left",
    )
    table.add_column("metric")
    for split in ("train", "val", "test"):
        table.add_column(split, justify="right")
    for name in names:
        table.add_row(escape(name), *(_plain(run.metrics.get(f"{split}_{name}")) for split in ("train", "val", "test")))
    console.print(table)


def show_scores(title: str, scores: Mapping[str, float | None], console: Console) -> None:
    """Print metrics, a row each."""
    table = Table("metric", "value", title=escape(title), title_justify="left")
    for name, value in scores.items():
        table.add_row(escape(name), _plain(value))
    console.print(table)


def show_description(found: Description, console: Console) -> None:
    """Print what a reader sees: counts, shapes, intensities."""
    splits = list(found.images)
    title = f"{found.source}: {found.kind}, {sum(found.images.values())} images"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    if found.note:
        console.print(escape(found.note), highlight=False)
    counts = Table("", *splits, title="Images", title_justify="left")
    counts.add_row("images", *(str(found.images[split]) for split in splits))
    counts.add_row("patients", *(_count(found.patients[split]) for split in splits))
    for name in found.classes:
        shares = [found.per_class[split][name] for split in splits]
        label, texts = f"class {name}", [str(int(share)) for share in shares]
        if found.kind == "segmentation":
            label, texts = f"voxels {name}", [f"{share:.1%}" for share in shares]
        counts.add_row(escape(label), *texts)
    sites = sorted({site for by_site in found.sites.values() for site in by_site})
    for site in [] if sites == ["unknown"] else sites:
        counts.add_row(escape(f"site {site}"), *(str(found.sites[split].get(site, 0)) for split in splits))
    console.print(counts)
    shapes = ", ".join(f"{shape} ({count})" for shape, count in found.shapes.items())
    types = ", ".join(f"{dtype} ({count})" for dtype, count in found.dtypes.items())
    console.print(f"shapes {shapes}; stored as {types}", highlight=False)
    table = Table(title="Intensities", title_justify="left")
    table.add_column("", overflow="fold")
    for name in ("channel", "mean", "std", "minimum", "maximum"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, of in (found.intensity | {f"site {site}": i for site, i in found.intensity_by_site.items()}).items():
        if name == "site unknown":
            continue
        for channel in range(len(of.mean)):
            numbers = (of.mean[channel], of.std[channel], of.minimum[channel], of.maximum[channel])
            table.add_row(escape(name), str(channel), *(f"{number:.4g}" for number in numbers))
    console.print(table)


def _number(estimate: Estimate, digits: int, factor: float = 1) -> str:
    return "–" if estimate.mean is None else f"{estimate.mean * factor:.{digits}f}".replace("-", "−")


def _plain(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)
