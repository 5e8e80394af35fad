import json

import pytest

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
