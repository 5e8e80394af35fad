import json

import pytest

from mednorm.cli.app import run

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
    expected = {"auc": stored["test_auc"], "accuracy": stored["test_accuracy"]}
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
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
