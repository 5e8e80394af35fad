"""Charts of a metric against a size: batch size, share of the training data, with either kind of statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mednorm.report import wording
from mednorm.report.conditions import arms_like_base, trained_on
from mednorm.report.measures import Quantity, bars, main_measure, present
from mednorm.report.palette import Style, looks
from mednorm.report.plot import Chart, Json, Panel, error_bar, plain, trace
from mednorm.results import ArmSummary, Estimate, Results

_NUDGED = "points are moved a little sideways so that bars do not hide each other"
Place = Callable[[ArmSummary], float]


@dataclass(frozen=True)
class _Line:
    """One line: its name, its look, and where its estimates stand."""

    name: str
    style: Style
    points: list[tuple[float, Estimate]]


@dataclass(frozen=True)
class _Axis:
    """The axis of sizes: its title, how a size is printed on it, and how it is named where one points at it."""

    title: str
    tick: Callable[[float], str]
    named: str


_BATCH_SIZE = _Axis("batch size (doubling scale)", lambda size: f"{size:g}", "batch size %{customdata[0]}")


def batch_size_chart(results: Results) -> Chart | None:
    """Test metric against batch size, one line a norm; nothing where only one batch size was run."""
    arms = arms_like_base(results, "batch_size")
    measure = main_measure(results, arms)
    lines = _by_norm(results, arms, _batch_size, measure.quantity)
    if len(_places(lines)) < 2:
        return None
    caption = (
        f"Read how {measure.title} changes from small to large batches: each point is the mean over seeds of the "
        f"network that validation chose, with {wording.regularizer(results.study.base_regularizer)}; {measure.bars}, "
        f"and {_NUDGED}."
    )
    panel = _panel(lines, _BATCH_SIZE, measure.title)
    return Chart("batch-size", "Batch size", caption, [panel], [line.name for line in lines])


def modes_chart(results: Results) -> Chart | None:
    """Test metric with running and with batch statistics against batch size; nothing where no arm has both."""
    arms, key = arms_like_base(results, "batch_size"), f"test_{results.study.main_metric}"
    judged_twice = list(dict.fromkeys(arm.norm for arm in arms if present(arm, lambda arm: arm.batch_metrics.get(key))))
    if not judged_twice:
        return None
    look = looks(results)
    running = _by_norm(results, arms, _batch_size, lambda arm: arm.metrics.get(key))
    lines: list[_Line] = []
    gaps: list[_Line] = []
    for line in running:
        lines.append(line)
        if line.name in judged_twice:
            mine = [arm for arm in arms if arm.norm == line.name]
            lines.append(
                _Line(
                    f"{line.name}, batch statistics",
                    _hollow(line.style),
                    _points(mine, _batch_size, lambda arm: arm.batch_metrics.get(key)),
                )
            )
            gaps.append(_Line(line.name, line.style, _points(mine, _batch_size, lambda arm: arm.mode_gap.get(key))))
    title = wording.label(key)
    panels = [_panel(lines, _BATCH_SIZE, title, heading=title)]
    if any(line.points for line in gaps):
        panels.append(
            _panel(gaps, _BATCH_SIZE, "difference", heading="running − batch statistics", zero=True, signed=True)
        )
    caption = (
        "Read how far the hollow points named “batch statistics” lie from the points of the same norm: the same "
        "networks, judged with the statistics of test batches of the training size in place of running ones. A norm "
        "that keeps no running statistics has one line. The second panel shows the difference, paired by seed; "
        f"{bars(given for line in lines for _, given in line.points)}, and {_NUDGED}."
    )
    hollow = {line.name: line.style for line in lines if line.name not in look}
    return Chart("modes", "Evaluation modes", caption, panels, [line.name for line in lines], styles=hollow)


def shares_chart(results: Results) -> Chart | None:
    """Test metric and generalization gap against the share of the training data; nothing where there is one share."""
    arms = arms_like_base(results, "train_share")
    found = {norm: {arm.train_share for arm in arms if arm.norm == norm} for norm in looks(results)}
    arms = [arm for arm in arms if len(found[arm.norm]) > 1]
    measure = main_measure(results, arms)
    axis = _Axis(
        f"share of the training {trained_on(results.study)} (doubling scale)",
        wording.share,
        "%{customdata[0]} of the training data",
    )
    quantities: list[tuple[str, Quantity]] = [
        (measure.title, measure.quantity),
        ("generalization gap", lambda arm: arm.generalization_gap),
    ]
    panels: list[Panel] = []
    drawn: list[_Line] = []
    for heading, quantity in quantities:
        lines = _by_norm(results, arms, lambda arm: arm.train_share, quantity)
        if len(_places(lines)) > 1:
            is_gap = bool(panels)
            title = f"train − test {wording.label(results.study.main_metric)}" if is_gap else heading
            panels.append(_panel(lines, axis, title, heading=heading, zero=is_gap, signed=is_gap))
            drawn += lines
    if not panels:
        return None
    caption = (
        f"Read whether a norm keeps more of its {measure.title} where there is less to learn from, and how the "
        "generalization gap grows: mean over seeds; the number of training steps is the same at every share; "
        f"{measure.bars}, and {_NUDGED}."
    )
    norms = list(dict.fromkeys(line.name for line in drawn))
    return Chart("shares", "Less training data", caption, panels, norms)


def _batch_size(arm: ArmSummary) -> float:
    return arm.batch_size


def _hollow(style: Style) -> Style:
    return replace(style, symbol=f"{style.symbol.removesuffix('-open')}-open", dash="dot")


def _points(arms: Iterable[ArmSummary], place: Place, quantity: Quantity) -> list[tuple[float, Estimate]]:
    ordered = sorted(arms, key=place)
    return [(place(arm), given) for arm in ordered if (given := present(arm, quantity)) is not None]


def _by_norm(results: Results, arms: list[ArmSummary], place: Place, quantity: Quantity) -> list[_Line]:
    """One line a norm, in the study's order; a norm without a point has none."""
    lines = [
        _Line(norm, style, _points([arm for arm in arms if arm.norm == norm], place, quantity))
        for norm, style in looks(results).items()
    ]
    return [line for line in lines if line.points]


def _places(lines: Iterable[_Line]) -> list[float]:
    return sorted({place for line in lines for place, _ in line.points})


def _panel(
    lines: Sequence[_Line], axis: _Axis, title: str, *, heading: str = "", zero: bool = False, signed: bool = False
) -> Panel:
    """Draw lines over a doubling scale, each moved a little so that bars do not hide each other."""
    places = _places(lines)
    traces = []
    for number, line in enumerate(lines):
        nudge = 2 ** (0.07 * (number - (len(lines) - 1) / 2))
        shown = [(axis.tick(place), given) for place, given in line.points]
        traces.append(
            trace(
                line.name,
                line.style,
                mode="lines+markers",
                x=[place * nudge for place, _ in line.points],
                y=[given.mean for _, given in line.points],
                error_y=error_bar([given for _, given in line.points]),
                customdata=[[text, wording.estimate(given, "metric", signed=signed)] for text, given in shown],
                hovertemplate=f"<b>{plain(line.name)}</b>, {axis.named}<br>%{{customdata[1]}}<extra></extra>",
            )
        )
    layout: Json = {
        "xaxis": {
            "type": "log",
            "title": {"text": axis.title},
            "tickvals": places,
            "ticktext": [axis.tick(place) for place in places],
            "showgrid": False,
        }
        # Else the points of a single size would be spread over the whole width.
        | (
            {"range": [math.log10(place) + side for side in (-0.4, 0.4) for place in places]}
            if len(places) == 1
            else {}
        ),
        "yaxis": {"title": {"text": plain(title)}} | ({"zeroline": True, "rangemode": "tozero"} if zero else {}),
    }
    return Panel(heading, [traces], layout, 380)
