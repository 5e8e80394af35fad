"""A study that is killed, more than once, ends with the figures of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mednorm.cli.app import run
from tests.studies import read_figures, write_npz

pytestmark = pytest.mark.slow

MEDNORM = Path(sys.executable).with_name("mednorm")
PATIENCE = 180  # seconds; a busy machine takes tens of them to import and train
EPOCHS = 5
RUNS = [f"{arm}-b16-s0" for arm in ("none-none", "batch-none", "none-dropout", "batch-dropout")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "lung.npz", train=64, val=16, test=20, size=28)


def arguments(data, out):
    arms = ["--norms", "none,batch", "--regularizers", "none,dropout", "--seeds", "0", "--batch-sizes", "16"]
    return ["study", "lung", "--data", str(data), "--out", str(out), "--epochs", str(EPOCHS), *arms]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert run(arguments(data, out)) == 0
    return out


def start(data, out):
    """Start the study as a user does; as many threads as here, on which the last digits of sums depend.

    Ctrl-C works in it even where the tests run in the background of a shell, which ignores it and hands that on.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [MEDNORM, *arguments(data, out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_epochs(process, folder, count):
    """Wait until a run has that many epochs on disk and is still at work."""
    deadline = time.monotonic() + PATIENCE
    table = folder / "metrics.csv"
    while time.monotonic() < deadline:
        if table.exists() and len(table.read_text().splitlines()) > count:
            return
        if process.poll() is not None:
            pytest.fail(f"the study ended before {folder.name} had {count} epochs: {process.communicate()}")
        time.sleep(0.002)
    kill(process)
    pytest.fail(f"{folder.name} did not get to {count} epochs in {PATIENCE} s")


def kill(process):
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, "the study ended before it was killed"


def finished(out):
    """The records and weights of the runs that are finished, with the time at which they were written."""
    folders = [path.parent for path in (out / "runs").glob("*/run.json")]
    files = [folder / name for folder in folders for name in ("run.json", "best.ckpt", "last.ckpt", "metrics.csv")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_study_killed_twice_ends_with_the_figures_of_an_uninterrupted_one(data, uninterrupted, tmp_path):
    out = tmp_path / "killed"

    first = start(data, out)
    wait_for_epochs(first, out / "runs" / RUNS[0], 2)
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second study comes
    assert run(arguments(data, out)) == 2, "a second study in the folder of one that runs"
    kill(first)
    assert finished(out) == {}
    assert not (out / "results.json").exists()

    second = start(data, out)
    wait_for_epochs(second, out / "runs" / RUNS[3], 2)
    kill(second)
    before = finished(out)
    assert {path.parent.name for path in before} == set(RUNS[:3])

    third = start(data, out)
    printed, said = third.communicate(timeout=PATIENCE)
    said = [line for line in said.splitlines() if not line.startswith("Preparing mednorm's loops")]  # on a busy machine
    assert (third.returncode, said) == (0, [])
    assert f"Figures  {out / 'results.json'}" in printed
    after = finished(out)
    assert {path: after[path] for path in before} == before, "a finished run was touched"
    assert read_figures(out) == read_figures(uninterrupted)
    assert (out / "report.html").exists()


def test_ctrl_c_is_one_line_and_status_130_and_the_same_command_goes_on(data, uninterrupted, tmp_path):
    out = tmp_path / "stopped"
    process = start(data, out)
    wait_for_epochs(process, out / "runs" / RUNS[1], 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert said == "mednorm: stopped. A study or a training goes on where it was by the same command.\n"
    before = finished(out)
    assert {path.parent.name for path in before} == {RUNS[0]}
    assert run(arguments(data, out)) == 0
    after = finished(out)
    assert {path: after[path] for path in before} == before
    assert read_figures(out) == read_figures(uninterrupted)
