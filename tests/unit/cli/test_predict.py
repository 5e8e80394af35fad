import csv
import json

import numpy as np
import pytest
from PIL import Image

from mednorm.cli.app import run
from mednorm.data import load_mask
from mednorm.training.prediction import predict_run
from tests.unit.training.runs import ball, nifti, volume_run, write_run


@pytest.fixture
def lung_run(tmp_path):
    return write_run(tmp_path / "lung", task="lung", network="classifier", classes=["normal", "[ill]"])


@pytest.fixture
def tissue_run(tmp_path):
    return write_run(tmp_path / "tissue", classes=["background", "disc"])


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for number in range(3):
        values = np.zeros((12, 14), np.uint8)
        values[:, :7] = 60 + 40 * number
        values[:, 7:] = 100
        Image.fromarray(values).save(tmp_path / f"x{number}.png")
        paths.append(str(tmp_path / f"x{number}.png"))
    return paths


def refused(capsys, *arguments):
    """Run a command that is a mistake; return what it said on stderr, one line, after the program's name."""
    assert run(["predict", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.removeprefix("mednorm: ").rstrip("\n")


def test_the_json_of_classes_is_what_the_api_gives_and_all_that_is_printed(capsys, lung_run, pictures):
    assert run(["predict", str(lung_run), *pictures, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = predict_run(lung_run, pictures, None)
    assert printed == {"run": str(lung_run), "predictions": [each.to_dict() for each in found]}
    assert [each["predicted"] for each in printed["predictions"]] == ["normal", "normal", "[ill]"]


def test_the_table_of_classes_shows_each_image_with_its_probabilities(capsys, lung_run, pictures):
    assert run(["predict", str(lung_run), *pictures]) == 0
    shown = capsys.readouterr().out
    assert "lung, 3 images" in shown
    for each in predict_run(lung_run, pictures, None):
        row = next(line for line in shown.splitlines() if each.image.rsplit("/", 1)[1] in line)
        assert [cell.strip() for cell in row.split("│")[2:5]] == [
            each.predicted,
            *(f"{chance:.4f}" for chance in each.probabilities.values()),
        ]


@pytest.mark.parametrize("format", ["json", "csv"])
def test_classes_are_written_where_a_folder_is_named(capsys, lung_run, pictures, tmp_path, format):
    out = tmp_path / "out"
    assert run(["predict", str(lung_run), *pictures, "--out", str(out), "--format", format]) == 0
    assert capsys.readouterr().out.endswith(f"Table    {out / f'predictions.{format}'}\n")
    assert [path.name for path in out.iterdir()] == [f"predictions.{format}"]
    found = predict_run(lung_run, pictures, None)
    if format == "json":
        assert json.loads((out / "predictions.json").read_text())["predictions"] == [each.to_dict() for each in found]
    else:
        rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
        assert [float(row["probabilities/[ill]"]) for row in rows] == [each.probabilities["[ill]"] for each in found]


def test_masks_are_written_beside_a_table_of_shares_and_volumes(capsys, tmp_path):
    scan = ball()
    path = nifti(tmp_path / "scan.nii.gz", scan, np.diag([2.0, 1.0, 1.0, 1.0]))
    folder = volume_run(tmp_path / "run", network="bright", classes=["background", "ball"])
    out = tmp_path / "out"
    assert run(["predict", str(folder), path, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    voxels = int((scan > 50).sum())
    for text in ("run, 1 image", f"{voxels / scan.size:.2%}", f"{voxels * 2 / 1000:.4g} ml", "scan-mask.nii.gz"):
        assert text in shown
    assert shown.endswith(f"Masks    {out}\nTable    {out / 'predictions.json'}\n")
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json", "scan-mask.nii.gz"]
    (stored,) = json.loads((out / "predictions.json").read_text())["predictions"]
    assert (stored["mask"], stored["voxels"]["ball"]) == (str(out / "scan-mask.nii.gz"), voxels)


def test_masks_go_to_a_folder_of_their_own_unless_one_is_named(tissue_run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(tissue_run), pictures[0], "--probabilities"]) == 0
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "predictions.json",
        "x0-mask.png",
        "x0-probabilities.npy",
    ]
    assert load_mask(tmp_path / "predictions" / "x0-mask.png").shape == (12, 14)


def test_what_is_there_is_replaced_only_when_told_so(capsys, tissue_run, pictures, tmp_path):
    out = tmp_path / "out"
    assert run(["predict", str(tissue_run), pictures[0], "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    said = refused(capsys, tissue_run, pictures[0], "--out", out)
    assert said.startswith(f"{out / 'predictions.json'}: expected no file there, got one.")
    said = refused(capsys, tissue_run, pictures[0], "--out", out, "--format", "csv")
    assert said.startswith(f"{out / 'x0-mask.png'}: expected no file there, got one.")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run(["predict", str(tissue_run), pictures[0], "--out", str(out), "--overwrite"]) == 0


def test_a_failure_halfway_keeps_masks_and_table_and_says_how_many(capsys, tissue_run, pictures, tmp_path):
    Image.fromarray(np.zeros((12, 14, 3), np.uint8)).save(pictures[1])
    out = tmp_path / "out"
    said = refused(capsys, tissue_run, *pictures, "--out", out)
    assert said.startswith(f"{pictures[1]}: expected 1 channel")
    assert "got 3." in said
    assert said.endswith(f"The 1 of 3 images before it were predicted; their masks are in {out}.")
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json", "x0-mask.png"]
    stored = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [each["image"] for each in stored] == pictures[:1]


def test_an_unknown_orientation_is_said_on_stderr(capsys, tmp_path):
    path = nifti(tmp_path / "scan.nii.gz", ball(), None)
    folder = volume_run(tmp_path / "run", network="bright", orientation="RAS")
    assert run(["predict", str(folder), path, "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "scan.nii.gz: orientation unknown, taken as it is\n"
    assert json.loads(captured.out)["predictions"][0]["resampled"] == ["orientation unknown, taken as it is"]


def test_mistakes_are_one_line(capsys, lung_run, tissue_run, pictures, tmp_path):
    scan = nifti(tmp_path / "scan.nii", ball(), np.eye(4))
    (tmp_path / "notes.dcm").write_text("no image")
    (tmp_path / "empty.png").touch()
    out = ["--out", tmp_path / "out"]
    assert "found no config.toml" in refused(capsys, tmp_path, *pictures)
    assert "got no file at nowhere.png" in refused(capsys, lung_run, *pictures, "nowhere.png")
    assert "got 8 bytes that begin with b'no image'" in refused(capsys, tissue_run, tmp_path / "notes.dcm", *out)
    assert "got an empty file (0 bytes)" in refused(capsys, tissue_run, tmp_path / "empty.png", *out)
    assert "got a 3-D image of size (20, 18, 16)" in refused(capsys, tissue_run, scan, *out)
    assert "expected every image once, got it again" in refused(capsys, lung_run, pictures[0], pictures[0])
    assert "--format: expected --out with it, got csv alone" in refused(capsys, lung_run, *pictures, "--format", "csv")
    assert "Invalid value for '--device': 'tpu'" in refused(capsys, lung_run, *pictures, "--device", "tpu")
    assert "Invalid value for '--format': 'xml'" in refused(capsys, lung_run, *pictures, "--format", "xml")
    assert "Missing argument 'IMAGE'" in refused(capsys, lung_run)
    (lung_run / "best.ckpt").unlink()
    assert "best.ckpt: no such file" in refused(capsys, lung_run, *pictures)
    assert not (tmp_path / "out").exists()


def test_the_example_in_the_help_works(tmp_path, monkeypatch, capsys):
    from tests.unit.data.dicoms import series

    monkeypatch.chdir(tmp_path)
    volume_run(tmp_path / "run", network="bright")
    nifti(tmp_path / "scan.nii.gz", ball(), np.eye(4))
    series(tmp_path / "series")
    run(["predict", "--help"])
    (example,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("mednorm predict")]
    assert run(example.split()[1:]) == 0
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "predictions.json",
        "scan-mask.nii.gz",
        "series-mask.nii.gz",
    ]
