"""What the tutorial of the clinic shows: benchmarks/clinic.py and what it measured."""

from __future__ import annotations

import ast
from statistics import mean

from rendering.source import ROOT, PartError, measured
from rendering.tables import markdown


def clinic() -> str:
    """Show every scanner and seed: what was found first, and Dice before, with that scanner, and treated.

    Raises:
        PartError: the file is not there.

    """
    runs = measured("clinic", "python benchmarks/clinic.py --data brain")["runs"]
    headers = ["scanner", "seed", "first finding", "distance, σ", *runs[0]["dice"], "recovered"]
    rows = []
    for gain, offset in dict.fromkeys((run["gain"], run["offset"]) for run in runs):
        same = [run for run in runs if (run["gain"], run["offset"]) == (gain, offset)]
        for run in same:
            found = f"`{run['code']}` at {run['site']}"
            figures = [run["distance"], *run["dice"].values()]
            scanner = f"gain {gain:g}, offset {offset:g}" if run is same[0] else ""
            rows.append([scanner, str(run["seed"]), found, *_three(figures), f"{run['recovered']:.0%}"])
        dice = [mean(run["dice"][name] for run in same) for name in runs[0]["dice"]]
        was, now, then = dice
        distance = mean(run["distance"] for run in same)
        rows.append(["", "mean", "", *_three([distance, *dice]), f"{(then - now) / (was - now):.0%}"])
    return markdown(headers, rows, left=3)


def _three(figures: list[float]) -> list[str]:
    return [f"{figure:.3f}" for figure in figures]


def function(file: str, name: str) -> str:
    """Show one function of a program.

    Raises:
        PartError: there is none of that name.

    """
    text = (ROOT / file).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return f"```python\n{ast.get_source_segment(text, node)}\n```\n"
    raise PartError(f"{name}: {file} has no function of that name.")
