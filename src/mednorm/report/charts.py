"""Charts of the arms' estimates in rows: generalization gap, regularizers, sites, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from mednorm.report import wording
from mednorm.report.conditions import Condition, arms_like_base, base, over
from mednorm.report.measures import Quantity, bars, main_measure, present
from mednorm.report.palette import looks
from mednorm.report.plot import Chart, Json, Panel, error_bar, plain, short, trace
from mednorm.results import ArmSummary, Estimate, Results


@dataclass(frozen=True)
class _Dot:
    """One estimate of a norm, and the number of the row it stands in."""

    norm: str
    row: int
    given: Estimate


def _dots(
    results: Results, dots: Sequence[_Dot], rows: Sequence[Sequence[str]], title: str, *, zero: bool = False
) -> tuple[Panel, list[str]]:
    """Rows of dots: one row a condition, in it one dot a norm, each on its own line."""
    look = looks(results)
    norms = [norm for norm in look if any(dot.norm == norm for dot in dots)]
    labels = [[line for part in row for line in wrap(short(part, 40), 20)] for row in rows]
    gap = 0.72 / max(1, len(norms))
    traces = []
    for place, norm in enumerate(norms):
        mine = [dot for dot in dots if dot.norm == norm]
        offset = gap * (place - (len(norms) - 1) / 2)
        traces.append(
            trace(
                norm,
                look[norm],
                mode="markers",
                x=[dot.given.mean for dot in mine],
                y=[dot.row + offset for dot in mine],
                error_x=error_bar([dot.given for dot in mine]),
                customdata=[
                    [plain(", ".join(rows[dot.row])), wording.estimate(dot.given, "metric", signed=zero)]
                    for dot in mine
                ],
                hovertemplate=f"<b>{plain(norm)}</b>, %{{customdata[0]}}<br>%{{customdata[1]}}<extra></extra>",
            )
        )
    layout: Json = {
        "xaxis": {"title": {"text": plain(title)}, "zeroline": zero} | ({"rangemode": "tozero"} if zero else {}),
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": ["<br>".join(map(plain, label)) for label in labels],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": i + 0.5, "y1": i + 0.5, "layer": "below"}
            for i in range(len(rows) - 1)
        ],
    }
    each = max(48, 17 * max(map(len, labels), default=1) + 10, 17 * len(norms) + 14)
    return Panel("", [traces], layout, 90 + len(rows) * each), norms


def _of_arms(
    results: Results, arms: Sequence[ArmSummary], quantity: Quantity
) -> tuple[list[_Dot], list[Condition], list[list[str]]]:
    """Set a quantity of arms in rows, a row a condition, in the study's order; name what differs between rows."""
    study = results.study
    orders = ([*study.regularizers, *(arm.regularizer for arm in arms)], [*study.networks, *(a.network for a in arms)])
    conditions = sorted(
        {Condition.of(arm) for arm in arms},
        key=lambda c: (orders[1].index(c.network), -c.train_share, orders[0].index(c.regularizer), c.batch_size),
    )
    several = [len({condition[field] for condition in conditions}) > 1 for field in (0, 1)]
    names = []
    for condition in conditions:
        regularizer, size, *rest = condition.words(study)
        shown = [regularizer] * several[0] + [size] * (several[1] or not several[0])
        names.append(shown + rest)
    dots = [
        _Dot(arm.norm, conditions.index(Condition.of(arm)), given)
        for arm in arms
        if (given := present(arm, quantity)) is not None
    ]
    return dots, conditions, names


def gap_chart(results: Results) -> Chart | None:
    """Train minus test metric of every arm."""
    arms = [arm for arm in results.summary if arm.generalization_gap.mean is not None]
    if not arms:
        return None
    dots, _, rows = _of_arms(results, arms, lambda arm: arm.generalization_gap)
    metric = wording.label(results.study.main_metric)
    panel, norms = _dots(results, dots, rows, f"train − test {metric}", zero=True)
    caption = (
        f"Read how far right of zero each dot lies: that is by how much {metric} was higher on the training images "
        "than on the test images, in evaluation mode, mean over seeds; "
        f"{bars(arm.generalization_gap for arm in arms)}."
    )
    return Chart("gap", "Generalization gap", caption, [panel], norms)


def regularizer_chart(results: Results) -> Chart | None:
    """Test metric with each regularizer, without and with each norm; nothing where only one regularizer was run."""
    arms = arms_like_base(results, "regularizer")
    measure = main_measure(results, arms)
    arms = [arm for arm in arms if present(arm, measure.quantity)]
    if len({arm.regularizer for arm in arms}) < 2:
        return None
    # A norm without any regularized arm has nothing to be compared with here.
    regularized = {arm.norm for arm in arms if arm.regularizer != results.study.base_regularizer}
    dots, conditions, _ = _of_arms(results, [arm for arm in arms if arm.norm in regularized], measure.quantity)
    rows = [[wording.regularizer(condition.regularizer)] for condition in conditions]
    panel, norms = _dots(results, dots, rows, measure.title)
    caption = (
        f"Read within a row whether a norm adds to a regularizer, and down the rows whether a regularizer adds to a "
        f"norm: {measure.title} at batch size {results.study.base_batch_size}, mean over seeds; {measure.bars}."
    )
    return Chart("regularizers", "Regularizers with and without normalization", caption, [panel], norms)


def sites_chart(results: Results) -> Chart | None:
    """Test metric at each site, a dot a norm, of the base arms; nothing where fewer than two sites were tested on."""
    arms, key = arms_like_base(results), f"test_{results.study.main_metric}"
    names = sorted({site for arm in arms for site in arm.sites})
    found = [
        (arm.norm, site, given)
        for arm in arms
        for site in names
        if (given := arm.sites.get(site, {}).get(key)) is not None and given.mean is not None
    ]
    shown = [site for site in names if any(site == place for _, place, _ in found)]
    if len(shown) < 2:
        return None
    dots = [_Dot(norm, shown.index(site), given) for norm, site, given in found]
    panel, norms = _dots(results, dots, [[site] for site in shown], wording.label(key))
    where = ", ".join(base(results.study).words(results.study))
    caption = (
        "Read whether the order of the norms is the same at every site, and how much sites differ: "
        f"{wording.label(key)} of the test images of each site, with {where}, mean over seeds; "
        f"{bars(given for _, _, given in found)}. Sites differ in their number of images: few say little."
    )
    return Chart("sites", "By site", caption, [panel], norms)


def cost_chart(results: Results) -> Chart | None:
    """Seconds per training step and peak memory of each norm, at each batch size."""
    arms, first = arms_like_base(results, "batch_size"), results.study.base_batch_size
    sizes = sorted({arm.batch_size for arm in arms}, key=lambda size: (size != first, size))
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
                if arm.norm == norm and arm.batch_size == size and (given := present(arm, quantity)) is not None
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
        f"the largest rise of memory during training, with {wording.regularizer(results.study.base_regularizer)}, "
        f"mean over {over(results.study)}; {bars(arm.seconds_per_step for arm in arms)}."
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
