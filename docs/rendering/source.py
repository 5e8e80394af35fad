"""Where results come from, and what is said of a part that cannot be rendered."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from mednorm.results import Results, read_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


class PartError(ValueError):
    """A part or figure that cannot be rendered; the message names it and says what to do."""


class Source:
    """Result files by name: ``NAME.json``, or ``NAME/results.json`` as `mednorm study --out NAME` leaves it.

    Args:
        folders: searched in this order.

    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    def read(self, name: str) -> Results:
        """Return the results of that name.

        Raises:
            PartError: there is no such file.

        """
        for folder in self.folders:
            for path in (folder / f"{name}.json", folder / name / "results.json"):
                if path.exists():
                    return _read(path)
        known = sorted({path.stem for folder in self.folders for path in folder.glob("*.json")})
        raise PartError(
            f"{name}: docs/results/{name}.json is missing (there are {', '.join(known)}). Run its study and copy the "
            "results.json there, or correct the name."
        )


def measured(name: str, command: str) -> Any:
    """Return what ``benchmarks/results/NAME.json`` holds.

    Raises:
        PartError: it is not there; the message names the command that makes it.

    """
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise PartError(f"benchmarks/results/{name}.json is missing. Run {command}.")
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _read(path: Path) -> Results:
    return read_results(path)
