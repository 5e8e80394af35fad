"""The clinical tasks on real images, which lie beside the repository: few epochs, small images, one or two norms."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mednorm.cli.app import run
from mednorm.data import manifest_of_folders
from mednorm.results import read_results
from mednorm.tasks.outcomes import read_outcomes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not beside this repository"),
]


def study(task, data, out, *options):
    small = ["--seeds", "0", "--preset", "quick", *([] if "--epochs" in options else ["--epochs", "1"])]
    assert run(["study", task, "--data", str(data), "--out", str(out), *small, *options]) == 0
    return read_results(out / "results.json")


def rows_of(results, out, norm):
    """The rows of all test images of an arm, from the tables of its runs."""
    tables = [read_outcomes(out / each.outcomes) for each in results.runs if each.norm == norm]
    return [
        (table.names[row], table.patients[row], table.sites[row]) for table in tables for row in range(len(table.names))
    ]


def manifest(name):
    with (DATA / name / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_heart_patient_is_judged_once_by_a_network_that_never_saw_the_patient(tmp_path):
    results = study("heart", DATA / "heart", tmp_path, "--image-size", "24,24", "--folds", "3", "--norms", "none,batch")
    for norm in ("none", "batch"):
        rows = rows_of(results, tmp_path, norm)
        assert len(rows) == len({name for name, _, _ in rows}) == 805
        folds = [read_outcomes(tmp_path / each.outcomes).patients for each in results.runs if each.norm == norm]
        often = Counter(patient for patients in folds for patient in set(patients))
        assert (len(often), set(often.values())) == (45, {1})
    assert results.study.data.classes == ["HF-I", "HF-NI", "HYP", "N"]
    assert (results.study.data.unit, results.study.data.resampled) == ("patient", "patients")
    quality = next(statement for statement in results.statements if statement.topic == "quality")
    assert quality.over_units.n == 45
    assert "over 45 patients" in quality.text


def test_the_left_ventricle_is_found_in_patients_that_were_held_out(tmp_path, capsys):
    options = ["--image-size", "32,32", "--folds", "3", "--norms", "batch", "--learning-rate", "0.01", "--epochs", "3"]
    results = study("heart-lv", DATA / "heart", tmp_path, *options, "--network", "unet")
    assert results.study.data.classes == ["background", "endocardium"]
    (arm,) = results.summary
    assert 0.4 < arm.metrics["test_dice"].mean < 1
    assert arm.over_units["test_dice"].low < arm.metrics["test_dice"].mean < arm.over_units["test_dice"].high
    assert arm.mode_gap["test_dice"].n == 1
    capsys.readouterr()
    name = results.runs[1].name
    assert run(["evaluate", str(tmp_path / "runs" / name), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["resampled"] == ["patients", 15]
    assert judged["metrics"]["dice"] == pytest.approx(results.runs[1].metrics["test_dice"], abs=1e-6)


def test_the_hospital_held_out_of_the_brain_is_tested_on_whole_and_never_trained_on(tmp_path):
    options = ["--image-size", "32,32", "--holdout-site", "HT", "--norms", "none,batch", "--network", "unet"]
    results = study("brain", DATA / "brain", tmp_path, *options)
    held = [row for row in manifest("brain") if row["site"] == "HT"]
    rows = rows_of(results, tmp_path, "batch")
    assert {site for _, _, site in rows} == {"HT"}
    assert Counter(patient for _, patient, _ in rows) == Counter(row["patient"] for row in held)
    images = results.study.data.images
    assert images["test"] == len(held)
    assert images["val"] == sum(row["split"] == "val" and row["site"] != "HT" for row in manifest("brain"))
    assert sum(images.values()) == 1155
    assert all(list(each.sites) == ["HT"] for each in results.runs)


def test_a_batch_size_is_advised_for_patches_of_brain_volumes(tmp_path, capsys):
    data = tmp_path / "manifest.csv"
    assert manifest_of_folders(DATA / "brain3d", ["Flair*.nii.gz", "T1c*.nii.gz"], "OTMultiClass*", data) == 2
    options = ["--image-size", "60,60,40", "--patch-size", "16,16,16", "--folds", "2", "--memory", "500GB"]
    options += ["--network", "unet", "--seconds", "0", "--json"]
    assert run(["advise", "brain3d", "--data", str(data), *options]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert (advice["network"], advice["images"]) == ("unet", 4)  # the patches of the one volume to train on
    assert [each["batch_size"] for each in advice["measured"]] == [1, 2, 4, 8]
    assert all(noise[0] > noise[1] > noise[3] > 0 for noise in advice["noise"]["layers"].values())
    assert len(advice["noise"]["layers"]) == 6


def test_brain_volumes_of_two_modalities_are_trained_on_in_patches_and_judged_whole(tmp_path):
    data = tmp_path / "manifest.csv"
    assert manifest_of_folders(DATA / "brain3d", ["Flair*.nii.gz", "T1c*.nii.gz"], "OTMultiClass*", data) == 2
    options = ["--image-size", "60,60,40", "--patch-size", "16,16,16", "--patches-per-volume", "2", "--folds", "2"]
    results = study("brain3d", data, tmp_path / "out", *options, "--norms", "batch", "--network", "unet")
    assert results.study.data.shape == [2, 60, 60, 40]
    assert results.study.data.classes == ["background", "1", "2", "3", "4"]
    assert sorted(patient for _, patient, _ in rows_of(results, tmp_path / "out", "batch")) == [
        "brats_2013_pat0005_1", "brats_2013_pat0006_1",
    ]  # fmt: skip
    for each in results.runs:
        assert 0 <= each.metrics["test_dice"] < 1
        assert each.metrics["test_hd95"] > 0
        with np.load(tmp_path / "out" / each.samples) as file:
            assert file["image"].shape == (1, 1, 60, 60)


def test_chest_x_rays_are_studied_with_a_network_of_121_layers(tmp_path):
    few = {}
    with np.load(DATA / "lung" / "pneumoniamnist.npz") as file:
        for split, count in (("train", 16), ("val", 8), ("test", 8)):
            labels = file[f"{split}_labels"].ravel()
            rows = np.concatenate([np.flatnonzero(labels == label)[: count // 2] for label in (0, 1)])
            few |= {f"{split}_{part}": file[f"{split}_{part}"][rows] for part in ("images", "labels")}
    np.savez(tmp_path / "few.npz", **few)
    options = ["--network", "densenet121", "--image-size", "64,64", "--batch-sizes", "8", "--norms", "none,batch"]
    results = study("lung", tmp_path / "few.npz", tmp_path / "out", *options)
    assert results.study.networks == ["densenet121"]
    # torchvision's DenseNet-121 has 6,953,856 weights before its last layer; of one channel, 6,272 fewer; without a
    # norm its scales are missing and its shifts stay: 41,824 channels are normalized.
    assert results.study.parameters == 6_953_856 - 2 * 64 * 49 - 41_824 + (1024 + 1) * 2
    assert [each.status for each in results.runs] == ["finished", "finished"]
    assert len(results.runs[0].initial_gradient_norms) == 121
