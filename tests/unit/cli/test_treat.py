"""`mednorm treat`: a run whose south hospital has another scanner gets that hospital's statistics."""

import csv
import json
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from mednorm.cli.app import run
from mednorm.training.disk import read_weights
from mednorm.training.evaluation import evaluate_run
from mednorm.training.treatment import treat_run
from tests.studies import write_patients


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of discs, and the manifest that it was trained on; tests change neither."""
    folder = tmp_path_factory.mktemp("patients")
    manifest = write_patients(folder, patients=24, images=4)
    out = tmp_path_factory.mktemp("runs") / "run"
    told = ["--epochs", "6", "--batch-size", "8", "--scaling", "training", "--image-size", "12,12"]
    assert run(["train", "heart", "--data", str(manifest), "--out", str(out), "--folds", "0", *told]) == 0
    return out, manifest


@pytest.fixture(scope="module")
def clinic(trained, tmp_path_factory):
    """The same images, those of the south at a tenth of the gain."""
    return shifted(trained[1], tmp_path_factory.mktemp("clinic"), lambda row: row["site"] == "south")


def shifted(manifest, folder, where, gain=0.1, offset=100):
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        source = manifest.parent / row["image"]
        row["mask"] = str(manifest.parent / row["mask"])
        if where(row):
            pixels = np.asarray(Image.open(source), float) * gain + offset
            Image.fromarray(pixels.round().astype(np.uint8)).save(folder / row["image"])
        else:
            row["image"] = str(source)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


def treat(folder, data, out, *options):
    return run(["treat", str(folder), "--data", str(data), "--out", str(out), "--device", "cpu", *options])


def digests(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_a_new_run_beside_the_old_one_has_the_statistics_of_the_site(trained, clinic, tmp_path, capsys):
    old, out = trained[0], tmp_path / "treated"
    before = digests(old)
    assert treat(old, clinic, out, "--fix", "MN004", "--site", "south") == 0
    assert "Adapted to site south, for MN004: 2 layers, 32 images." in " ".join(capsys.readouterr().out.split())
    assert digests(old) == before
    record = json.loads((out / "treatment.json").read_text())
    assert (record["of"], record["site"], record["codes"]) == (old.name, "south", ["MN004"])
    assert all(layer["after"] < 1e-3 < layer["before"] for layer in record["report"]["layers"])
    weights, moved = read_weights(old / "best.ckpt")[0], read_weights(out / "best.ckpt")[0]
    changed = {name for name in weights if not torch.equal(weights[name], moved[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} <= {"running_mean", "running_var", "num_batches_tracked"}
    assert len(changed) >= 4


def test_the_treated_run_is_judged_by_the_same_command_and_does_better(trained, clinic, tmp_path):
    out = tmp_path / "treated"
    assert treat(trained[0], clinic, out, "--fix", "MN004", "--site", "south") == 0
    before, after = (evaluate_run(each, str(clinic), "all", "cpu").sites["south"] for each in (trained[0], out))
    assert before["accuracy"] < 0.8 <= after["accuracy"]


def test_without_fix_it_treats_what_is_found_and_says_so_as_json(trained, clinic, tmp_path, capsys):
    out = tmp_path / "treated"
    assert treat(trained[0], clinic, out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(out)
    assert "MN004" in told["codes"]
    assert told["site"] == "south"
    assert set(told["codes"]) <= set(told["findings"]["before"])
    assert told["not_found"] == []
    assert told["sites"]["south"]["after"] < 0.01 < 0.25 < told["sites"]["south"]["before"]


def test_what_it_does_to_the_other_sites_is_said_of_the_same_images(trained, clinic, tmp_path, capsys):
    out = tmp_path / "treated"
    assert treat(trained[0], clinic, out, "--fix", "MN004,MN006", "--site", "south") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "for MN004, MN006 (not found):" in shown
    sites = json.loads((out / "treatment.json").read_text())["sites"]
    assert sorted(sites) == ["north", "south"]
    assert sites["north"]["before"] < sites["north"]["after"]
    for site, row in sites.items():
        assert f"distance of site {site}, σ │ {row['before']:.3f} │ {row['after']:.3f}" in shown


def test_a_way_to_adapt_without_a_site_is_a_mistake(trained, clinic, tmp_path, capsys):
    assert treat(trained[0], clinic, tmp_path / "out", "--fix", "MN001", "--method", "mix") == 2
    assert "--method: expected a site to adapt to, got none, as MN004 is not among MN001." in capsys.readouterr().err


def test_a_change_that_lowers_the_metric_on_held_out_images_is_not_kept(trained, tmp_path, capsys):
    other = shifted(trained[1], tmp_path, lambda row: row["split"] == "train", -1, 255)
    out = tmp_path / "treated"
    assert treat(trained[0], other, out, "--split", "train", "--fix", "MN001", "--validate", "test") == 1
    assert "The metric got worse, so no run was written." in " ".join(capsys.readouterr().out.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fix", "MN001", "--site", "south"], "--site: expected MN004 in --fix, which adapts to a site, got MN001."),
        (["--batch-size", "0"], "--batch-size: expected at least 1, got 0."),
        (["--fix", ""], "--fix: expected codes among MN001, MN002, MN006, MN007, MN014, MN004, which other"),
        (["--fix", " ,"], "which other running statistics mend, got none. Leave it out to treat what is found."),
        (["--fix", "MN008"], "--fix: expected codes among MN001, MN002, MN006, MN007, MN014, MN004, which other"),
        (
            ["--fix", "MN004", "--site", "west"],
            "--site: expected a site of the images, got 'west'; there are north, so",
        ),
    ],
)
def test_mistakes_are_one_line(trained, clinic, tmp_path, capsys, options, expected):
    assert treat(trained[0], clinic, tmp_path / "treated", *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert expected in line
    assert not (tmp_path / "treated").exists()


def test_empty_words_among_the_codes_do_not_count(trained, clinic, tmp_path):
    assert treat(trained[0], clinic, tmp_path / "treated", "--fix", "mn001, ,") == 0
    assert json.loads((tmp_path / "treated" / "treatment.json").read_text())["codes"] == ["MN001"]


def test_a_run_that_cannot_be_written_to_its_end_is_not_there(trained, clinic, tmp_path):
    old = shutil.copytree(trained[0], tmp_path / "old")

    def vanish(done):
        (old / "config.toml").unlink(missing_ok=True)  # which the new run gets last

    with pytest.raises(FileNotFoundError, match=r"config\.toml"):
        treat_run(old, str(clinic), "all", tmp_path / "treated", fix=["MN001"], device="cpu", progress=vanish)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_there_is_never_written_over(trained, clinic, tmp_path, capsys):
    assert treat(trained[0], clinic, tmp_path) == 2
    assert f"{tmp_path}: expected no such folder" in capsys.readouterr().err
