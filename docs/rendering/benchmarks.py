"""Tables of benchmarks/results."""

from __future__ import annotations

import json
from typing import Any

from rendering.source import ROOT, PartError
from rendering.tables import markdown

_NETWORKS = {"article": "the article's", "layer": "layer alone", "inference": "inference"}
_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def benchmark(name: str) -> str:
    """Show a file of benchmarks/results.

    Raises:
        PartError: there is none of that name.

    """
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    shown = {"keras": _keras, "family": _family}
    if name not in shown or not path.exists():
        raise PartError(f"{name}: expected one of {', '.join(shown)}, and benchmarks/results/{name}.json.")
    return shown[name](json.loads(path.read_text(encoding="utf-8")))


def _family(measured: dict[str, Any]) -> str:
    headers = ["layer", *("×".join(map(str, case["shape"])) for case in measured["cases"])]
    times = [f"{case['milliseconds']['torch']['median']:.1f} ms" for case in measured["cases"]]
    rows = [["`torch.nn.BatchNorm`", *times]]
    for layer in measured["cases"][0]["ratio"]:
        ratios = [case["ratio"][layer] for case in measured["cases"]]
        cells = [f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" for ratio in ratios]
        rows.append([f"`{layer.split()[0]}`{_every(layer)}", *cells])
    rounds = measured["cases"][0]["rounds"]
    return markdown(headers, rows, left=1) + f"\n{_made(measured)}; medians [quartiles] of {rounds} rounds.\n"


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
