"""The benchmark of NormMonitor runs and writes what it measured; the committed figures hold the promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def committed():
    return json.loads((ROOT / "benchmarks" / "results" / "monitor.json").read_text(encoding="utf-8"))


def check(written):
    """Pass if the figures of every case do not contradict themselves."""
    for case in written["cases"]:
        for figures in (*case["milliseconds"].values(), case["added"]):
            assert figures["low"] <= figures["median"] <= figures["high"]
        assert min(figures["low"] for figures in case["milliseconds"].values()) > 0
        assert case["share"] == pytest.approx(case["added"]["median"] / written["interval"])


@pytest.mark.slow
def test_the_benchmark_of_the_monitor_measures_steps_of_both_kinds(tmp_path):
    out = tmp_path / "monitor.json"
    command = [sys.executable, ROOT / "benchmarks" / "monitor_cost.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [(case["network"], case["looks"]) for case in written["cases"]] == [("BasicUNet 3-D", 2)]
    check(written)


def test_the_committed_figures_are_those_of_a_full_run():
    written = committed()
    assert [case["looks"] for case in written["cases"]] == [30, 30, 30]
    check(written)


def test_at_its_default_interval_the_monitor_takes_at_most_three_percent():
    assert max(case["share"] for case in committed()["cases"]) <= 0.03
