"""Tables of benchmarks/results."""

from __future__ import annotations

from rendering import speed
from rendering.advise import advise
from rendering.lean import lean
from rendering.source import PartError, measured
from rendering.tables import made, markdown

_NETWORKS = {"article": "the article's", "layer": "layer alone", "inference": "inference"}
_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def benchmark(name: str) -> str:
    """Show a file of benchmarks/results.

    Raises:
        PartError: there is none of that name.

    """
    shown = {"advise": advise, "keras": _keras, "lean": lean, **speed.SHOWN}
    if name not in shown:
        raise PartError(f"{name}: expected one of {', '.join(shown)}.")
    return shown[name]()


def _keras() -> str:
    found = measured("keras", "python benchmarks/keras_layers.py")
    layers = list(found["cases"][0]["ratio"])
    headers = [
        "backend",
        "network",
        "input",
        "Keras's, ms",
        *(f"`{layer.split()[0]}`{_every(layer)}" for layer in layers),
    ]
    rows = []
    for case in found["cases"]:
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
    rounds = found["cases"][0]["rounds"]
    return markdown(headers, rows, left=3) + f"\n{made(found)}; medians [quartiles] of {rounds} rounds.\n"


def _every(layer: str) -> str:
    return f", k = {layer.split()[1]}" if " " in layer else ""
