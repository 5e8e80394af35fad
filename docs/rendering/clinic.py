"""What the tutorial of the clinic shows: benchmarks/clinic.py and what it measured."""

from __future__ import annotations

import ast
import json
from statistics import mean

from rendering.source import ROOT, PartError
from rendering.tables import markdown


def clinic() -> str:
    """Show every seed: Dice before, with the other scanner, and treated; what was found first, and where.

    Raises:
        PartError: the file is not there.

    """
    path = ROOT / "benchmarks" / "results" / "clinic.json"
    if not path.exists():
        raise PartError("benchmarks/results/clinic.json is missing. Run python benchmarks/clinic.py --data brain.")
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    headers = ["seed", "first finding", "site", "distance, σ", *runs[0]["dice"], "of the loss, recovered"]
    rows = [
        [
            str(run["seed"]),
            f"`{run['code']}`",
            run["site"],
            f"{run['distance']:.2f}",
            *(f"{value:.3f}" for value in run["dice"].values()),
            f"{run['recovered']:.0%}",
        ]
        for run in runs
    ]
    means = [f"{mean(run['dice'][name] for run in runs):.3f}" for name in runs[0]["dice"]]
    rows.append(["mean", "", "", f"{mean(run['distance'] for run in runs):.2f}", *means, ""])
    return markdown(headers, rows, left=3)


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
