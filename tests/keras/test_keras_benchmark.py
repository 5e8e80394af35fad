"""The benchmark of the Keras layers writes what it measured, and the committed file is whole; no time is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.keras.backends import once

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {"BNLayer", "RangeBNLayer", "MovingBNLayer 4", "MovingBNLayer 16", "BatchRenormLayer"}
WAYS = {("tensorflow", "auto"), ("tensorflow", True), ("jax", "auto"), ("torch", "auto")}
NETWORKS = {
    ("article", (64, 28, 28, 1)),
    ("layer", (64, 28, 28, 32)),
    ("layer", (8, 64, 64, 64)),
    ("inference", (64, 28, 28, 32)),
}


def check(case):
    """Pass if a case says what it should and does not contradict itself."""
    assert set(case["milliseconds"]) == LAYERS | {"keras"}
    assert set(case["ratio"]) == LAYERS
    for figures in (*case["milliseconds"].values(), *case["ratio"].values()):
        assert 0 < figures["low"] <= figures["median"] <= figures["high"]
    assert case["loss"]["BNLayer"] == pytest.approx(
        case["loss"]["keras"], abs=1e-3
    )  # after the first round, and the last


@pytest.mark.slow
@once
def test_a_short_round_measures_every_layer_in_every_case(tmp_path):
    out, backend = tmp_path / "keras.json", os.environ["KERAS_BACKEND"]
    command = [sys.executable, ROOT / "benchmarks" / "keras_layers.py", "--smoke", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {(case["backend"], case["jit"]) for case in written["cases"]} == {way for way in WAYS if way[0] == backend}
    assert len(written["cases"]) == (8 if backend == "tensorflow" else 4)
    for case in written["cases"]:
        check(case)
        assert case["rounds"] == 1
    assert set(written["versions"]) == {"mednorm", "keras", backend, "python"}
    assert done.stdout.count("BNLayer ") >= len(written["cases"])


def test_the_committed_file_has_every_backend_and_case_of_a_full_run():
    written = json.loads((ROOT / "benchmarks" / "results" / "keras.json").read_text(encoding="utf-8"))
    assert set(written["machine"]) == {"processor", "threads", "model"}
    assert set(written["versions"]) == {"mednorm", "keras", "python", "tensorflow", "jax", "torch"}
    found = [(case["backend"], case["jit"], case["network"], tuple(case["shape"])) for case in written["cases"]]
    assert len(found) == len(set(found))
    assert set(found) == {(*way, *network) for way, network in product(WAYS, NETWORKS)}
    for case in written["cases"]:
        check(case)
        assert case["rounds"] >= 15
        assert case["steps"] % 16 == 0  # every layer did all that it ever does
        for name, ratio in case["ratio"].items():
            quotient = case["milliseconds"][name]["median"] / case["milliseconds"]["keras"]["median"]
            assert ratio["median"] == pytest.approx(quotient, rel=0.25)
