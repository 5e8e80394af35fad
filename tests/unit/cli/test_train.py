import json

import pytest

from mednorm.cli.app import run
from mednorm.results import Run
from tests.studies import figures


def train(data, out, *options):
    return run(
        ["train", "lung", "--data", str(data), "--epochs", "2", "--batch-size", "16", "--out", str(out), *options]
    )


def test_one_run_is_that_of_a_study_with_the_same_settings(capsys, lung_npz, study_results, tmp_path):
    out = tmp_path / "run"
    assert train(lung_npz, out, "--norm", "batch", "--regularizer", "dropout", "--seed", "1", "--json") == 0
    printed = Run.model_validate_json(capsys.readouterr().out)
    twin = next(run for run in study_results.runs if run.name == "batch-dropout-b16-s1")
    apart = {"samples", "epochs_to_target"}
    assert {k: v for k, v in figures(printed.model_dump()).items() if k not in apart} == {
        k: v for k, v in figures(twin.model_dump()).items() if k not in apart
    }


def test_json_is_the_record_and_nothing_else_is_on_stdout(capsys, lung_npz, tmp_path):
    assert train(lung_npz, tmp_path / "run", "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "run" / "run.json").read_text())


def test_the_samples_of_a_run_alone_are_named_where_they_are(capsys, lung_npz, tmp_path):
    assert train(lung_npz, tmp_path / "run", "--json") == 0
    named = json.loads(capsys.readouterr().out)["samples"]
    assert named == "samples.npz"
    assert (tmp_path / "run" / named).is_file()


def test_the_table_shows_the_metrics_and_where_the_weights_are(capsys, lung_npz, tmp_path):
    assert train(lung_npz, tmp_path / "run") == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"{record['metrics']['test_auc']:.4f}" in shown
    assert shown.endswith(f"Weights  {tmp_path / 'run' / 'best.ckpt'}\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--norm", "layer"], "options: norms.0: input should be 'none', 'batch', 'group' or 'instance', got 'layer'."),
        (["--regularizer", "l3"], "options: regularizers.0: expected 'none' or a sum of dropout, l1, l2"),
        (["--batch-size", "0"], "options: batch_sizes.0: input should be greater than or equal to 1, got 0."),
        (["--seed", "-1"], "options: seeds.0: input should be greater than or equal to 0, got -1."),
        (["--image-size", "4,4"], "article_cnn: expected 2-D images of at least 6×6 pixels, got size (4, 4)."),
    ],
)
def test_a_bad_value_is_one_line(capsys, lung_npz, tmp_path, options, expected):
    assert train(lung_npz, tmp_path / "run", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mednorm: {expected}")
    assert said.count("\n") == 1
