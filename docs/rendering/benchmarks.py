"""Tables of benchmarks/results."""

from __future__ import annotations

import json
from typing import Any

from rendering import speed
from rendering.advise import advise
from rendering.lean import lean
from rendering.source import ROOT, PartError
from rendering.tables import markdown

_NETWORKS = {"article": "the article's", "layer": "layer alone", "inference": "inference"}
_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def benchmark(name: str) -> str:
    """Show a file of benchmarks/results.

    Raises:
        PartError: there is none of that name.

    """
    shown = {"advise": advise, "lean": lean, **speed.SHOWN}
    if name in shown:
        return shown[name]()
    path = ROOT / "benchmarks" / "results" / "keras.json"
    if name != "keras" or not path.exists():
        raise PartError(f"{name}: expected one of keras, {', '.join(shown)}, and its file in benchmarks/results.")
    return _keras(json.loads(path.read_text(encoding="utf-8")))


def _keras(measured: dict[str, Any]) -> str:
    layers = list(measured["cases"][0]["ratio"])
    headers = [
        "backend",
        "network",
        "input",
        "Keras's, ms",
        *(f"`{layer.split()[0]}`{_every(layer)}" for layer in layers),
    ]
    rows = []
    for case in measured["cases"]:
        compiled = ", compiled" if case["jit"] is True else ""
        times = [f"{case['ratio'][layer]['median']:.2f}" for layer in layers]
        low, high = (case["ratio"]["BNLayer"][end] for end in ("low", "high"))
        times[layers.index("BNLayer")] += f" [{low:.2f}, {high:.2f}]"
        rows.append(
            [
                _BACKENDS[case["backend"]] + compiled,
                _NETWORKS[case["network"]],
                "×".join(map(str, case["shape"])),
                f"{case['milliseconds']['keras']['median']:.1f}",
                *times,
            ]
        )
    rounds = measured["cases"][0]["rounds"]
    return markdown(headers, rows, left=3) + f"\n{_made(measured)}; medians [quartiles] of {rounds} rounds.\n"


def _made(measured: dict[str, Any]) -> str:
    machine, versions = measured["machine"], measured["versions"]
    made = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{machine['model']}, {machine['threads']} threads; {made}"


def _every(layer: str) -> str:
    return f", k = {layer.split()[1]}" if " " in layer else ""
