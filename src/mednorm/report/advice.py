"""One self-contained page from an advice on batch sizes: memory, noise and time against it. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from plotly.offline import get_plotlyjs

from mednorm.report import wording
from mednorm.report.page import fingerprint, part, templates, write_page
from mednorm.report.palette import Style
from mednorm.report.plot import Chart, Json, Panel, log_axis, plain, trace
from mednorm.report.table import Cell, Column, Table

_GB = 1e9
_LAYERS = 24  # lines beyond which a chart shows nothing
PREDICTED, MEASURED, LIMIT = "predicted", "measured", "limit"
WORST, LAYERS, ENOUGH = "noisiest layer", "other layers", "enough below"
_STYLES = {
    PREDICTED: Style("#0072B2", "circle", "solid"),
    MEASURED: Style("#E69F00", "diamond", "solid"),
    LIMIT: Style("#D55E00", "circle-open", "dash"),
    WORST: Style("#0072B2", "circle", "solid"),
    LAYERS: Style("#8A8A8A", "circle-open", "dot"),
    ENOUGH: Style("#D55E00", "circle-open", "dash"),
}


def write_advice(document: Json, path: Path) -> Path:
    """Write one HTML file that shows an advice; it needs no network and no other file.

    Args:
        document: what `Advice.to_dict` gives, or its JSON read back.
        path: the file to write.

    Returns:
        The file written.

    Raises:
        RunError: it cannot be written there.

    """
    return write_page(path, _render(document))


def charts(document: Json) -> list[Chart]:
    """Make the charts: memory and time always, noise where a layer has some."""
    made = [memory_chart(document), noise_chart(document), time_chart(document)]
    return [chart for chart in made if chart is not None]


def memory_chart(document: Json) -> Chart:
    """Peak memory against batch size, measured and predicted, below the limit."""
    memory, measured, limit = document["memory"], document["measured"], document["limit"]
    sizes = shown_sizes(document)
    peaks = [max(memory["floor"], memory["fixed"] + memory["per_image"] * size) / _GB for size in sizes]
    seen = [each["peak"] / _GB for each in measured]
    hover = "%{x} images<br>%{y:.3g} GB<extra></extra>"
    lines = [
        trace(PREDICTED, _STYLES[PREDICTED], mode="lines", x=sizes, y=peaks, hovertemplate=hover),
        trace(
            MEASURED,
            _STYLES[MEASURED],
            mode="markers",
            x=[each["batch_size"] for each in measured],
            y=seen,
            hovertemplate=hover,
        ),
        _level(LIMIT, sizes, limit / _GB, "limit %{y:.3g} GB<extra></extra>"),
    ]
    layout: Json = {
        "xaxis": _sizes_axis(sizes),
        "yaxis": log_axis([*peaks, *seen, limit / _GB]) | {"title": {"text": "peak of a training step, GB"}},
    }
    checked = memory["error"]
    caption = (
        "Read where the line crosses the limit: the peak of a whole training step, with all that the process holds. "
        + (
            "Too few sizes could be measured to check the line."
            if checked is None
            else f"The line without its largest size is off there by {wording.number(100 * checked, 1, signed=True)} %."
        )
    )
    names = [PREDICTED, MEASURED, LIMIT]
    return Chart("memory", "Memory", caption, [Panel("", [lines], layout, 400)], names, styles=_look(names))


def noise_chart(document: Json) -> Chart | None:
    """Noise of the batch statistics against batch size, layer by layer; nothing where no layer takes any."""
    noise = document["noise"]
    if not noise["layers"]:
        return None
    sizes = noise["sizes"]
    ranked = sorted(noise["layers"].items(), key=lambda pair: -(pair[1][0] or 0))
    lines = [
        trace(
            WORST if place == 0 else LAYERS,
            _STYLES[WORST if place == 0 else LAYERS],
            mode="lines+markers" if place == 0 else "lines",
            x=sizes,
            y=values,
            hovertemplate=f"<b>{plain(name)}</b><br>%{{x}} images<br>%{{y:.3g}} σ<extra></extra>",
        )
        for place, (name, values) in enumerate(ranked[:_LAYERS])
    ][::-1]
    lines.append(_level(ENOUGH, sizes, noise["enough"], "enough below %{y:.3g} σ<extra></extra>"))
    values = [value for _, layer in ranked[:_LAYERS] for value in layer]
    layout: Json = {
        "xaxis": _sizes_axis(sizes),
        "yaxis": log_axis([*values, noise["enough"]]) | {"title": {"text": "noise of the statistics, σ"}},
    }
    caption = (
        "Read from which size on every line is below the dashed one: how far the mean and variance of a batch lie from "
        "those of all images, in standard deviations, where the values of one image are correlated; the median over a "
        f"layer’s channels. It rests on {wording.plural(document['images'], 'image')}."
    )
    names = [WORST, *[LAYERS] * (len(ranked) > 1), ENOUGH]
    return Chart("noise", "Noise", caption, [Panel("", [lines], layout, 400)], names, styles=_look(names))


def time_chart(document: Json) -> Chart:
    """Time of an image against batch size."""
    measured = document["measured"]
    sizes, times = ([each[key] for each in measured] for key in ("batch_size", "seconds_per_image"))
    points = trace(
        MEASURED,
        _STYLES[MEASURED],
        mode="lines+markers",
        x=sizes,
        y=[1000 * each for each in times],
        hovertemplate="%{x} images<br>%{y:.3g} ms an image<extra></extra>",
    )
    layout: Json = {
        "xaxis": _sizes_axis(sizes),
        "yaxis": {"title": {"text": "milliseconds an image"}, "rangemode": "tozero"},
    }
    caption = "Read what a larger batch gains: the median time of a training step over its images, on this machine."
    return Chart("time", "Time", caption, [Panel("", [[points]], layout)], [])


def shown_sizes(document: Json) -> list[int]:
    """Return powers of two up to one beyond what fits, is enough or was measured, with what is advised between."""
    ends = [each["batch_size"] for each in document["measured"]]
    ends += [document[key] or 1 for key in ("smallest_sufficient", "recommended")]
    ends += [min(document["largest_that_fits"], 4096)]
    powers = {2**power for power in range(14) if 2**power < 2 * max(ends)}
    return sorted(powers | {2 * max(powers)} | {end for end in ends if end})


def _render(document: Json) -> str:
    plotly, script = get_plotlyjs(), part("page.js")
    drawn = charts(document)
    return (
        templates()
        .get_template("advice.html.j2")
        .render(
            advice=document,
            table=_table(document),
            charts=drawn,
            drawings=[chart.drawing() for chart in drawn],
            gigabytes=_gigabytes,
            css=part("style.css"),
            plotly=plotly,
            script=script,
            hashes=f"{fingerprint(plotly)} {fingerprint(script)}",
        )
    )


def _table(document: Json) -> Table:
    """Lay out a row for each size that was measured or is judged."""
    known = {each["batch_size"]: each for each in document["measured"]}
    noise, memory = document["noise"], document["memory"]
    worst = {
        size: max((layer[place] for layer in noise["layers"].values() if layer[place] is not None), default=None)
        for place, size in enumerate(noise["sizes"])
    }
    rows = []
    for size in shown_sizes(document):
        peak = (
            known[size]["peak"] if size in known else max(memory["floor"], memory["fixed"] + memory["per_image"] * size)
        )
        seconds = known[size]["seconds_per_image"] if size in known else None
        notes = ("measured",) if size in known else ("predicted",)
        fits = "yes" if size <= document["largest_that_fits"] else "no"
        level = worst.get(size)
        rows.append(
            [
                Cell(str(size), ("advised",) if size == document["recommended"] else (), str(size)),
                Cell(_gigabytes(peak), notes, str(peak)),
                Cell(fits, (), fits),
                Cell(wording.number(level, 2), (), "" if level is None else str(level)),
                Cell(wording.value(seconds, "seconds"), (), "" if seconds is None else str(seconds)),
            ]
        )
    columns = [
        Column("images"),
        Column("peak, GB"),
        Column("fits", numeric=False),
        Column("noise, σ", "noisiest layer"),
        Column("seconds an image"),
    ]
    return Table(columns, rows)


def _gigabytes(size: float) -> str:
    return f"{size / _GB:.3g}"


def _level(name: str, sizes: list[int], value: float, hover: str) -> Json:
    ends = [min(sizes), max(sizes)]
    return trace(name, _STYLES[name], mode="lines", x=ends, y=[value, value], hovertemplate=hover)


def _sizes_axis(sizes: list[int]) -> Json:
    """A doubling scale with whole powers of two on it."""
    powers = [2**power for power in range(14) if min(sizes) <= 2**power <= max(sizes)]
    step = 2 if len(powers) > 9 else 1
    return {
        "type": "log",
        "title": {"text": "images in a batch (doubling scale)"},
        "tickmode": "array",
        "tickvals": powers[::step],
        "ticktext": [str(power) for power in powers[::step]],
    }


def _look(names: list[str]) -> dict[str, Style]:
    return {name: _STYLES[name] for name in names}
