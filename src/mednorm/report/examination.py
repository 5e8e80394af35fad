"""One self-contained page from an examination: diagnosis, findings, a map of the layers, charts. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from mednorm.report import wording
from mednorm.report.examination_charts import charts
from mednorm.report.page import fingerprint, part, templates, write_page
from mednorm.report.table import Cell, Column, Table

Json = dict[str, Any]

MARKS = {"error": "✕", "warning": "!", "info": "i", None: "✓"}


def write_examination(document: Json, path: Path) -> Path:
    """Write one HTML file that shows an examination; it needs no network and no other file.

    Args:
        document: what `Examination.to_dict` gives, or its JSON read back.
        path: the file to write.

    Returns:
        The file written.

    Raises:
        RunError: it cannot be written there.

    """
    return write_page(path, _render(document))


def _render(document: Json) -> str:
    plotly, script = get_plotlyjs(), part("page.js")
    drawn = charts(document)
    return (
        templates()
        .get_template("examination.html.j2")
        .render(
            found=document,
            groups=_by_rule(document),
            blocks=_by_block(document["layers"]),
            marks=MARKS,
            table=_table(document),
            charts=drawn,
            drawings=[chart.drawing() for chart in drawn],
            number=number,
            css=part("style.css") + part("examination.css"),
            plotly=plotly,
            script=script,
            hashes=f"{fingerprint(plotly)} {fingerprint(script)}",
        )
    )


def number(value: float | None) -> str:
    """Print three significant digits, with a true minus sign.

    >>> number(-0.01234), number(1234567.0), number(None)
    ('−0.0123', '1.23e+06', '–')
    """
    return wording.MISSING if value is None else f"{value:.3g}".replace("-", "−")


def _by_rule(document: Json) -> list[Json]:
    """Gather the findings by rule, in their order, the one that shows it most first."""
    codes = dict.fromkeys(finding["code"] for finding in document["findings"])
    made = []
    for code in codes:
        findings = [finding for finding in document["findings"] if finding["code"] == code]
        remedies = list(dict.fromkeys(finding["remedy"] for finding in findings if finding["remedy"]))
        layers = list(dict.fromkeys(finding["layer"] for finding in findings if finding["layer"]))
        sites = list(dict.fromkeys(finding["site"] for finding in findings if finding["site"] is not None))
        made.append({"first": findings[0], "all": findings, "remedies": remedies, "layers": layers, "sites": sites})
    return made


def _by_block(layers: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """Divide layers into runs of one block, by the part of their names before the last dots that still divides them.

    Blocks are taken as deep in the names as gives at most twelve of them, so that a map has few headings.
    """
    best = [("", list(layers))]
    for depth in range(1, 4):
        named = [(".".join(layer["name"].split(".")[:-1][:depth]), layer) for layer in layers]
        found = [(block, [layer for _, layer in members]) for block, members in groupby(named, lambda pair: pair[0])]
        if len(found) > 12:
            break
        best = found
    return best


def _table(document: Json) -> Table:
    """Lay out one row a layer."""
    size = document["batch_size"]
    columns = [
        Column("layer", numeric=False),
        Column("kind", numeric=False),
        Column("finding", numeric=False),
        Column("channels"),
        Column("distance", "in σ, all images"),
        Column("noise", f"of the mean, {wording.plural(size, 'image')}"),
        Column("updates"),
        Column("of the gap"),
    ]
    order = ["error", "warning", "info", None]
    rows = []
    for layer in document["layers"]:
        noise = next((at["mean"] for at in layer["noise"] if at["batch_size"] == size), None)
        codes = ", ".join(layer["codes"])
        rows.append(
            [
                Cell(layer["name"] or "(the network)", sort=f"{layer['place']:04d}"),
                Cell(layer["kind"], sort=layer["kind"]),
                Cell(
                    f"{MARKS[layer['severity']]} {layer['severity'] or 'fine'}",
                    (codes,) if codes else (),
                    f"{order.index(layer['severity'])} {codes}",
                ),
                Cell(str(layer["channels"]), sort=str(layer["channels"])),
                _cell((layer["distance"] or {}).get("median")),
                _cell(noise),
                _cell(layer["updates"]),
                _cell(layer["share"], percent=True),
            ]
        )
    return Table(columns, rows)


def _cell(value: float | None, *, percent: bool = False) -> Cell:
    if value is None:
        return Cell(wording.MISSING)
    return Cell(wording.share(round(value, 3)) if percent else number(value), sort=repr(value))
