"""Learning curves: what happened epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mednorm.report import wording
from mednorm.report.palette import Style, looks
from mednorm.report.plot import Chart, Json, Panel, mean, plain, span_of, trace
from mednorm.results import Epoch, Results, Run

Reading = Callable[[Epoch], float | None]


def finished(results: Results, regularizer: str, batch_size: int) -> list[Run]:
    """List the runs of these arms that came to their end."""
    return [
        run
        for run in results.runs
        if run.status == "finished" and run.epochs and run.regularizer == regularizer and run.batch_size == batch_size
    ]


def base_runs(results: Results) -> list[Run]:
    """List the finished runs of the arms that differ in nothing but the norm."""
    return finished(results, results.study.base_regularizer, results.study.base_batch_size)


def base_named(results: Results) -> str:
    """Say in a caption which arms those are."""
    study = results.study
    return f"with {wording.regularizer(study.base_regularizer)}, batch size {study.base_batch_size}"


def left_out(results: Results) -> str:
    """Say in a caption how many runs it does not show."""
    count = sum(run.status == "diverged" for run in results.runs)
    return f" Diverged runs ({count}) are left out." if count else ""


def _curve(norm: str, style: Style, runs: Sequence[Run], reading: Reading, digits: wording.Kind) -> list[Json]:
    """One norm's mean over seeds with the band from the lowest to the highest seed."""
    epochs = sorted({epoch.epoch for run in runs for epoch in run.epochs})
    seeds = {
        number: [
            value
            for run in runs
            for epoch in run.epochs
            if epoch.epoch == number and (value := reading(epoch)) is not None
        ]
        for number in epochs
    }
    epochs = [number for number in epochs if seeds[number]]
    if not epochs:
        return []
    low, high = [min(seeds[number]) for number in epochs], [max(seeds[number]) for number in epochs]
    middle = [mean(seeds[number]) for number in epochs]
    unseen: Json = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    band = [
        trace(norm, style, x=epochs, y=low, **unseen),
        trace(norm, style, x=epochs, y=high, fill="tonexty", fillcolor=style.band(), **unseen),
    ]
    # Markers at every epoch of a long training would be a smear: about a dozen tell the lines apart.
    line = trace(
        norm,
        style,
        x=epochs,
        y=middle,
        mode="lines+markers",
        customdata=[
            f"{wording.value(y, digits)} ({wording.value(a, digits)} to {wording.value(b, digits)}, "
            f"{wording.plural(len(seeds[number]), 'seed')})"
            for number, y, a, b in zip(epochs, middle, low, high, strict=True)
        ],
        hovertemplate=f"<b>{plain(norm)}</b>, epoch %{{x}}<br>%{{customdata}}<extra></extra>",
    )
    line["marker"] = line["marker"] | {"maxdisplayed": 12, "size": 7}
    return ([*band, line]) if any(len(values) > 1 for values in seeds.values()) else [line]


def _view(runs: Sequence[Run], look: dict[str, Style], reading: Reading) -> list[Json]:
    return [
        part
        for norm, style in look.items()
        for part in _curve(norm, style, [run for run in runs if run.norm == norm], reading, "metric")
    ]


def _mark_target(panel: Panel, results: Results) -> None:
    """Draw the target across the validation metric, where the target is one for that metric."""
    target = results.study.target
    if target.value is None or target.metric.removeprefix("val_") != results.study.main_metric:
        return
    level = {"y0": target.value, "y1": target.value, "x0": 0, "x1": 1, "xref": "paper"}
    panel.layout["shapes"] = [{"type": "line", "name": "target", "line": {"dash": "dot", "width": 1.5}, **level}]
    note = {"text": "target", "showarrow": False, "xanchor": "right", "yanchor": "top"}
    panel.layout["annotations"] = [{"xref": "paper", "x": 1, "y": target.value, **note}]


def learning_chart(results: Results) -> Chart | None:
    """Validation metric, training loss and validation loss by epoch, for one choice of regularizer and batch size."""
    study = results.study
    base = (study.base_regularizer, study.base_batch_size)
    conditions = dict.fromkeys((run.regularizer, run.batch_size) for run in results.runs)
    conditions = dict.fromkeys(
        key for key in sorted(conditions, key=lambda key: key != base) if finished(results, *key)
    )
    if not conditions:
        return None
    look = looks(results)
    metric = study.main_metric
    readings: list[tuple[str, Reading]] = [
        (
            f"validation {wording.label(metric)}",
            lambda epoch: epoch.val_metrics.get(f"val_{metric}", epoch.val_metrics.get(metric)),
        ),
        ("training loss", lambda epoch: epoch.train_loss),
        ("validation loss", lambda epoch: epoch.val_loss),
    ]
    panels: list[Panel] = []
    for title, reading in readings:
        views = [_view(finished(results, *condition), look, reading) for condition in conditions]
        if any(views):
            panels.append(Panel(title, views, {"xaxis": {"title": {"text": "epoch"}, "tickformat": "d"}, "yaxis": {}}))
    if not panels:
        return None
    _mark_target(panels[0], results)
    # Both losses on one scale, so that the eye can compare training with validation.
    losses = [i for i, panel in enumerate(panels) if panel.heading.endswith("loss")]
    spans = [
        span_of(value for i in losses for part in panels[i].views[view] for value in part["y"])
        for view in range(len(conditions))
    ]
    panels = [replace(panel, spans=spans) if i in losses else panel for i, panel in enumerate(panels)]
    norms = [norm for norm in look if any(run.norm == norm for key in conditions for run in finished(results, *key))]
    caption = (
        "Read how soon a line rises (metric) or falls (loss), and whether the validation loss turns up again: each "
        "line is the mean over seeds, its band the lowest and highest seed; losses exclude the L1/L2 penalty."
        + left_out(results)
    )
    names = [f"{wording.regularizer(regularizer)}, batch size {size}" for regularizer, size in conditions]
    return Chart("learning", "Learning curves", caption, panels, norms, "arm", names)
