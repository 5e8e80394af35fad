import json

import pytest
import torch

from mednorm.cli.app import run
from mednorm.results import Run
from mednorm.tasks.scaling import StandardizeEach
from mednorm.training.evaluation import evaluate_run
from mednorm.training.trained import TrainedRun
from tests.studies import figures, write_patients


def train(data, out, *options):
    return run(
        ["train", "lung", "--data", str(data), "--epochs", "2", "--batch-size", "16", "--out", str(out), *options]
    )


def test_one_run_is_that_of_a_study_with_the_same_settings(capsys, lung_npz, study_results, tmp_path):
    out = tmp_path / "run"
    assert train(lung_npz, out, "--norm", "batch", "--regularizer", "dropout", "--seed", "1", "--json") == 0
    printed = Run.model_validate_json(capsys.readouterr().out)
    twin = next(run for run in study_results.runs if run.name == "batch-dropout-b16-s1")
    apart = {"samples", "outcomes", "epochs_to_target"}
    assert {k: v for k, v in figures(printed.model_dump()).items() if k not in apart} == {
        k: v for k, v in figures(twin.model_dump()).items() if k not in apart
    }


def test_a_lean_run_has_the_figures_of_an_ordinary_one(capsys, lung_npz, tmp_path):
    records = []
    for option in ("--lean", "--no-lean"):
        assert train(lung_npz, tmp_path / option, option, "--json") == 0
        records.append(figures(json.loads(capsys.readouterr().out)))
    assert records[0] == records[1]
    assert "lean = true" in (tmp_path / "--lean" / "config.toml").read_text()


def test_a_run_remembers_how_its_images_were_scaled(capsys, lung_npz, tmp_path):
    assert train(lung_npz, tmp_path / "run", "--scaling", "image", "--json") == 0
    with_image = json.loads(capsys.readouterr().out)["metrics"]
    judged = evaluate_run(tmp_path / "run", None, "test", "cpu")
    assert judged.metrics["auc"] == pytest.approx(with_image["test_auc"])
    assert 'scaling = "image"' in (tmp_path / "run" / "config.toml").read_text()
    network = TrainedRun(tmp_path / "run", "cpu").network_for(torch.zeros(1, 12, 12), "an image")
    assert type(network.scaling) is StandardizeEach


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
        (
            ["--norm", "evonorm"],
            "options: norms.0: input should be 'none', 'batch', 'renorm', 'ghost', 'moving', 'range', "
            "'domain', 'frozen', 'group', 'instance' or 'layer', got 'evonorm'.",
        ),
        (["--regularizer", "l3"], "options: regularizers.0: expected 'none' or a sum of dropout, dropout_before,"),
        (["--train-share", "0"], "options: train_shares.1: input should be greater than 0, got 0.0."),
        (["--train-share", "1.5"], "options: train_shares.1: input should be less than or equal to 1, got 1.5."),
        (["--folds", "2", "--fold", "3of2"], "--fold: expected one of 1of2, 2of2, got '3of2'."),
        (["--fold", "1of5"], "--fold: expected one of none, got '1of5'."),
        (["--folds", "85"], "{data}: expected from 2 to 84 folds, the number of patients"),
        (["--holdout-site", "HT"], "{data}: expected the site to hold out to be each or one of none: the images name"),
        (["--network", "unet"], "network: expected one of article_cnn, article_cnn_deep, densenet121"),
        (["--batch-size", "0"], "options: batch_sizes.0: input should be greater than or equal to 1, got 0."),
        (["--seed", "-1"], "options: seeds.0: input should be greater than or equal to 0, got -1."),
        (["--image-size", "4,4"], "article_cnn: expected 2-D images of at least 6 a side, got size (4, 4)."),
    ],
)
def test_a_bad_value_is_one_line(capsys, lung_npz, tmp_path, options, expected):
    assert train(lung_npz, tmp_path / "run", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mednorm: {expected.format(data=lung_npz)}")
    assert said.count("\n") == 1


NETWORK = """
from monai.networks.blocks import Convolution
from torch import nn


def small(spatial_dims, in_channels, out_channels, norm):
    block = Convolution(spatial_dims, in_channels, 4, norm=norm, bias=False)
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, out_channels))
"""


def test_a_network_in_the_current_folder_is_trained_and_judged_again(capsys, lung_npz, tmp_path, monkeypatch):
    (tmp_path / "my_small_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    assert train(lung_npz, "out", "--network", "my_small_network:small", "--json") == 0
    trained = Run.model_validate_json(capsys.readouterr().out)
    assert trained.network == "my_small_network:small"
    assert list(trained.epochs[0].gradient_norms) == ["0.conv", "3"]
    assert run(["evaluate", "out", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)["metrics"]
    assert judged["auc"] == pytest.approx(trained.metrics["test_auc"], abs=1e-6)


@pytest.mark.parametrize(("options", "fold"), [([], "1of2"), (["--fold", "2of2"], "2of2")])
def test_one_fold_is_trained_the_first_unless_another_is_asked_for(capsys, lung_npz, tmp_path, options, fold):
    assert train(lung_npz, tmp_path / "run", "--folds", "2", *options, "--json") == 0
    assert Run.model_validate_json(capsys.readouterr().out).fold == fold


def test_a_site_is_held_out_and_a_share_is_trained_on(capsys, tmp_path):
    data = write_patients(tmp_path / "data")
    options = ["--holdout-site", "north", "--folds", "0", "--train-share", "0.5", "--network", "unet", "--json"]
    small = ["--image-size", "16,16", "--epochs", "1", "--batch-size", "3", "--out", str(tmp_path / "run")]
    assert run(["train", "heart-lv", "--data", str(data), *options, *small]) == 0
    trained = Run.model_validate_json(capsys.readouterr().out)
    assert (trained.fold, trained.train_share, list(trained.sites)) == ("site-north", 0.5, ["north"])
