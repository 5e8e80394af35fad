"""The benchmark of lean activations runs and writes what it measured; no time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"torch", "torch lean", "mednorm", "mednorm lean"}


def check(written):
    """Pass if every case has every peer, its figures do not contradict themselves, and lean gradients were right."""
    for case in written["cases"]:
        assert set(case["bytes"]) == set(case["milliseconds"]) == set(case["peak"]) == PEERS
        for figures in (*case["milliseconds"].values(), case["ratio"]):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]
        for whose in ("torch", "mednorm"):
            for measure in ("bytes", "peak"):
                assert 0 < case[measure][f"{whose} lean"] < case[measure][whose]
        assert case["same_bits"] == {"torch": True, "mednorm": True}


@pytest.mark.slow
def test_the_benchmark_of_lean_activations_measures_every_peer(tmp_path):
    out = tmp_path / "lean.json"
    command = [sys.executable, ROOT / "benchmarks" / "lean_memory.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [case["network"] for case in written["cases"]] == ["BasicUNet 3-D"]
    check(written)


def test_the_committed_figures_are_those_of_a_full_run():
    written = json.loads((ROOT / "benchmarks" / "results" / "lean.json").read_text(encoding="utf-8"))
    assert len(written["cases"]) == 4
    assert all(case["rounds"] >= 5 for case in written["cases"])
    check(written)


def test_of_both_networks_for_segmentation_at_most_sixty_percent_is_kept():
    written = json.loads((ROOT / "benchmarks" / "results" / "lean.json").read_text(encoding="utf-8"))
    kept = {case["network"]: case["bytes"]["mednorm lean"] / case["bytes"]["torch"] for case in written["cases"]}
    assert kept["BasicUNet 3-D"] <= 0.6
    assert kept["SegResNet 3-D"] <= 0.6
