"""The benchmarks run and write what they measured; no time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_layer_benchmark_measures_every_peer_in_every_case(tmp_path):
    out = tmp_path / "layer.json"
    command = [sys.executable, ROOT / "benchmarks" / "layer.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["cases"]) == 2
    for case in written["cases"]:
        assert set(case["milliseconds"]) == {"torch", "mednorm", "mednorm fused"}
        for times in case["milliseconds"].values():
            assert 0 < times["low"] <= times["median"] <= times["high"]
