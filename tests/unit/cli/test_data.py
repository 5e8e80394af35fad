import json

import numpy as np
import pytest
from PIL import Image

from mednorm.cli.app import run
from mednorm.data import describe, read


def test_a_medmnist_file_is_described_as_json_and_nothing_else(capsys, lung_npz):
    assert run(["data", "describe", str(lung_npz), "--json", "--classes", "well,ill"]) == 0
    captured = capsys.readouterr()
    expected = describe(read(lung_npz, classes=["well", "ill"])).to_dict()
    assert json.loads(captured.out) == json.loads(json.dumps(expected))
    assert captured.err == ""


def test_a_medmnist_file_is_described_in_tables(capsys, lung_npz):
    assert run(["data", "describe", str(lung_npz), "--classes", "well,ill"]) == 0
    shown = capsys.readouterr().out
    assert f"{lung_npz}: classification, 84 images" in shown.replace("\n", "")
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if line.startswith("│")
    ]
    assert ["images", "48", "16", "20"] in rows
    assert ["class ill", "24", "8", "10"] in rows


def test_the_embedded_images_are_described_by_their_name(capsys):
    assert run(["data", "describe", "tissue", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], sum(found["images"].values())) == ("segmentation", 200)
    assert found["classes"] == ["background", "grey matter", "white matter"]
    for split in ("train", "val", "test"):
        assert sum(found["per_class"][split].values()) == pytest.approx(1)


def test_a_kind_the_data_do_not_have_is_one_line(capsys, lung_npz):
    assert run(["data", "describe", str(lung_npz), "--kind", "segmentation"]) == 2
    said = capsys.readouterr().err
    assert "expected a manifest for segmentation, got a MedMNIST file" in said
    assert said.count("\n") == 1


def test_too_few_names_of_classes_are_one_line(capsys, lung_npz):
    assert run(["data", "describe", str(lung_npz), "--classes", "well"]) == 2
    assert "expected at least two classes with different names, got ('well',)" in capsys.readouterr().err


def patients(root):
    for patient in ("p1", "p2"):
        (root / patient).mkdir(parents=True)
        for name in ("flair.png", "t1.png", "mask.png"):
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / patient / name)
    return root


def manifest(root, *more):
    arguments = ["--image", "fl*.png", "--image", "t1.png", "--mask", "mask.png", "--out", str(root / "manifest.csv")]
    return run(["data", "manifest", str(root), *arguments, *more])


def test_a_manifest_of_folders_is_written_and_said(capsys, tmp_path):
    root = patients(tmp_path / "brain")
    assert manifest(root) == 0
    assert capsys.readouterr().out.splitlines() == ["patients 2", f"manifest {root / 'manifest.csv'}"]
    assert (root / "manifest.csv").read_text().splitlines() == [
        "image,mask,patient",
        "p1/flair.png;p1/t1.png,p1/mask.png,p1",
        "p2/flair.png;p2/t1.png,p2/mask.png,p2",
    ]


def test_a_manifest_that_is_there_or_a_pattern_that_fits_nothing_is_one_line(capsys, tmp_path):
    root = patients(tmp_path / "brain")
    assert manifest(root, "--image", "t2.png") == 2
    assert "p1: expected one file for pattern 't2.png', got none." in capsys.readouterr().err
    (root / "manifest.csv").write_text("mine")
    assert manifest(root) == 2
    said = capsys.readouterr().err
    assert "manifest.csv: expected no file there, got one" in said
    assert said.count("\n") == 1
