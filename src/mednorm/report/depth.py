"""Charts along the depth of a network: gradients, and the statistics of each layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mednorm.report import wording
from mednorm.report.curves import base_named, base_runs, left_out
from mednorm.report.palette import Style, looks
from mednorm.report.plot import Chart, Json, Panel, layer_axis, log_axis, mean, plain, span_of, trace
from mednorm.results import Epoch, Results, Run

LayerReading = Callable[[Epoch], dict[str, float | None]]


def _ordered(runs: Sequence[Run], reading: LayerReading) -> list[str]:
    """Every layer of every run, first to last: a layer that only some networks have follows the one before it."""
    names: list[str] = []
    for run in runs:
        for epoch in run.epochs:
            before = -1
            for name in reading(epoch):
                if name not in names:
                    names.insert(before + 1, name)
                before = names.index(name)
    return names


def _by_depth(runs: Sequence[Run], look: dict[str, Style], which: int, reading: LayerReading) -> list[Json]:
    """One line a norm: mean over seeds of each layer's number in the first (0) or last (-1) epoch that has any."""
    traces = []
    for norm, style in look.items():
        told = [[found for epoch in run.epochs if (found := reading(epoch))] for run in runs if run.norm == norm]
        ends = [epochs[which] for epochs in told if epochs]
        averages = {name: mean(end.get(name) for end in ends) for name in _ordered(runs, reading)}
        points = [(name, value) for name, value in averages.items() if value is not None]
        if points:
            seeds = wording.plural(len(ends), "seed")
            traces.append(
                trace(
                    norm,
                    style,
                    mode="lines+markers",
                    x=[plain(name) for name, _ in points],
                    y=[value for _, value in points],
                    customdata=[[plain(name), f"{value:.3g}", seeds] for name, value in points],
                    hovertemplate=f"<b>{plain(norm)}</b>, %{{customdata[0]}}<br>%{{customdata[1]}} "
                    "(%{customdata[2]})<extra></extra>",
                )
            )
    return traces


def gradient_chart(results: Results) -> Chart | None:
    """Gradient norm of each weight, from the first layer to the last, in the first and in the last epoch."""
    runs = base_runs(results)
    look = looks(results)

    def reading(epoch: Epoch) -> dict[str, float | None]:
        return epoch.gradient_norms

    views = [_by_depth(runs, look, which, reading) for which in (0, -1)]
    if not any(views):
        return None
    names = layer_axis(_ordered(runs, reading))
    axis = log_axis(value for view in views for part in view for value in part["y"])
    panels = [
        Panel(f"gradient norm, {title}", [view], {"xaxis": names, "yaxis": axis}, 380)
        for title, view in zip(("first epoch", "last epoch"), views, strict=True)
    ]
    caption = (
        "Read from left (first layer) to right (last layer): a line that falls steeply towards the left is a gradient "
        "that vanishes on its way back; L2 norm of each weight's gradient, mean over the epoch's steps and over seeds, "
        f"{base_named(results)}." + left_out(results)
    )
    drawn = {part["meta"]["norm"] for view in views for part in view}
    return Chart("gradients", "Gradients by depth", caption, panels, [norm for norm in look if norm in drawn])


def layer_chart(results: Results) -> Chart | None:
    """Mean, variance and range of each layer's output, before normalization."""
    runs = base_runs(results)
    look = looks(results)
    readings: dict[str, LayerReading] = {
        "mean": lambda epoch: {name: layer.mean for name, layer in epoch.layers.items()},
        "variance": lambda epoch: {name: layer.variance for name, layer in epoch.layers.items()},
        "range": lambda epoch: {name: layer.range for name, layer in epoch.layers.items()},
    }
    panels: list[Panel] = []
    drawn: set[str] = set()
    for quantity, reading in readings.items():
        views = [_by_depth(runs, look, which, reading) for which in (0, -1)]
        values = [value for view in views for part in view for value in part["y"]]
        if values:
            axis = {"range": span_of(values), "zeroline": True} if quantity == "mean" else log_axis(values)
            panels.append(Panel(quantity, views, {"xaxis": layer_axis(_ordered(runs, reading)), "yaxis": axis}, 360))
            drawn |= {part["meta"]["norm"] for view in views for part in view}
    if not panels:
        return None
    caption = (
        "Read whether layers drift apart with depth or with training: mean, variance and range (maximum − minimum) of "
        "each layer's output before normalization on one training batch, averaged over channels and seeds, "
        f"{base_named(results)}; axes are the same in both epochs." + left_out(results)
    )
    norms = [norm for norm in look if norm in drawn]
    return Chart("layers", "Layer statistics", caption, panels, norms, "epoch", ["first epoch", "last epoch"])
