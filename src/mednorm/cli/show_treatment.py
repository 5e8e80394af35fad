"""A treatment as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mednorm.examine.examination import Examination
    from mednorm.training.treatment import Treatment


def show_treatment(done: Treatment, console: Console) -> None:
    """Say what was done, and print what it was measured by, before and after."""
    _say(_headline(done), console)
    if done.report is not None:
        console.print(_table(done))
    for code in done.left:
        _say(f"Left: {code}; mednorm examine --explain {code} says what mends it.", console)


def _say(text: str, console: Console) -> None:
    console.print(escape(text), highlight=False)


def _headline(done: Treatment) -> str:
    if done.report is None:
        return "Nothing to treat: no finding that other running statistics mend. No run was written."
    what = "Recalibrated on all images" if done.site is None else f"Adapted to site {done.site}"
    codes = ", ".join(f"{code} (not found)" if code in done.not_found else code for code in done.codes)
    of = f"{what}, for {codes}: {len(done.report.layers)} layers, {done.report.images} images."
    return of if done.report.kept else f"{of} The metric got worse, so no run was written."


def _table(done: Treatment) -> Table:
    assert done.report is not None
    table = Table("", "before", "after", title_justify="left")
    layers = done.report.layers
    if layers:
        table.add_row("distance, median layer, σ", *_pair(median(getattr(x, w) for x in layers) for w in _WHEN))
        table.add_row("distance, worst layer, σ", *_pair(max(getattr(x, w) for x in layers) for w in _WHEN))
    if done.report.metric is not None:
        table.add_row("metric, images held out", *_pair(done.report.metric))
    for site, distances in done.sites().items():
        table.add_row(f"distance of site {escape(site)}, σ", *_pair(distances))
    if done.after is not None:
        table.add_row("findings", _codes(done.before), _codes(done.after))
    return table


_WHEN = ("before", "after")


def _pair(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _codes(examination: Examination) -> str:
    found = []
    for code, each in examination.by_code().items():
        serious = [finding for finding in each if finding.severity != "info"]
        sites = sorted({finding.site for finding in serious if finding.site is not None})
        if serious:
            found.append(f"{code} at {', '.join(sites)}" if sites else code)
    return escape("; ".join(found)) or "none"
