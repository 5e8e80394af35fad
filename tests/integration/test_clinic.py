"""The tutorial of the clinic, on the real images: its commands as they stand, with fewer epochs; and its figures."""

import csv
import json
import re
import shlex
from pathlib import Path
from statistics import mean

import pytest

from mednorm.cli.app import run
from mednorm.training.evaluation import evaluate_run

ROOT = Path(__file__).resolve().parents[2]
BRAIN = ROOT.parent / "shared" / "data" / "brain"
TUTORIAL = ROOT / "docs" / "tutorials" / "clinic.md"


@pytest.mark.slow
@pytest.mark.skipif(not BRAIN.is_dir(), reason="the real images are not beside this repository")
def test_the_commands_of_the_tutorial_do_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from clinic import HOSPITAL, SCANNERS, scanner

    scanner(BRAIN, tmp_path / "clinic", HOSPITAL, *SCANNERS[0])
    small(BRAIN, tmp_path / "brain")
    small(tmp_path / "clinic", tmp_path / "clinic")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^\$ (mednorm .*)$", TUTORIAL.read_text(), re.MULTILINE)]
    status = {}
    for command in commands:
        status[command[0], command[1]] = run([*command, *(["--image-size", "32,32"] if command[0] == "train" else [])])
    assert status == {
        ("train", "brain"): 0,
        ("evaluate", "run"): 0,
        ("examine", "run"): 1,
        ("treat", "run"): 0,
        ("evaluate", "treated"): 0,
    }
    assert (tmp_path / "examination.html").stat().st_size > 100_000
    told = " ".join(capsys.readouterr().out.split())
    assert "A site's images differ from what the network expects (MN004, error" in told
    record = json.loads((tmp_path / "treated" / "treatment.json").read_text())
    assert record["site"] == "HT"
    assert all(layer["after"] < 1e-3 for layer in record["report"]["layers"])
    before, after = (evaluate_run(Path(name), "clinic", "test").metrics["dice"] for name in ("run", "treated"))
    assert after > before


def small(source, out):
    """Keep every fourth image of each split and site, so that this is quick."""
    with (source / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::4]
    for row in rows:
        row |= {column: str((source / row[column]).resolve()) for column in ("image", "mask")}
    out.mkdir(exist_ok=True)
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_in_the_committed_figures_the_treatment_recovers_at_least_half_of_the_loss_of_each_scanner():
    written = json.loads((ROOT / "benchmarks" / "results" / "clinic.json").read_text(encoding="utf-8"))
    for each in written["runs"]:
        assert (each["code"], each["site"]) == ("MN004", written["about"]["hospital"])
    scanners = {(run["gain"], run["offset"]) for run in written["runs"]}
    assert len(scanners) == 3
    for scanner in scanners:
        runs = [run["dice"] for run in written["runs"] if (run["gain"], run["offset"]) == scanner]
        assert len(runs) == 3
        lost, back = (
            mean(dice[better] - dice["other scanner"] for dice in runs) for better in ("as it was", "treated")
        )
        assert lost > 0.05
        assert back >= lost / 2
