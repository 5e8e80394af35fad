import json

import pytest

from mednorm.cli.app import run
from mednorm.results import Run
from tests.studies import write_patients

RUN = "batch-none-b16-s1"


@pytest.fixture
def folder(study_folder):
    return study_folder / "runs" / RUN


@pytest.fixture
def stored(study_results):
    return next(run for run in study_results.runs if run.name == RUN).metrics


def test_json_agrees_with_the_study_and_is_all_that_is_printed(capsys, folder, stored):
    assert run(["evaluate", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["run"], found["split"], found["images"]) == (str(folder), "test", 20)
    assert found["metrics"] == pytest.approx({name: stored[f"test_{name}"] for name in found["metrics"]}, abs=1e-6)
    assert set(found["metrics"]) >= {"auc", "accuracy", "calibration_error"}
    assert captured.err == ""


def test_the_table_names_run_split_and_images(capsys, folder, stored):
    assert run(["evaluate", str(folder), "--split", "val"]) == 0
    shown = capsys.readouterr().out
    assert f"{RUN}, val, 16 images" in " ".join(shown.split())
    assert f"{stored['val_auc']:.4f}" in shown


def test_a_folder_that_is_no_run_is_one_line(capsys, tmp_path):
    assert run(["evaluate", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"mednorm: {tmp_path}: expected the folder of a run, with config.toml and best.ckpt; found no config.toml.\n"
    )
    assert captured.out == ""


@pytest.fixture(scope="module")
def judged(tmp_path_factory, _quick_collections):
    """A run with batch normalization on images of two sites."""
    folder = tmp_path_factory.mktemp("judged")
    data = write_patients(folder / "data")
    small = ["--image-size", "12,12", "--epochs", "1", "--batch-size", "6", "--folds", "2"]
    assert run(["train", "heart", "--data", str(data), *small, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_json_has_both_modes_the_intervals_and_every_site(capsys, judged):
    stored = Run.model_validate_json((judged / "run.json").read_text())
    assert run(["evaluate", str(judged), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["resampled"] == ["patients", 6]
    for name in found["metrics"]:
        assert found["metrics"][name] == pytest.approx(stored.metrics[f"test_{name}"], abs=1e-6)
        assert found["batch_metrics"][name] == pytest.approx(stored.batch_metrics[f"test_{name}"], abs=1e-6)
    assert set(found["sites"]) == {"north", "south"}
    assert found["sites"]["north"]["accuracy"] == pytest.approx(stored.sites["north"]["test_accuracy"])
    low, high = found["intervals"]["accuracy"]
    assert 0 <= low <= found["metrics"]["accuracy"] <= high <= 1


def test_the_tables_show_both_modes_and_the_sites(capsys, judged):
    stored = Run.model_validate_json((judged / "run.json").read_text())
    assert run(["evaluate", str(judged)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("running", "batch", "over 6 patients", "By site", "north", "south"):
        assert text in shown
    for value in (stored.metrics["test_calibration_error"], stored.batch_metrics["test_calibration_error"]):
        assert f"{value:.4f}" in shown


def test_a_network_without_running_statistics_has_one_column(capsys, study_folder):
    assert run(["evaluate", str(study_folder / "runs" / "none-none-b16-s0"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_metrics"] == {}
