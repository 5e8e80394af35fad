"""The pieces every chart is made of. A figure is plain data: the page's script adds the theme's colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mednorm.report.palette import Style
from mednorm.results import Estimate

Json = dict[str, Any]
PANEL_HEIGHT = 320


@dataclass(frozen=True)
class Panel:
    """One set of axes. `views` holds its traces, one list for each choice the chart offers (often just one).

    `heading` stands above the axes (empty: the chart's own title is enough), `spans` gives the y axis of each view.
    """

    heading: str
    views: list[list[Json]]
    layout: Json
    height: int = PANEL_HEIGHT
    spans: list[list[float] | None] | None = None


@dataclass(frozen=True)
class Chart:
    """Panels that share a heading, a legend, a caption and perhaps a choice.

    `norms` are the entries of the legend; `styles` holds the looks of those that are no norm of the study.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel]
    norms: list[str]
    choice: str = ""
    choices: list[str] = field(default_factory=list)
    styles: dict[str, Style] = field(default_factory=dict)

    def drawing(self) -> Json:
        """What the page's script needs."""
        return {
            "key": self.key,
            "panels": [{"views": panel.views, "layout": panel.layout, "spans": panel.spans} for panel in self.panels],
        }


def plain(text: str) -> str:
    """Make a name from the data safe for plotly, which reads a little HTML in its labels.

    >>> plain("<b>conv</b> & more")
    '&lt;b&gt;conv&lt;/b&gt; &amp; more'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def mean(values: Iterable[float | None]) -> float | None:
    """Average what is there; nothing there gives nothing."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def error_bar(estimates: Sequence[Estimate]) -> Json:
    """Reach from each mean to the ends of its interval; no bar where there is no interval."""
    up, down = [], []
    for given in estimates:
        known = given.mean is not None and given.low is not None and given.high is not None
        up.append(given.high - given.mean if known else None)  # type: ignore[operator]
        down.append(given.mean - given.low if known else None)  # type: ignore[operator]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 4}


def trace(norm: str, style: Style, **parts: Any) -> Json:
    """Start a trace in the look of its norm; the legend hides and shows it by `meta.norm`."""
    return {
        "type": "scatter",
        "name": plain(norm),
        "meta": {"norm": norm},
        "showlegend": False,
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9, "line": {"width": 2 * (not style.filled)}},
        **parts,
    }


def span_of(values: Iterable[float | None]) -> list[float] | None:
    """Span a linear axis over all values, with a little room."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    low, high = min(present), max(present)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return [low - room, high + room]


def log_axis(values: Iterable[float | None]) -> Json:
    """Span a logarithmic axis over all positive values, so that panels and views can be compared.

    Whole powers of ten are labelled, or 1, 2 and 5 of each where the axis covers fewer than two powers.
    """
    span = span_of(math.log10(value) for value in values if value is not None and value > 0)
    if span is None:
        return {"type": "log"}
    powers = range(math.floor(span[0]), math.ceil(span[1]) + 1)
    if span[1] - span[0] > 2:
        ticks = [(p, 1) for p in powers if p % math.ceil(len(powers) / 7) == 0]
    else:
        ticks = [(p, step) for p in powers for step in ((1, 2, 5) if span[1] - span[0] > 0.4 else range(1, 10))]
    # From strings, as 10.0**-5 is not quite 1e-5.
    shown = [float(f"{step}e{p}") for p, step in ticks]
    texts = [
        f"{value:g}" if 1e-3 <= value < 1e5 else _power(step, p) for value, (p, step) in zip(shown, ticks, strict=True)
    ]
    return {"type": "log", "range": span, "tickmode": "array", "tickvals": shown, "ticktext": texts}


def _power(step: int, power: int) -> str:
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if step == 1 else f"{step}·10{raised}"


def short(name: str, most: int = 14) -> str:
    """Keep both ends of a long name.

    >>> short("encoder.block3.conv2.weight")
    'encoder…weight'
    """
    if len(name) <= most:
        return name
    front = most // 2
    return f"{name[:front]}…{name[len(name) - (most - front - 1) :]}"


def layer_axis(names: Sequence[str], most: int = 24) -> Json:
    """A category axis in the order of the layers; shared ends of names are cut and, where crowded, labels thinned."""
    step = max(1, math.ceil(len(names) / most))
    parts = [name.split(".") for name in names]
    head = tail = 0
    if len(parts) > 1:
        least = min(len(part) for part in parts) - 1
        while head < least and len({part[head] for part in parts}) == 1:
            head += 1
        while tail < least - head and len({part[len(part) - 1 - tail] for part in parts}) == 1:
            tail += 1
    shown = [short(".".join(part[head : len(part) - tail])) for part in parts]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [plain(name) for name in names],
        "tickmode": "array",
        "tickvals": [plain(name) for name in names[::step]],
        "ticktext": [plain(name) for name in shown[::step]],
        "tickangle": -60 if len(names) > 5 else 0,
    }
