"""Time a training step with BNLayer against keras.layers.BatchNormalization, side by side in one process a backend.

A step is one `train_on_batch`, and in inference one `predict_on_batch`: the article's network with Adam, and a layer
alone between a trainable shift (so that the gradient goes through the layer, as in the middle of a network) and pooling
with a dense layer. In a round every layer takes its turns in random order; the ratio to Keras's layer is taken round by
round, so that a machine that slows down slows both. All start from the same weights and see the same batch; if BNLayer
ends at another loss (in inference: first output) than Keras's layer, nothing is written.

    python benchmarks/keras_layers.py                                  # every backend, benchmarks/results/keras.json
    python benchmarks/keras_layers.py --backend jax                    # one of them, printed
    python benchmarks/keras_layers.py --network inference              # these cases alone, in the place of those there
    python benchmarks/keras_layers.py --smoke --out /tmp/keras.json    # one short round, to see that it runs
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np

from mednorm.bench.machine import cpu_model
from mednorm.bench.timing import quartiles

BACKENDS = ("tensorflow", "jax", "torch")
CASES = (
    ("article", (64, 28, 28, 1)),
    ("layer", (64, 28, 28, 32)),
    ("layer", (8, 64, 64, 64)),
    ("inference", (64, 28, 28, 32)),
)
RESULTS = Path(__file__).parent / "results" / "keras.json"
REFERENCE = "keras"
ROUNDS, TURNS, STEPS = 15, 4, 4  # turns × steps is a multiple of 16, after which every layer did all that it ever does
TOLERANCE = 1e-3  # of the loss of BNLayer after the first round and after the last

Report = dict[str, object]


def layers() -> dict[str, Callable[[], object]]:
    """Return what is compared: functions that make a layer."""
    import keras

    from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer

    return {
        REFERENCE: keras.layers.BatchNormalization,
        "BNLayer": BNLayer,
        "RangeBNLayer": RangeBNLayer,
        "MovingBNLayer 4": partial(MovingBNLayer, refresh_every=4),
        "MovingBNLayer 16": partial(MovingBNLayer, refresh_every=16),
        "BatchRenormLayer": BatchRenormLayer,
    }


def network(kind: str, shape: tuple[int, ...], make: Callable[[], object], jit: bool | str) -> object:
    """Return a compiled network with the layer in it."""
    import keras

    from mednorm.keras import article_cnn

    class Shift(keras.layers.Layer):
        """Adds a weight to every value of an image."""

        def build(self, input_shape):
            self.shift = self.add_weight(shape=input_shape[1:], initializer="zeros")

        def call(self, inputs):
            return inputs + self.shift

    if kind == "article":
        model = article_cnn(10, shape[1:], make)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
        return model
    pooled = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input(shape[1:]), Shift(), make(), *pooled])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit)
    return model


def measure(kind: str, shape: tuple[int, ...], jit: bool | str, rounds: int, turns: int, steps: int) -> Report:
    """Return milliseconds a step of every layer and their ratios to Keras's, as medians and quartiles over rounds.

    Raises:
        RuntimeError: BNLayer and Keras's layer did not come to the same loss.

    """
    import keras

    rng = np.random.default_rng(0)
    images = rng.normal(0.3, 0.2, shape) + rng.normal(0, 0.1, (shape[0], 1, 1, shape[-1]))
    x, y = (
        keras.ops.convert_to_tensor(images.astype("float32")),
        keras.ops.convert_to_tensor(rng.integers(10, size=shape[0])),
    )
    keras.utils.set_random_seed(0)
    models = {name: network(kind, shape, make, jit) for name, make in layers().items()}
    for model in models.values():
        for ours, reference in zip(model.layers, models[REFERENCE].layers, strict=True):
            weights = reference.get_weights()
            ours.set_weights(weights + ours.get_weights()[len(weights) :])  # further ones count steps

    order, inference = random.Random(0), kind == "inference"
    losses: dict[str, list[float]] = {name: [] for name in models}  # after the first round, and after the last
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(-1, rounds):  # the first compiles, and is not counted
        gc.collect()
        spent = dict.fromkeys(models, 0.0)
        for _ in range(turns):
            for name in order.sample(list(models), len(models)):
                start = perf_counter()
                for _ in range(steps):
                    logs = models[name].predict_on_batch(x) if inference else models[name].train_on_batch(x, y)
                spent[name] += perf_counter() - start
                losses[name] = [*losses[name][: 1 if number >= 0 else 0], float(np.ravel(logs)[0])]
        if number >= 0:
            for name, seconds in spent.items():
                found[name].append(seconds * 1e3 / (turns * steps))

    if not np.allclose(losses["BNLayer"], losses[REFERENCE], rtol=0, atol=TOLERANCE):
        raise RuntimeError(f"{kind} {shape}: expected the same losses to {TOLERANCE}, got {losses}.")
    ratios = {name: [a / b for a, b in zip(times, found[REFERENCE], strict=True)] for name, times in found.items()}
    return {
        "backend": keras.backend.backend(),
        "network": kind,
        "shape": list(shape),
        "jit": jit,
        "jit_compile": bool(models[REFERENCE].jit_compile),
        "rounds": rounds,
        "steps": turns * steps,
        "loss": losses,
        "milliseconds": {name: quartiles(times) for name, times in found.items()},
        "ratio": {name: quartiles(values) for name, values in ratios.items() if name != REFERENCE},
    }


def run(backend: str, smoke: bool, only: str | None) -> Report:
    """Measure every case, or those of one network, on one backend, in this process."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    from mednorm import __version__

    # "auto" compiles on JAX and not on PyTorch; on TensorFlow it compiles where there is a GPU.
    ways = ("auto", True) if backend == "tensorflow" else ("auto",)
    cases = []
    for (kind, shape), jit in product(CASES, ways):
        if only in (None, kind):
            size = (1, 1, 1) if smoke else (ROUNDS, TURNS, STEPS)
            cases.append(measure(kind, (min(shape[0], 8), *shape[1:]) if smoke else shape, jit, *size))
            print(_rows(cases[-1]), flush=True)
    versions = {"mednorm": __version__, "keras": keras.__version__, backend: import_module(backend).__version__}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "model": cpu_model(),
    }
    return {"machine": machine, "versions": versions | {"python": platform.python_version()}, "cases": cases}


def run_each(smoke: bool, only: str | None) -> Report:
    """Measure every backend, each in a process of its own, since Keras has one a process."""
    merged: Report = {}
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "keras.json"
            command = [sys.executable, __file__, "--backend", backend, "--out", str(out), *["--smoke"] * smoke]
            command += ["--network", only] if only else []
            subprocess.run(command, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"})
            found = json.loads(out.read_text(encoding="utf-8"))
        merged["machine"] = found["machine"]
        merged["versions"] = merged.get("versions", {}) | found["versions"]
        merged["cases"] = merged.get("cases", []) + found["cases"]
    return merged


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, default=os.environ.get("KERAS_BACKEND"), help="only this one")
    parser.add_argument("--network", choices=sorted({kind for kind, _ in CASES}), help="only the cases of this one")
    parser.add_argument("--smoke", action="store_true", help="one short round, of small batches")
    parser.add_argument("--out", type=Path, help="with every backend benchmarks/results/keras.json, else none")
    asked = parser.parse_args()
    only = asked.network
    report = run(asked.backend, asked.smoke, only) if asked.backend else run_each(asked.smoke, only)
    out = asked.out or (None if asked.backend or asked.smoke else RESULTS)
    if out and only and out.exists():
        report = _in_the_place_of_those_there(report, json.loads(out.read_text(encoding="utf-8")))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _in_the_place_of_those_there(report: Report, there: Report) -> Report:
    """Replace cases that were measured again.

    Raises:
        RuntimeError: the others are of another machine or other versions.

    """
    if (report["machine"], report["versions"]) != (there["machine"], there["versions"]):
        raise RuntimeError("the file is of another machine or other versions: measure every case.")
    key = ("backend", "network", "shape", "jit")
    new = {str([case[name] for name in key]): case for case in report["cases"]}
    return report | {"cases": [new.get(str([case[name] for name in key]), case) for case in there["cases"]]}


def _rows(case: Report) -> str:
    compiled = "compiled" if case["jit_compile"] else "not compiled"
    lines = [
        f"{case['backend']}, {case['network']} {tuple(case['shape'])}, {compiled}: ms a step, ratio to Keras's layer"
    ]
    for name, times in case["milliseconds"].items():
        ratio = case["ratio"].get(name)
        said = "" if ratio is None else "   {median:.3f} [{low:.3f}, {high:.3f}]".format(**ratio)
        lines.append(f"  {name:18}" + "{median:8.2f} [{low:.2f}, {high:.2f}]".format(**times) + said)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
