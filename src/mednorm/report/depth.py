"""Charts along the depth of a network: gradients, and the statistics of each layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mednorm.report.conditions import over
from mednorm.report.curves import base_named, base_runs, behind, left_out
from mednorm.report.palette import looks
from mednorm.report.plot import Chart, Json, Panel, layer_axis, log_axis, mean, plain, span_of, trace
from mednorm.results import Epoch, Results, Run

LayerReading = Callable[[Run], dict[str, float | None]]


def _ordered(runs: Sequence[Run], readings: Sequence[LayerReading]) -> list[str]:
    """Every layer of every run, first to last: a layer that only some networks have follows the one before it."""
    names: list[str] = []
    for run in runs:
        for reading in readings:
            before = -1
            for name in reading(run):
                if name not in names:
                    names.insert(before + 1, name)
                before = names.index(name)
    return names


def _in_epoch(which: int, read: Callable[[Epoch], dict[str, float | None]]) -> LayerReading:
    """Read the first (0) or last (-1) epoch that has any numbers."""

    def reading(run: Run) -> dict[str, float | None]:
        told = [found for epoch in run.epochs if (found := read(epoch))]
        return told[which] if told else {}

    return reading


def _by_depth(results: Results, runs: Sequence[Run], reading: LayerReading) -> list[Json]:
    """One line a norm: mean over its runs of each layer's number."""
    traces = []
    for norm, style in looks(results).items():
        mine = [run for run in runs if run.norm == norm and reading(run)]
        averages = {name: mean(reading(run).get(name) for run in mine) for name in _ordered(mine, [reading])}
        points = [(name, value) for name, value in averages.items() if value is not None]
        if points:
            traces.append(
                trace(
                    norm,
                    style,
                    mode="lines+markers",
                    x=[plain(name) for name, _ in points],
                    y=[value for _, value in points],
                    customdata=[[plain(name), f"{value:.3g}", behind(results, mine)] for name, value in points],
                    hovertemplate=f"<b>{plain(norm)}</b>, %{{customdata[0]}}<br>%{{customdata[1]}} "
                    "(%{customdata[2]})<extra></extra>",
                )
            )
    return traces


def gradient_chart(results: Results) -> Chart | None:
    """Gradient norm of each weight, from the first layer to the last: one panel a network, one choice a time."""
    networks = list(dict.fromkeys(results.study.networks)) or [""]
    runs = {network: base_runs(results, network=network) for network in networks}
    times: dict[str, LayerReading] = {
        "first step": lambda run: run.initial_gradient_norms,
        "first epoch": _in_epoch(0, lambda epoch: epoch.gradient_norms),
        "last epoch": _in_epoch(-1, lambda epoch: epoch.gradient_norms),
    }
    drawn = {
        time: {network: _by_depth(results, mine, reading) for network, mine in runs.items()}
        for time, reading in times.items()
    }
    times = {time: reading for time, reading in times.items() if any(drawn[time].values())}
    if not times:
        return None
    parts = [part for time in times for view in drawn[time].values() for part in view]
    axis = log_axis(value for part in parts for value in part["y"])
    panels = [
        Panel(
            f"gradient norm, {network}" if len(networks) > 1 else "gradient norm",
            [drawn[time][network] for time in times],
            {"xaxis": layer_axis(_ordered(runs[network], list(times.values()))), "yaxis": axis},
            400,
        )
        for network in networks
        if any(drawn[time][network] for time in times)
    ]
    caption = (
        "Read from left (first layer) to right (last layer): a line that falls steeply towards the left is a gradient "
        "that vanishes on its way back; L2 norm of each weight's gradient, in the very first step or mean over an "
        f"epoch's steps, mean over {over(results.study)}, {base_named(results)}; axes are the same in every choice."
        + left_out(results)
    )
    found = {part["meta"]["norm"] for part in parts}
    norms = [norm for norm in looks(results) if norm in found]
    return Chart("gradients", "Gradients by depth", caption, panels, norms, "gradients of the", list(times))


def layer_chart(results: Results) -> Chart | None:
    """Mean, variance and range of each layer's output, before normalization."""
    runs = base_runs(results)
    panels: list[Panel] = []
    drawn: set[str] = set()
    for quantity in ("mean", "variance", "range"):
        readings = [_in_epoch(which, _statistic(quantity)) for which in (0, -1)]
        views = [_by_depth(results, runs, reading) for reading in readings]
        values = [value for view in views for part in view for value in part["y"]]
        if values:
            axis = {"range": span_of(values), "zeroline": True} if quantity == "mean" else log_axis(values)
            panels.append(Panel(quantity, views, {"xaxis": layer_axis(_ordered(runs, readings)), "yaxis": axis}, 360))
            drawn |= {part["meta"]["norm"] for view in views for part in view}
    if not panels:
        return None
    caption = (
        "Read whether layers drift apart with depth or with training: mean, variance and range (maximum − minimum) of "
        "each layer's output before normalization on one training batch, averaged over channels, then "
        f"over {over(results.study)}, {base_named(results)}; axes are the same in both epochs." + left_out(results)
    )
    norms = [norm for norm in looks(results) if norm in drawn]
    return Chart("layers", "Layer statistics", caption, panels, norms, "epoch", ["first epoch", "last epoch"])


def _statistic(name: str) -> Callable[[Epoch], dict[str, float | None]]:
    return lambda epoch: {layer: getattr(found, name) for layer, found in epoch.layers.items()}
