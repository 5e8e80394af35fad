"""The benchmarks run and write what they measured; no time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {
    "BatchNorm",
    "BatchRenorm",
    "GhostBatchNorm",
    "MovingBatchNorm 1",
    "MovingBatchNorm 4",
    "MovingBatchNorm 16",
    "RangeBatchNorm",
    "DomainBatchNorm",
    "FrozenBatchNorm",
}


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


def check_family(written):
    """Pass if every case has every layer and its figures do not contradict themselves."""
    for case in written["cases"]:
        assert set(case["milliseconds"]) == LAYERS | {"torch"}
        assert set(case["ratio"]) == LAYERS
        for figures in (*case["milliseconds"].values(), *case["ratio"].values()):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]


@pytest.mark.slow
def test_the_benchmark_of_the_family_measures_every_layer(tmp_path):
    out = tmp_path / "family.json"
    command = [sys.executable, ROOT / "benchmarks" / "family.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [case["rounds"] for case in written["cases"]] == [1]
    check_family(written)


def test_the_committed_figures_of_the_family_are_those_of_a_full_run():
    written = json.loads((ROOT / "benchmarks" / "results" / "family.json").read_text(encoding="utf-8"))
    assert len(written["cases"]) == 3
    assert all(case["rounds"] >= 5 for case in written["cases"])
    check_family(written)
    for case in written["cases"]:
        for name, ratio in case["ratio"].items():
            quotient = case["milliseconds"][name]["median"] / case["milliseconds"]["torch"]["median"]
            assert ratio["median"] == pytest.approx(quotient, rel=0.25)


def test_the_committed_figures_of_fine_tuning_have_every_arm_for_every_seed():
    written = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text(encoding="utf-8"))
    arms = {(run["batch_size"], run["arm"]) for run in written["runs"]}
    assert len(arms) == 8
    assert len(written["runs"]) == 8 * len(written["about"]["seeds"]) == 24
    for run in written["runs"]:
        assert 0 < run["new"] < 1
        assert 0 < run["old"] < 1


@pytest.mark.slow
def test_fine_tuning_runs_in_every_way(tmp_path):
    out = tmp_path / "fine_tuning.json"
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "fine_tuning.py", "--smoke", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert [run["arm"] for run in runs] == 2 * [
        "not fine-tuned",
        "moving statistics",
        "frozen statistics",
        "frozen statistics, γ and β",
    ]
    assert len({run["new"] for run in runs[:4]}) > 1  # what is trained on is no longer what it was
