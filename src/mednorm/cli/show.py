"""Results as tables in the terminal."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mednorm.data import Description
    from mednorm.results import Estimate, Results, Run
    from mednorm.training.evaluation import Judgement

_MARKS = {"better": "[green]+[/]", "worse": "[red]−[/]", "not distinguishable": "[yellow]≈[/]", "info": "·"}


def show_results(results: Results, console: Console) -> None:
    """Print one row an arm, then the sentences; a narrow terminal gets fewer columns, never cut numbers."""
    metrics = results.headline_metrics()
    forms = [  # from the widest to the narrowest
        _Form(metrics, costs=True),
        _Form(metrics, costs=True, stacked=True),
        _Form(metrics, costs=True, stacked=True, folded=True),
        _Form(metrics, stacked=True, folded=True),
        _Form(metrics[:2], stacked=True, folded=True),
        _Form(metrics[:1], stacked=True, folded=True),
    ]
    _print_widest([_arms(results, form) for form in forms], console)
    for statement in results.statements:
        console.print(f"{_MARKS[statement.verdict]} {escape(statement.text)}", highlight=False)


class _Form(NamedTuple):
    """What a table of arms holds: which metrics, what arms cost; intervals below their means; names in one column."""

    metrics: list[str]
    costs: bool = False
    stacked: bool = False
    folded: bool = False


def _print_widest(tables: list[Table], console: Console) -> None:
    """Print the first table that fits, or else the last."""
    unbounded = console.options.update(width=10_000)
    fitting = [table for table in tables if console.measure(table, options=unbounded).maximum <= console.width]
    console.print((fitting or tables[-1:])[0])


def _arms(results: Results, form: _Form) -> Table:
    """Lay out one row an arm; of a single seed, the interval is that over patients or images."""
    study = results.study
    one_seed = len(study.seeds) < 2 and any(arm.over_units for arm in results.summary)
    folds = max(1, len(study.folds))
    of_runs = f"{len(results.runs)} runs" + (f" in {folds} folds" if folds > 1 else "")
    said = f"over {study.data.resampled}, one seed" if one_seed else "over seeds"
    title = f"{study.task}: {of_runs}, mean and 95 % interval {said}"
    table = Table(title=escape(title), title_justify="left", show_lines=form.stacked)
    titles, names = _names(results)
    for name in ["\n".join((titles[0], fill(", ".join(titles[1:]), 20)))] if form.folded else titles:
        table.add_column(name, overflow="fold")
    columns = [fill(name.replace("_", " "), 12 if form.stacked else 40) for name in form.metrics]
    for name in [*columns, "against\nnone", *(["gap", "epochs\nto target", "ms/step", "peak MB"] * form.costs)]:
        table.add_column(name, justify="right", no_wrap=True)
    for arm, named in zip(results.summary, names, strict=True):
        numbers = [
            _interval(arm.metrics.get(name), arm.over_units.get(name) if one_seed else None) for name in form.metrics
        ]
        units = arm.versus_none_over_units.get(form.metrics[0]) if one_seed else None
        numbers.append(_interval(arm.versus_none.get(form.metrics[0]), units, signed=True))
        if form.stacked:
            numbers = [number.replace(" ", "\n", 1) for number in numbers]
        if form.costs:
            reached = arm.epochs_to_target
            numbers += [
                _number(arm.generalization_gap, 3),
                f"{_number(reached, 1)} ({reached.n}/{len(arm.runs) // folds})",
                _number(arm.seconds_per_step, 1, 1e3),
                _number(arm.peak_memory_mb, 0),
            ]
        shown = [f"{named[0]}\n{', '.join(named[1:])}"] if form.folded else named
        table.add_row(*map(escape, shown), *numbers)
    return table


def _names(results: Results) -> tuple[list[str], list[list[str]]]:
    """Name what arms differ in, and each arm by it: network and share of the training data only where these vary."""
    arms = results.summary
    titles, rows = ["norm", "regularizer", "batch"], [[arm.norm, arm.regularizer, str(arm.batch_size)] for arm in arms]
    if len({arm.network for arm in arms}) > 1:
        titles.append("network")
        rows = [[*row, arm.network] for row, arm in zip(rows, arms, strict=True)]
    if len({arm.train_share for arm in arms}) > 1:
        titles.append("share")
        rows = [[*row, f"{100 * arm.train_share:.4g}%"] for row, arm in zip(rows, arms, strict=True)]
    return titles, rows


def _interval(seeds: Estimate | None, units: Estimate | None, *, signed: bool = False) -> str:
    """Write a mean with its interval over seeds, or with that over patients or images where there is one."""
    chosen = seeds if units is None or units.low is None else units
    return "–" if chosen is None else escape(chosen.text(3, signed=signed))


def show_metrics(run: Run, console: Console) -> None:
    """Print the metrics of one run, a row a metric."""
    names = list(dict.fromkeys(key.split("_", 1)[1] for key in run.metrics))
    validated = any(key.startswith("val_") for key in run.metrics)
    how = "chosen by validation" if validated else "the last, as there are no validation images"
    table = Table(
        title=f"{escape(run.name)}: epoch {run.best_epoch} of {len(run.epochs)}, {how}",
        title_justify="left",
    )
    table.add_column("metric")
    for split in ("train", "val", "test"):
        table.add_column(split, justify="right")
    for name in names:
        table.add_row(escape(name), *(_plain(run.metrics.get(f"{split}_{name}")) for split in ("train", "val", "test")))
    console.print(table)


def show_judgement(title: str, judged: Judgement, console: Console) -> None:
    """Print metrics, a row each: running statistics with intervals, batch statistics; then those of each site."""
    _print_widest([_judged(title, judged, stacked=stacked) for stacked in (False, True)], console)
    if judged.sites:
        names = [name for name in judged.metrics if any(name in scores for scores in judged.sites.values())]
        _print_widest(_sites(judged, names), console)


def _judged(title: str, judged: Judgement, *, stacked: bool) -> Table:
    """Lay out one row a metric, its interval beside it or below."""
    what, count = judged.resampled
    interval = f"95 % interval\nover {count} {what}"
    columns = [f"running statistics,\n{interval}"] if stacked else ["running\nstatistics", interval]
    table = Table(title=escape(title), title_justify="left", show_lines=stacked)
    table.add_column("metric", overflow="fold")
    for name in [*columns, *(["batch\nstatistics"] if judged.batch_metrics else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, value in judged.metrics.items():
        ends = judged.intervals.get(name)
        shown = "–" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"
        cells = [f"{_plain(value)}\n{escape(shown)}"] if stacked else [_plain(value), escape(shown)]
        batch = (
            [_plain(judged.batch_metrics[name]) if name in judged.batch_metrics else "–"]
            if judged.batch_metrics
            else []
        )
        table.add_row(escape(name), *cells, *batch)
    return table


def _sites(judged: Judgement, names: list[str]) -> list[Table]:
    """Lay out the metrics of each site: sites down, else metrics down, else a row for each pair."""
    title = "By site, running statistics"
    down = Table(title=title, title_justify="left")
    across = Table(title=title, title_justify="left")
    pairs = Table(title=title, title_justify="left")
    for table, first, others in (
        (down, ["site"], [name.replace("_", " ") for name in names]),
        (across, ["metric"], list(judged.sites)),
        (pairs, ["site", "metric"], ["value"]),
    ):
        for name in first:
            table.add_column(name, overflow="fold")
        for name in others:
            table.add_column(escape(name), justify="right", no_wrap=True)
    for site, scores in judged.sites.items():
        down.add_row(escape(site), *(_plain(scores.get(name)) for name in names))
        for name in names:
            pairs.add_row(escape(site) if name == names[0] else "", escape(name), _plain(scores.get(name)))
        pairs.add_section()
    for name in names:
        across.add_row(escape(name), *(_plain(scores.get(name)) for scores in judged.sites.values()))
    return [down, across, pairs]


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
