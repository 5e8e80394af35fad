"""A probe costs at most two evaluation passes, as measured; no time is judged here but the committed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"evaluation", "probe"}


def check(written):
    """Pass if every case has every peer and its figures do not contradict themselves."""
    for case in written["cases"]:
        assert set(case["seconds"]) == PEERS
        for figures in (*case["seconds"].values(), case["passes"]):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]
        assert case["layers"] > 0


@pytest.mark.slow
def test_the_benchmark_of_the_probe_measures_every_peer(tmp_path):
    out = tmp_path / "probe.json"
    command = [sys.executable, ROOT / "benchmarks" / "probe_cost.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [case["network"] for case in written["cases"]] == ["BasicUNet 3-D"]
    check(written)


def test_a_probe_costs_at_most_two_evaluation_passes():
    written = json.loads((ROOT / "benchmarks" / "results" / "probe.json").read_text(encoding="utf-8"))
    assert len(written["cases"]) == 5
    assert all(case["rounds"] >= 5 for case in written["cases"])
    check(written)
    for case in written["cases"]:
        assert case["passes"]["median"] <= 2, case["network"]
