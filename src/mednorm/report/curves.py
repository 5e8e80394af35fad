"""Learning curves: what happened epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mednorm.report import wording
from mednorm.report.conditions import Condition, base, over, several_folds
from mednorm.report.palette import Style, looks
from mednorm.report.plot import Chart, Json, Panel, mean, plain, span_of, trace
from mednorm.results import Epoch, Results, Run

Reading = Callable[[Epoch], float | None]


def finished(results: Results, condition: Condition) -> list[Run]:
    """List the runs of these arms that came to their end."""
    return [run for run in results.runs if run.status == "finished" and run.epochs and Condition.of(run) == condition]


def base_runs(results: Results, **changed: str) -> list[Run]:
    """List the finished runs of the arms that differ from the base one in nothing but the norm, and what is changed."""
    return finished(results, base(results.study)._replace(**changed))  # type: ignore[arg-type]


def base_named(results: Results) -> str:
    """Say in a caption which arms those are."""
    return f"with {', '.join(base(results.study).words(results.study))}"


def behind(results: Results, runs: Sequence[Run]) -> str:
    """Say how many runs stand behind a mean: seeds, or runs where each seed has one in every fold."""
    return wording.plural(len(runs), "run" if several_folds(results.study) else "seed")


def left_out(results: Results) -> str:
    """Say in a caption how many runs it does not show."""
    count = sum(run.status == "diverged" for run in results.runs)
    return f" Diverged runs ({count}) are left out." if count else ""


def _curve(norm: str, style: Style, runs: Sequence[Run], reading: Reading, one: str) -> list[Json]:
    """One norm's mean over its runs with the band from the lowest to the highest; `one` is what a run is called."""
    epochs = sorted({epoch.epoch for run in runs for epoch in run.epochs})
    values = {
        number: [
            value
            for run in runs
            for epoch in run.epochs
            if epoch.epoch == number and (value := reading(epoch)) is not None
        ]
        for number in epochs
    }
    epochs = [number for number in epochs if values[number]]
    if not epochs:
        return []
    low, high = [min(values[number]) for number in epochs], [max(values[number]) for number in epochs]
    middle = [mean(values[number]) for number in epochs]
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
            f"{wording.value(y, 'metric')} ({wording.value(a, 'metric')} to {wording.value(b, 'metric')}, "
            f"{wording.plural(len(values[number]), one)})"
            for number, y, a, b in zip(epochs, middle, low, high, strict=True)
        ],
        hovertemplate=f"<b>{plain(norm)}</b>, epoch %{{x}}<br>%{{customdata}}<extra></extra>",
    )
    line["marker"] = line["marker"] | {"maxdisplayed": 12, "size": 7}
    return ([*band, line]) if any(len(found) > 1 for found in values.values()) else [line]


def _view(runs: Sequence[Run], look: dict[str, Style], reading: Reading, one: str) -> list[Json]:
    return [
        part
        for norm, style in look.items()
        for part in _curve(norm, style, [run for run in runs if run.norm == norm], reading, one)
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


def _epoch_axis(epochs: int) -> Json:
    """Tick whole epochs alone: left to itself plotly would print 2 for 1.5 in a short training."""
    ticks = {"dtick": 1} if epochs <= 10 else {}
    return {"title": {"text": "epoch"}, "tickformat": "d", **ticks}


def learning_chart(results: Results) -> Chart | None:
    """Validation metric, training loss and validation loss by epoch, for one choice of all but the norm."""
    study = results.study
    found = dict.fromkeys(Condition.of(run) for run in results.runs)
    first = base(study)
    conditions = [key for key in sorted(found, key=lambda key: key != first) if finished(results, key)]
    if not conditions:
        return None
    look = looks(results)
    metric, one = study.main_metric, "run" if several_folds(study) else "seed"
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
        views = [_view(finished(results, condition), look, reading, one) for condition in conditions]
        if any(views):
            panels.append(Panel(title, views, {"xaxis": _epoch_axis(study.epochs), "yaxis": {}}))
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
    norms = [norm for norm in look if any(run.norm == norm for key in conditions for run in finished(results, key))]
    caption = (
        "Read how soon a line rises (metric) or falls (loss), and whether the validation loss turns up again: each "
        f"line is the mean over {over(study)}, its band the lowest and highest {one}; losses exclude the L1/L2 penalty."
        + left_out(results)
    )
    names = [", ".join(condition.words(study)) for condition in conditions]
    return Chart("learning", "Learning curves", caption, panels, norms, "arm", names)
