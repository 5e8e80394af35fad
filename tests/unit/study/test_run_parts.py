"""Studies over folds, sites, shares, networks and volumes, from their files to their sentences."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from mednorm.errors import ConfigError
from mednorm.report import write_report
from mednorm.results import read_results
from mednorm.study.run import run_study, undefined_arms
from mednorm.study.settings import resolve
from mednorm.tasks import find_task
from mednorm.training.evaluation import evaluate_run
from mednorm.training.settings import prepare
from tests.studies import read_figures, write_npz, write_patients, write_volumes

TINY = """
from monai.networks.blocks import Convolution
from torch import nn


def network(spatial_dims, in_channels, out_channels, norm):
    block = Convolution(spatial_dims, in_channels, 4, norm=norm, bias=False)
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, out_channels))


def to_one_pixel(spatial_dims, in_channels, out_channels, norm):
    pooled = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(pooled, Convolution(spatial_dims, in_channels, 4, norm=norm), nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, _quick_collections):
    return write_patients(tmp_path_factory.mktemp("patients"))


def settings(task, data, **flags):
    small = {"data": str(data), "norms": ["none", "batch"], "regularizers": ["none"], "seeds": [0]}
    small |= {"batch_sizes": [6], "epochs": 1, "folds": 0, "image_size": [12, 12], "scale_learning_rate": "none"}
    return resolve(task, "quick", {}, small | flags)


@pytest.fixture(scope="module")
def crossed(data, tmp_path_factory):
    """A cross-validation of two norms with two seeds, and its folder."""
    out = tmp_path_factory.mktemp("crossed") / "out"
    return run_study(settings("heart", data, folds=3, seeds=[0, 1]), out, ""), out


def test_every_arm_is_trained_on_every_fold_with_every_seed(crossed):
    results, _ = crossed
    assert [run.name for run in results.runs] == [
        f"{norm}-none-b6-s{seed}-f{fold}of3" for seed in (0, 1) for fold in (1, 2, 3) for norm in ("none", "batch")
    ]
    assert results.study.folds == ["1of3", "2of3", "3of3"]


def test_the_summary_of_a_cross_validation_speaks_of_all_patients(crossed):
    results, _ = crossed
    for arm in results.summary:
        assert len(arm.runs) == 6
        assert (arm.metrics["test_auc"].n, arm.over_units["test_auc"].n) == (2, 12)
        assert set(arm.sites) == {"north", "south"}
    quality = next(statement for statement in results.statements if statement.topic == "quality")
    assert "over 2 paired seeds" in quality.text
    assert "over 12 patients" in quality.text


def test_how_the_images_were_divided_is_said(crossed):
    results, _ = crossed
    note = results.study.data.note
    assert note.startswith("3-fold cross-validation by patient: each of 36 images was a test image once")
    assert results.study.data.images == {"train": 12, "val": 12, "test": 12}
    assert (results.study.data.unit, results.study.data.resampled) == ("patient", "patients")
    assert any(statement.text == note for statement in results.statements)


def test_a_cross_validation_that_was_killed_goes_on_with_the_run_it_was_at(crossed, data, tmp_path):
    _, out = crossed
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "results.json").unlink()
    lost = copy / "runs" / "batch-none-b6-s1-f2of3"
    (lost / "run.json").unlink()
    shutil.rmtree(copy / "runs" / "none-none-b6-s1-f3of3")
    before = (copy / "runs" / "none-none-b6-s0-f1of3" / "run.json").stat().st_mtime_ns
    run_study(settings("heart", data, folds=3, seeds=[0, 1]), copy, "")
    assert read_figures(copy) == read_figures(out)
    assert (copy / "runs" / "none-none-b6-s0-f1of3" / "run.json").stat().st_mtime_ns == before


def test_the_results_of_a_cross_validation_come_back_from_disk_and_make_a_page(crossed):
    results, out = crossed
    assert read_results(out / "results.json") == results
    assert "cross-validation by patient" in write_report(results, out).read_text(encoding="utf-8")


def test_each_site_is_the_test_once(data, tmp_path):
    results = run_study(
        settings("heart-lv", data, network="unet", holdout_site="each", image_size=[16, 16]), tmp_path, ""
    )
    assert results.study.folds == ["site-north", "site-south"]
    assert results.study.data.note.startswith("Each of 2 sites was the test once, the others were trained on.")
    texts = [statement.text.split(":")[0] for statement in results.statements if statement.topic == "sites"]
    assert texts == [f"At site {site}, batch normalization against none" for site in ("north", "south")]
    assert {statement.topic for statement in results.statements} >= {"quality", "modes", "sites"}


def test_a_single_site_held_out_is_said_to_be_the_test(data, tmp_path):
    results = run_study(
        settings("heart-lv", data, network="unet", holdout_site="north", image_size=[16, 16]), tmp_path, ""
    )
    assert results.study.data.note.startswith("Tested on site north, trained on the others.")
    assert results.study.data.patients == {"train": 3, "val": 1, "test": 8}


def test_two_folds_leave_nothing_to_validate_on_and_no_target(data, tmp_path):
    results = run_study(settings("heart", data, folds=2), tmp_path, "")
    assert "There are no validation images: the last epoch of each run is judged." in results.study.data.note
    assert results.study.target.value is None
    assert {run.best_epoch for run in results.runs} == {1}
    assert not [statement for statement in results.statements if statement.topic == "speed"]


def test_images_without_patients_are_cross_validated_one_by_one(tmp_path):
    data = write_npz(tmp_path / "lung.npz", train=12, val=4, test=4)
    results = run_study(settings("lung", data, norms=["none"], folds=2), tmp_path / "out", "")
    assert results.study.data.note.startswith("2-fold cross-validation by image: each of 20 images")


def test_shares_and_the_deeper_network_are_arms_of_their_own_with_their_sentences(data, tmp_path):
    made = settings("heart", data, train_shares=[0.5, 1.0], deeper=True)
    results = run_study(made, tmp_path, "")
    assert [run.name for run in results.runs] == [
        f"{norm}-none-b6-s0{rest}" for rest in ("", "-t0.5", "-deeper") for norm in ("none", "batch")
    ]
    assert [(arm.train_share, arm.network) for arm in results.summary[::2]] == [
        (1.0, "article_cnn"), (0.5, "article_cnn"), (1.0, "article_cnn_deep"),
    ]  # fmt: skip
    texts = [statement.text for statement in results.statements]
    assert any(text.startswith("With 50% of the training patients, batch normalization") for text in texts)
    assert any(text.startswith("In article_cnn_deep, batch normalization against none") for text in texts)
    assert results.study.train_shares == [0.5, 1.0]
    assert read_results(tmp_path / "results.json") == results, "shares are numbers with a fraction"


@pytest.fixture
def own_networks(tmp_path, monkeypatch):
    (tmp_path / "networks_of_a_user.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return "networks_of_a_user"


def test_a_network_of_the_users_own_is_studied(data, tmp_path, own_networks):
    network = f"{own_networks}:network"
    results = run_study(settings("heart", data, network=network), tmp_path / "out", "")
    assert results.study.networks == [network]
    assert [(run.status, run.network) for run in results.runs] == [("finished", network)] * 2
    judged = evaluate_run(tmp_path / "out" / "runs" / "batch-none-b6-s0", None, "test")
    assert judged.metrics["auc"] == pytest.approx(results.runs[1].metrics["test_auc"], abs=1e-6)


def test_a_norm_that_one_image_gives_no_statistics_is_said_and_left_out(data, tmp_path, own_networks):
    made = settings("heart", data, network=f"{own_networks}:to_one_pixel", batch_sizes=[1, 6], base_batch_size=6)
    lines = []
    results = run_study(made, tmp_path / "out", "", say=lines.append)
    assert [run.name for run in results.runs] == ["none-none-b6-s0", "batch-none-b6-s0", "none-none-b1-s0"]
    (arm,) = results.study.left_out
    assert arm == "batch, batch size 1, networks_of_a_user:to_one_pixel"
    why = results.study.left_out[arm]
    assert "1" in why
    assert "\n" not in why
    assert f"Left out: {arm}: {why}" in lines
    assert any(statement.text == f"Left out: {arm}: {why}" for statement in results.statements)
    assert read_results(tmp_path / "out" / "results.json") == results


def test_where_the_base_itself_is_left_out_the_others_are_trained(data, tmp_path, own_networks):
    made = settings(
        "heart", data, network=f"{own_networks}:to_one_pixel", norms=["batch"], batch_sizes=[1, 6], base_batch_size=1
    )
    results = run_study(made, tmp_path / "out", "")
    assert [run.name for run in results.runs] == ["batch-none-b6-s0"]
    assert results.study.target.value is None


def test_a_study_with_no_arm_that_can_be_trained_is_refused(data, own_networks):
    made = settings("heart", data, network=f"{own_networks}:to_one_pixel", norms=["batch"], batch_sizes=[1])
    with pytest.raises(ConfigError, match=r"study: expected an arm that can be trained, got none: .*1"):
        undefined_arms(made, find_task("heart"), prepare(made))


def test_arms_that_can_be_trained_at_batch_size_1_are_not_left_out(data):
    made = settings("heart", data, batch_sizes=[1, 6], base_batch_size=6)
    assert undefined_arms(made, find_task("heart"), prepare(made)) == {}


def test_images_that_are_no_draws_from_a_population_have_no_interval_over_them(tmp_path):
    small = {"norms": ["none"], "regularizers": ["none"], "batch_sizes": [8], "seeds": [0], "epochs": 1}
    made = resolve("tissue", "quick", {}, small | {"image_size": [16, 16]})
    results = run_study(made, tmp_path, "")
    assert (results.runs[0].intervals, results.summary[0].over_units) == ({}, {})
    assert (results.study.data.resampled, results.study.data.unit) == ("", "image")
    assert evaluate_run(tmp_path / "runs" / "none-none-b8-s0", None, "test").intervals == {}


@pytest.mark.slow
def test_volumes_in_a_manifest_are_studied_from_their_files_to_the_page(tmp_path):
    data, out = write_volumes(tmp_path, ["train"] * 4 + ["val"] * 2 + ["test"] * 2), tmp_path / "out"
    flags = {"data": str(data), "norms": ["none", "batch"], "seeds": [0], "batch_sizes": [2], "epochs": 1}
    flags |= {"network": "unet", "patch_size": [16, 16, 16], "folds": 0, "patches_per_volume": 1}
    results = run_study(resolve("brain3d", "default", {}, flags), out, "")
    study = results.study
    assert (study.data.shape, study.data.images) == ([1, 16, 16, 16], {"train": 4, "val": 2, "test": 2})
    assert (study.data.classes, study.data.note) == (["background", "1"], "")
    assert study.data.patients == {"train": 4, "val": 2, "test": 2}
    assert [run.status for run in results.runs] == ["finished", "finished"]
    assert all(0 <= run.metrics["test_dice"] <= 1 for run in results.runs)
    with np.load(out / results.runs[0].samples) as file:
        assert (file["image"].shape, file["truth"].shape) == ((2, 1, 16, 16), (2, 16, 16))
        stored = np.asarray(nibabel.load(tmp_path / "image6.nii.gz").dataobj)
        np.testing.assert_array_equal(file["image"][0, 0], stored[..., 8])
    page = write_report(read_results(out / "results.json"), out).read_text(encoding="utf-8")
    pictures = page.count('<img src="data:image/png;base64,')
    assert pictures == 2 * 2 * 3  # norms, images, and each with truth and prediction
    assert "1 × 16 × 16 × 16 images for segmentation" in page
    assert evaluate_run(out / "runs" / "batch-none-b2-s0", None, "all").images == 8
    json.loads((out / "results.json").read_text(), parse_constant=lambda text: pytest.fail(text))
