"""The benchmarks run and write what they measured, and the committed files are whole; no time is judged here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = {"layers": 7, "family": 5, "steps": 5, "statistics": 4, "inference": 8, "startup": 1, "allocators": 2}
KERAS = "keras-tensorflow,keras-jax"
BENCH = (sys.executable, "-c", "from mednorm.cli import main; main()", "bench")


def bench(out, *arguments):
    """Run `mednorm bench` with one thread and one short round; return the process when it has ended."""
    command = [*BENCH, *arguments, "--threads", "1", "--rounds", "1", "--seconds", "0.01", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def check(record):
    """Pass if a record is whole and its figures do not contradict themselves."""
    assert record["finished"]
    assert record["cuda"].startswith("unmeasured")
    for case in record["cases"]:
        for peer in case["peers"].values():
            for value in peer.values():
                if isinstance(value, dict):
                    assert value["low"] <= value["median"] <= value["high"]
            assert peer["milliseconds"]["low"] > 0
            if "floor" in peer:
                quotient = peer["milliseconds"]["median"] / peer["floor"]["median"]
                assert peer["ratio"]["median"] == pytest.approx(quotient, rel=0.5)
        reference = case["peers"][case["reference"]]
        assert reference["relative"] == {"median": 1, "low": 1, "high": 1}


@pytest.mark.slow
def test_a_smoke_run_of_layers_measures_them_beside_a_floor_and_names_who_was_left_out(tmp_path):
    out = tmp_path / "layers.json"
    done = bench(out, "layers", "--smoke", "--leave-out", f"tcmalloc,torch-compile,{KERAS}")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    check(record)
    (case,) = record["cases"]
    assert set(case["peers"]) == {
        f"{name}{allocator}" for name in ("torch", "torch-inplace", "mednorm") for allocator in ("", "+tuned")
    }
    assert set(case["missing"].values()) == {"left out"}
    assert all(peer["ratio"]["median"] > 1 / 4 for peer in case["peers"].values())
    assert "mednorm+tuned" in done.stdout


@pytest.mark.slow
def test_a_smoke_run_of_steps_finds_the_same_loss_and_gradients(tmp_path):
    out = tmp_path / "steps.json"
    done = bench(out, "steps", "--smoke", "--leave-out", "tcmalloc,torch+tuned,mednorm lean")
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    check(record)
    for case in record["cases"]:
        ours, theirs = case["peers"]["mednorm+tuned"], case["peers"]["torch"]
        assert ours["loss_float64"] == pytest.approx(theirs["loss_float64"], rel=1e-12)
        assert ours["gradient_difference_float64"] < 1e-11
        assert ours["gradient_error"] < 4 * theirs["gradient_error"]
        assert theirs["gradient_difference"] == 0
        assert 0 < theirs["saved_bytes"] < 2 * theirs["live_bytes"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_after_the_cases_it_has(tmp_path):
    out, arguments = (
        tmp_path / "start.json",
        ("statistics", "--smoke", "--leave-out", "MovingBatchNorm 1,MovingBatchNorm 4,MovingBatchNorm 16"),
    )
    command = [*BENCH, *arguments, "--threads", "1", "--rounds", "1", "--seconds", "0.01", "--out", str(out)]
    stopped = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not out.exists() and stopped.poll() is None:
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()
    before = json.loads(out.read_text(encoding="utf-8"))
    assert (len(before["cases"]), before["finished"]) == (1, False)
    done = bench(out, *arguments)
    assert done.returncode == 0, done.stderr
    after = json.loads(out.read_text(encoding="utf-8"))
    check(after)
    assert len(after["cases"]) == 2
    assert after["cases"][0] == before["cases"][0]


@pytest.mark.parametrize("part", PARTS)
def test_the_committed_figures_are_those_of_a_full_run(part):
    record = json.loads((RESULTS / f"{part}.json").read_text(encoding="utf-8"))
    check(record)
    assert record["settings"]["parts"] == [part]
    assert not record["settings"]["smoke"]
    assert len(record["cases"]) == PARTS[part]
    for case in record["cases"]:
        assert case["rounds"] >= 5
        assert not set(case["missing"].values()) & {"left out"}


def test_the_committed_figures_of_fine_tuning_have_every_arm_for_every_seed():
    written = json.loads((RESULTS / "fine_tuning.json").read_text(encoding="utf-8"))
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
