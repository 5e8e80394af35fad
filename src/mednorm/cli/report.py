"""`mednorm report`: make the page again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednorm.cli import options as o


def report(
    study: Annotated[Path, typer.Argument(help="Folder of a study, with results.json.", metavar="DIR")],
) -> None:
    """Check a study's results.json against the schema, and make report.html from it again.

    Example:
      mednorm report results
    """
    from mednorm.report import write_report
    from mednorm.results import read_results

    results = read_results(study / "results.json")
    o.tell("Page", write_report(results, study))
