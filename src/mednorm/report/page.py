"""Assemble the page: everything inlined once, nothing fetched, only our own two scripts allowed to run."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from mednorm.errors import RunError
from mednorm.files import write_atomically
from mednorm.report import charts, curves, depth, lines, wording
from mednorm.report.conditions import base, several_folds
from mednorm.report.palette import looks
from mednorm.report.plot import Chart
from mednorm.report.samples import class_colour, galleries
from mednorm.report.table import arms_table, judged_metrics, metrics_table
from mednorm.results import Results, Statement

TOPICS = {
    "quality": "Quality",
    "speed": "Speed",
    "batch_size": "Batch size",
    "modes": "Evaluation modes",
    "regularizer": "Regularizers",
    "overfitting": "Overfitting",
    "gradients": "Gradients",
    "sites": "Sites",
    "cost": "Cost",
    "data": "Data",
    "caution": "Caution",
}


def write_report(results: Results, folder: Path, out: Path | None = None) -> Path:
    """Write one HTML file that shows a study: sentences, table, charts, sample images, and how it was made.

    The file needs nothing else: no network, no other file. It is written beside its final place first and then moved
    there, so a reader never meets half a page.

    Args:
        results: the study, as `read_results` gives it.
        folder: where results.json lies; `Run.samples` are paths inside it.
        out: the file to write; by default `report.html` in `folder`.

    Returns:
        The file written.

    Raises:
        RunError: a samples file is missing, damaged or outside `folder`, or the page cannot be written.

    """
    out = folder / "report.html" if out is None else out
    try:
        write_atomically(out, _render(results, folder).encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(f"{out}: expected a place to write the report, got: {error}. Choose another file.") from None
    return out


@cache
def templates() -> Environment:
    """Make what fills in the templates of this package: what is filled in is escaped."""
    made = Environment(
        loader=PackageLoader("mednorm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.globals.update(wording=wording, class_colour=class_colour)
    return made


def part(name: str) -> str:
    """Read a file of this package that is inlined."""
    return resources.files("mednorm.report").joinpath(name).read_text(encoding="utf-8")


def fingerprint(script: str) -> str:
    """What the content security policy calls a script by: then no other script runs, whatever the data holds."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _charts(results: Results) -> list[Chart]:
    made = [
        lines.batch_size_chart(results),
        lines.modes_chart(results),
        curves.learning_chart(results),
        charts.gap_chart(results),
        lines.shares_chart(results),
        charts.regularizer_chart(results),
        depth.gradient_chart(results),
        depth.layer_chart(results),
        charts.sites_chart(results),
        charts.cost_chart(results),
    ]
    return [chart for chart in made if chart is not None]


def _by_topic(statements: list[Statement]) -> list[tuple[str, list[Statement]]]:
    grouped = [(title, [said for said in statements if said.topic == topic]) for topic, title in TOPICS.items()]
    return [(title, said) for title, said in grouped if said]


def _setting(value: object) -> str:
    """Print a setting as its configuration file would hold it, text without quotes."""
    return value if isinstance(value, str) else wording.MISSING if value is None else json.dumps(value)


def _render(results: Results, folder: Path) -> str:
    plotly, script = get_plotlyjs(), part("page.js")
    drawn = _charts(results)
    return (
        templates()
        .get_template("template.html.j2")
        .render(
            results=results,
            study=results.study,
            data=results.study.data,
            environment=results.environment,
            topics=_by_topic(results.statements),
            table=arms_table(results),
            every_metric=metrics_table(results),
            measured={metric.removeprefix("test_") for metric in judged_metrics(results)},
            base=base(results.study),
            several_folds=several_folds(results.study),
            judged_twice=any(arm.batch_metrics for arm in results.summary),
            charts=drawn,
            drawings=[chart.drawing() for chart in drawn],
            looks=looks(results),
            galleries=galleries(results, folder),
            settings={key: _setting(value) for key, value in results.study.settings.items()},
            css=part("style.css"),
            plotly=plotly,
            script=script,
            hashes=f"{fingerprint(plotly)} {fingerprint(script)}",
        )
    )


def write_page(path: Path, html: str) -> Path:
    """Write a page, whole or not at all, and return where.

    Raises:
        RunError: it cannot be written there.

    """
    try:
        write_atomically(path, html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(f"{path}: expected a place to write the page, got: {error}. Choose another file.") from None
    return path
