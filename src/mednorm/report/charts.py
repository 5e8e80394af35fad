"""Charts of the arms' estimates: batch size, generalization gap, regularizers, cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mednorm.report import wording
from mednorm.report.palette import looks
from mednorm.report.plot import Chart, Json, Panel, error_bar, plain, trace
from mednorm.results import ArmSummary, Estimate, Results

Quantity = Callable[[ArmSummary], Estimate | None]


def _present(arm: ArmSummary, quantity: Quantity) -> Estimate | None:
    given = quantity(arm)
    return given if given is not None and given.mean is not None else None


def _bars(estimates: Iterable[Estimate | None]) -> str:
    """Say what the bars are, or why there are none."""
    if any(given is not None and given.low is not None for given in estimates):
        return "bars are 95 % Student t intervals over seeds"
    return "one seed each, so there are no intervals"


def _main(results: Results) -> tuple[Quantity, str]:
    key = f"test_{results.study.main_metric}"
    return (lambda arm: arm.metrics.get(key)), wording.label(key)


def batch_size_chart(results: Results) -> Chart | None:
    """Test metric against batch size, one line a norm; nothing where only one batch size was run."""
    quantity, title = _main(results)
    base = results.study.base_regularizer
    plain_arms = [arm for arm in results.summary if arm.regularizer == base and _present(arm, quantity)]
    sizes = sorted({arm.batch_size for arm in plain_arms})
    if len(sizes) < 2:
        return None
    look = looks(results)
    norms = [norm for norm in look if any(arm.norm == norm for arm in plain_arms)]
    traces = []
    for place, norm in enumerate(norms):
        arms = sorted((arm for arm in plain_arms if arm.norm == norm), key=lambda arm: arm.batch_size)
        estimates = [arm.metrics[f"test_{results.study.main_metric}"] for arm in arms]
        nudge = 2 ** (0.07 * (place - (len(norms) - 1) / 2))
        traces.append(
            trace(
                norm,
                look[norm],
                mode="lines+markers",
                x=[arm.batch_size * nudge for arm in arms],
                y=[given.mean for given in estimates],
                error_y=error_bar(estimates),
                customdata=[
                    [arm.batch_size, wording.estimate(given, "metric")]
                    for arm, given in zip(arms, estimates, strict=True)
                ],
                hovertemplate=f"<b>{plain(norm)}</b>, batch size %{{customdata[0]}}<br>%{{customdata[1]}}"
                "<extra></extra>",
            )
        )
    layout: Json = {
        "xaxis": {
            "type": "log",
            "title": {"text": "batch size (doubling scale)"},
            "tickvals": sizes,
            "ticktext": [str(size) for size in sizes],
            "showgrid": False,
        },
        "yaxis": {"title": {"text": plain(title)}},
    }
    caption = (
        f"Read how {title} changes from small to large batches: each point is the mean over seeds of the network that "
        f"validation chose, with {wording.regularizer(base)}; {_bars(map(quantity, plain_arms))}, and points are "
        "moved a little sideways so that bars do not hide each other."
    )
    return Chart("batch-size", "Batch size", caption, [Panel("", [traces], layout, 380)], norms)


def _dots(
    results: Results,
    arms: list[ArmSummary],
    quantity: Quantity,
    rows: list[tuple[str, int]],
    title: str,
    zero: bool = False,
) -> tuple[Panel, list[str]]:
    """Rows of dots: one row a condition, in it one dot a norm, each on its own line."""
    look = looks(results)
    norms = [norm for norm in look if any(arm.norm == norm for arm in arms)]
    several_sizes = len({size for _, size in rows}) > 1
    several_regularizers = len({regularizer for regularizer, _ in rows}) > 1
    gap = 0.72 / max(1, len(norms))
    traces = []
    for place, norm in enumerate(norms):
        mine = [(arm, given) for arm in arms if arm.norm == norm and (given := _present(arm, quantity)) is not None]
        offset = gap * (place - (len(norms) - 1) / 2)
        traces.append(
            trace(
                norm,
                look[norm],
                mode="markers",
                x=[given.mean for _, given in mine],
                y=[rows.index((arm.regularizer, arm.batch_size)) + offset for arm, _ in mine],
                error_x=error_bar([given for _, given in mine]),
                customdata=[
                    [plain(arm.regularizer), arm.batch_size, wording.estimate(given, "metric")] for arm, given in mine
                ],
                hovertemplate=f"<b>{plain(norm)}</b>, regularizer %{{customdata[0]}}, "
                "batch size %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            )
        )
    labels = [
        "<br>".join(
            [plain(wording.regularizer(regularizer))] * several_regularizers
            + [f"batch size {size}"] * (several_sizes or not several_regularizers)
        )
        for regularizer, size in rows
    ]
    layout: Json = {
        "xaxis": {"title": {"text": plain(title)}, "zeroline": zero} | ({"rangemode": "tozero"} if zero else {}),
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": labels,
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": i + 0.5, "y1": i + 0.5, "layer": "below"}
            for i in range(len(rows) - 1)
        ],
    }
    return Panel("", [traces], layout, 90 + len(rows) * max(48, 17 * len(norms) + 14)), norms


def gap_chart(results: Results) -> Chart | None:
    """Train minus test metric of every arm."""
    arms = [arm for arm in results.summary if arm.generalization_gap.mean is not None]
    if not arms:
        return None
    order = [*results.study.regularizers, *(arm.regularizer for arm in arms)]
    rows = sorted({(arm.regularizer, arm.batch_size) for arm in arms}, key=lambda row: (order.index(row[0]), row[1]))
    metric = wording.label(results.study.main_metric)
    panel, norms = _dots(results, arms, lambda arm: arm.generalization_gap, rows, f"train − test {metric}", zero=True)
    caption = (
        f"Read how far right of zero each dot lies: that is by how much {metric} was higher on the training images "
        "than on the test images, in evaluation mode, mean over seeds; "
        f"{_bars(arm.generalization_gap for arm in arms)}."
    )
    return Chart("gap", "Generalization gap", caption, [panel], norms)


def regularizer_chart(results: Results) -> Chart | None:
    """Test metric with each regularizer, without and with each norm; nothing where only one regularizer was run."""
    quantity, title = _main(results)
    base = results.study.base_batch_size
    arms = [arm for arm in results.summary if arm.batch_size == base and _present(arm, quantity)]
    found = {arm.regularizer for arm in arms}
    if len(found) < 2:
        return None
    # A norm without any regularized arm has nothing to be compared with here.
    regularized = {arm.norm for arm in arms if arm.regularizer != results.study.base_regularizer}
    arms = [arm for arm in arms if arm.norm in regularized]
    rows = [
        (regularizer, base)
        for regularizer in dict.fromkeys([*results.study.regularizers, *found])
        if regularizer in found
    ]
    panel, norms = _dots(results, arms, quantity, rows, title)
    caption = (
        f"Read within a row whether a norm adds to a regularizer, and down the rows whether a regularizer adds to a "
        f"norm: {title} at batch size {base}, mean over seeds; {_bars(map(quantity, arms))}."
    )
    return Chart("regularizers", "Regularizers with and without normalization", caption, [panel], norms)


def cost_chart(results: Results) -> Chart | None:
    """Seconds per training step and peak memory of each norm, at each batch size."""
    regularizer = results.study.base_regularizer
    arms = [arm for arm in results.summary if arm.regularizer == regularizer]
    base = results.study.base_batch_size
    sizes = sorted({arm.batch_size for arm in arms}, key=lambda size: (size != base, size))
    look = looks(results)
    norms = [norm for norm in look if any(arm.norm == norm for arm in arms)]
    quantities: list[tuple[str, wording.Kind, Quantity]] = [
        ("seconds per training step", "seconds", lambda arm: arm.seconds_per_step),
        ("peak memory, MB", "megabytes", lambda arm: arm.peak_memory_mb),
    ]
    panels = []
    for title, kind, quantity in quantities:
        views = [
            [
                _bar(arm, given, kind, look[arm.norm].colour)
                for norm in norms
                for arm in arms
                if arm.norm == norm and arm.batch_size == size and (given := _present(arm, quantity)) is not None
            ]
            for size in sizes
        ]
        if any(views):
            layout: Json = {
                "xaxis": {"rangemode": "tozero"},
                "yaxis": {
                    "type": "category",
                    "categoryorder": "array",
                    "autorange": "reversed",
                    "showgrid": False,
                    "categoryarray": [plain(norm) for norm in norms],
                },
                "bargap": 0.45,
                "barmode": "overlay",
            }
            panels.append(Panel(title, views, layout, 90 + 40 * len(norms)))
    if not panels:
        return None
    caption = (
        "Read what a norm adds to the bar of “none”: median time of one training step (forward, backward, update) and "
        f"the largest rise of memory during training, with {wording.regularizer(regularizer)}, mean over seeds; "
        f"{_bars(arm.seconds_per_step for arm in arms)}."
    )
    return Chart("cost", "Cost", caption, panels, [], "batch size", [f"batch size {size}" for size in sizes])


def _bar(arm: ArmSummary, given: Estimate, kind: wording.Kind, colour: str) -> Json:
    return {
        "type": "bar",
        "orientation": "h",
        "name": plain(arm.norm),
        "meta": {"norm": arm.norm},
        "showlegend": False,
        "marker": {"color": colour, "opacity": 0.85},
        "y": [plain(arm.norm)],
        "x": [given.mean],
        "error_x": error_bar([given]),
        "customdata": [wording.estimate(given, kind)],
        "hovertemplate": f"<b>{plain(arm.norm)}</b><br>%{{customdata}}<extra></extra>",
    }
