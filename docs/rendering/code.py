"""What programs print, and tables of what the package itself knows: tasks, presets, networks."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from rendering.source import ROOT, PartError
from rendering.tables import markdown


def program(folder: str, name: str) -> str:
    """Show a program and what it prints.

    Raises:
        PartError: there is none of that name, or it failed.

    """
    path = ROOT / folder / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.py")))
        raise PartError(f"{name}: {folder}/{name}.py is missing (there are {known}).")
    code = path.read_text(encoding="utf-8").split("\n\n", 1)[1]
    return f"```python\n{code.strip()}\n```\n\n```text\n{_printed(path)}\n```\n"


@cache
def _printed(path: Path) -> str:
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{path.name} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def tasks() -> str:
    """Show every task."""
    from mednorm.tasks.catalogue import TASKS

    headers = ["task", "kind", "network", "main metric", "mean over", "images", "input scaling"]
    rows = [
        [
            f"`{task.name}`",
            task.kind,
            f"`{task.network}`",
            task.main_metric,
            f"{task.unit}s",
            "come along" if task.embedded else "volumes (`--data`)" if task.volumes else "`--data`",
            "each image by itself" if task.standardize_each else "by the training images",
        ]
        for task in TASKS.values()
    ]
    return markdown(headers, rows, left=len(headers))


def presets() -> str:
    """Show every preset of every task."""
    from mednorm.tasks.catalogue import TASKS

    keys = ("norms", "regularizers", "batch_sizes", "base_batch_size", "seeds", "epochs")
    headers = ["task", "preset", "norms", "regularizers", "batch sizes", "base", "seeds", "epochs", "besides"]
    rows = []
    for task in TASKS.values():
        for name, preset in task.presets.items():
            others = [f"`{key}` {_value(value)}" for key, value in preset.items() if key not in keys]
            shown = [_value(preset[key]) for key in keys]
            rows.append([f"`{task.name}`", f"`{name}`", *shown, "; ".join(others) or "–"])
    return markdown(headers, rows, left=len(headers))


def networks() -> str:
    """Show every network."""
    from mednorm.tasks.networks import NETWORKS

    headers = [
        "`--network`",
        "for",
        "images",
        "longest side ≥",
        "others ≥",
        "multiple of",
        "deeper variant",
        "built as",
    ]
    rows = [
        [
            f"`{network.name}`",
            network.kind,
            " or ".join(f"{dim}-D" for dim in network.dims),
            str(network.smallest),
            str(network.smallest if network.thinnest is None else network.thinnest),
            str(network.multiple),
            f"`{network.deeper}`" if network.deeper else "–",
            f"`{network.text}`" if "(" in network.text else network.text,
        ]
        for network in NETWORKS.values()
    ]
    return markdown(headers, rows, left=len(headers))


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
