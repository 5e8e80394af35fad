"""Charts of an examination: sites and noise by layer, and the channels of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mednorm.report import wording
from mednorm.report.palette import Style, styles
from mednorm.report.plot import Chart, Json, Panel, layer_axis, log_axis, plain, trace

ALL = "all images"
_DOTS = "#2E93D1"  # which is seen on white and on black, one over the other
_LARGE = 5.0  # σ; beyond it a linear axis shows nothing of the other layers


def charts(document: dict[str, Any]) -> list[Chart]:
    """Make every chart that there are numbers for."""
    made = [gap_chart(document), site_chart(document), channel_chart(document), noise_chart(document)]
    return [chart for chart in made if chart is not None]


def gap_chart(document: dict[str, Any]) -> Chart | None:
    """Which layers the train/eval gap comes from."""
    layers = [layer for layer in document["layers"] if layer["share"] is not None]
    if not layers:
        return None
    names = [layer["name"] for layer in layers]
    style = styles(["batch"])["batch"]
    bars: Json = {
        "type": "bar",
        "name": "share of the gap",
        "meta": {"norm": "gap"},
        "showlegend": False,
        "marker": {"color": style.colour, "opacity": 0.85},
        "x": [plain(name) for name in names],
        "y": [100 * layer["share"] for layer in layers],
        "error_x": {"type": "data", "array": [], "arrayminus": []},
        "hovertemplate": "<b>%{x}</b><br>%{y:.3g} %<extra></extra>",
    }
    layout: Json = {"xaxis": layer_axis(names), "yaxis": {"title": {"text": "% of the gap"}, "rangemode": "tozero"}}
    caption = (
        "Read which layers the difference between the evaluation modes comes from: the share of it that goes when "
        "one layer alone takes the statistics of the batch in place of the running ones. Shares do not add up to "
        "100 %: of two bad layers in a row either may explain nearly all of it."
    )
    return Chart("gap", "Where the train/eval gap comes from", caption, [Panel("", [[bars]], layout, 380)], [])


def site_chart(document: dict[str, Any]) -> Chart | None:
    """Distance from the running statistics by layer, of all images and of each site."""
    layers = [layer for layer in document["layers"] if layer["distance"] is not None]
    if not layers:
        return None
    names = [layer["name"] for layer in layers]
    sites = sorted({site for layer in layers for site in layer["sites"]})
    called = {site: f"{site} ({wording.of_patients(document, site)})" for site in sites}
    look = {ALL: Style("#8A8A8A", "circle-open", "dot"), **_site_styles(list(called.values()))}
    spreads = {ALL: [layer["distance"] for layer in layers]}
    for site in sites:
        spreads[called[site]] = [(layer["sites"].get(site) or {}).get("distance") for layer in layers]
    lines, values = [], []
    for who, given in spreads.items():
        middle = [None if spread is None else spread["median"] for spread in given]
        values += middle
        lines.append(
            trace(
                who,
                look[who],
                mode="lines+markers" if len(layers) <= 60 else "lines",
                x=[plain(name) for name in names],
                y=middle,
                customdata=[
                    wording.MISSING if spread is None else f"{_text(spread['low'])} to {_text(spread['high'])}"
                    for spread in given
                ],
                hovertemplate=(
                    f"<b>{plain(who)}</b>, %{{x}}<br>%{{y:.3g}} σ, 90 % of the channels %{{customdata}}<extra></extra>"
                ),
            )
        )
    far = max((value for value in values if value is not None), default=0) > _LARGE
    vertical: Json = log_axis(values) if far else {"rangemode": "tozero"}
    layout = {"xaxis": layer_axis(names), "yaxis": vertical | {"title": {"text": "distance, σ"}}}
    caption = (
        "Read from left to right, in the order of the network, how far what reaches each layer is from the running "
        "statistics that it normalizes with: 0 where they agree, 1 for an offset of one standard deviation; median "
        "over the layer’s channels."
        + (
            " A site that is above the others from the first layer on differs in its images. In brackets stands how "
            "many of them there are: few say little, and as little many of few patients."
            if sites
            else ""
        )
    )
    title = "Sites against the running statistics" if sites else "Distance from the running statistics"
    return Chart("sites", title, caption, [Panel("", [lines], layout, 420)], list(look) if sites else [], styles=look)


def channel_chart(document: dict[str, Any]) -> Chart | None:
    """Each channel's offset and scale against its running statistics; the layers with the gravest findings first."""
    order = ["error", "warning", "info", None]
    layers = [layer for layer in document["layers"] if layer["running_mean"] and layer["running_var"] and layer["mean"]]
    layers.sort(key=lambda layer: (order.index(layer["severity"]), -((layer["distance"] or {}).get("median") or 0)))
    if not layers:
        return None
    style = styles(["batch"])["batch"]
    aim = Style("#D55E00", "cross", "solid")
    views = []
    for layer in layers:
        offsets, scales = channels(layer)
        seen = trace(
            "channels",
            style,
            mode="markers",
            x=offsets,
            y=scales,
            hovertemplate="channel %{pointNumber}<br>offset %{x:.3g} σ<br>scale %{y:.3g}<extra></extra>",
        )
        seen["marker"] = {"color": _DOTS, "size": 7, "opacity": 0.75}
        expected = trace(
            "expected", aim, mode="markers", x=[0], y=[1], hovertemplate="the running statistics<extra></extra>"
        )
        expected["marker"] = {"color": aim.colour, "size": 13, "symbol": "cross-thin-open", "line": {"width": 3}}
        views.append([seen, expected])
    layout: Json = {
        "xaxis": {"title": {"text": "offset: (mean − running mean) / running std"}, "zeroline": True},
        "yaxis": {"title": {"text": "std / running std"}, "type": "log", "zeroline": False},
    }
    choices = [layer["name"] + (f" ({layer['severity']})" if layer["severity"] else "") for layer in layers]
    caption = (
        "One dot a channel of the layer chosen: how far its mean is from the running mean, and how many times its "
        "standard deviation is the running one. Read how far the cloud is from the cross, where all of it would be if "
        "the running statistics were those of these images: to the left or right lies an offset, above or below a "
        "wrong scale. Layers with findings come first."
    )
    look = {"channels": Style(style.colour, "circle", ""), "expected": aim}
    return Chart(
        "channels", "Channels of each layer", caption, [Panel("", views, layout, 440)], [], "layer", choices, look
    )


def channels(layer: dict[str, Any]) -> tuple[list[float | None], list[float | None]]:
    """Return each channel's offset in running standard deviations, and its standard deviation over the running one.

    None where either is not finite, or a variance is negative.
    """
    offsets: list[float | None] = []
    scales: list[float | None] = []
    columns = (layer["mean"], layer["variance"], layer["running_mean"], layer["running_var"])
    for mean, variance, running_mean, running_var in zip(*columns, strict=True):
        known = None not in (mean, variance, running_mean, running_var)
        if not known or running_var + layer["eps"] <= 0 or variance + layer["eps"] <= 0:
            offsets.append(None)
            scales.append(None)
            continue
        std = math.sqrt(running_var + layer["eps"])
        offsets.append(_rounded((mean - running_mean) / std))
        scales.append(_rounded(math.sqrt(variance + layer["eps"]) / std))
    return offsets, scales


def noise_chart(document: dict[str, Any]) -> Chart | None:
    """Noise of a batch's mean and variance by layer, at each batch size; the training's first."""
    layers = [layer for layer in document["layers"] if layer["noise"]]
    if not layers:
        return None
    used = document["batch_size"]
    known = {at["batch_size"] for layer in layers for at in layer["noise"]}
    sizes = sorted(known, key=lambda size: (size != used, size))
    names = [layer["name"] for layer in layers]
    quantities = {"mean": "noise of the mean, σ", "variance": "noise of the variance, share"}
    look = dict(zip(quantities, (Style("#0072B2", "circle", "solid"), Style("#E69F00", "square", "dash")), strict=True))
    views = []
    for size in sizes:
        at: list[Json] = [next((at for at in layer["noise"] if at["batch_size"] == size), {}) for layer in layers]
        views.append(
            [
                trace(
                    key,
                    look[key],
                    mode="lines+markers" if len(layers) <= 60 else "lines",
                    x=[plain(name) for name in names],
                    y=[each.get(key) for each in at],
                    customdata=[_text(each.get("effective_samples")) for each in at],
                    hovertemplate=(
                        f"<b>%{{x}}</b><br>{title} %{{y:.3g}}<br>%{{customdata}} independent values<extra></extra>"
                    ),
                )
                for key, title in quantities.items()
            ]
        )
    layout: Json = {"xaxis": layer_axis(names), "yaxis": {"title": {"text": "noise"}, "rangemode": "tozero"}}
    caption = (
        "Read how far the statistics of one training batch scatter about those of all images: of its mean in standard "
        "deviations of the values, of its variance as a share of it; medians over channels. Voxels of one image "
        "resemble each other, so it falls with the number of images and hardly with their size."
    )
    choices = [f"{size}{' (this training)' if size == used else ''}" for size in sizes]
    panel = Panel("", views, layout, 420)
    return Chart("noise", "Noise of the batch statistics", caption, [panel], list(look), "batch size", choices, look)


def _site_styles(sites: Sequence[str]) -> dict[str, Style]:
    """Give sites colours, markers and dashes; the grey of all images is none of them."""
    drawn = styles(["batch", "group", "instance", *(f"other {i}" for i in range(max(0, len(sites) - 3)))])
    return dict(zip(sites, drawn.values(), strict=False))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _text(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:.3g}"
