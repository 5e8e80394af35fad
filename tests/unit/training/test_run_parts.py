"""Runs on a share of the images, on one fold, without validation, and on patches of volumes."""

import csv

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from mednorm.tasks import find_task
from mednorm.tasks.outcomes import read_outcomes
from mednorm.training.evaluation import evaluate_run
from mednorm.training.run import train
from tests.studies import figures, run_settings, write_patients, write_volumes


class Seen(pl.Callback):
    """Keeps the images of every training step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        self.steps.append(batch[0])


class Stop(Exception):
    pass


class StopIn(pl.Callback):
    """Raises in a step of the second epoch, as a kill would come."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if trainer.current_epoch == 1:
            raise Stop


HEART = find_task("heart")


@pytest.fixture(scope="module")
def data(tmp_path_factory, _quick_collections):
    return write_patients(tmp_path_factory.mktemp("patients"))


@pytest.fixture(scope="module")
def folds(data):
    return HEART.prepare(str(data), folds=2)


def heart(data, **changed):
    values = {"task": "heart", "epochs": 2, "batch_size": 6, "classes": ["ill", "well"], "image_size": [12, 12]}
    return run_settings(data, **values | changed)


def test_a_share_of_the_patients_is_trained_on_for_as_many_steps(data, tmp_path):
    prepared, seen = HEART.prepare(str(data)), Seen()
    run = train(heart(data, train_share=0.5), HEART, prepared, tmp_path / "run", [seen])
    train_set = prepared.splits()["train"]
    assert len(train_set.names) == 24
    assert [len(images) for images in seen.steps] == [6] * 8  # 24 images in batches of 6, in each of two epochs
    owner = {image.numpy().tobytes(): who for image, who in zip(train_set.images, train_set.patients, strict=True)}
    patients = {owner[image.numpy().tobytes()] for step in seen.steps for image in step}
    assert len(patients) == 4
    assert {int(patient[1:]) % 2 for patient in patients} == {0, 1}, "both labels"
    assert (run.train_share, run.name) == (0.5, "batch-none-b6-s0-t0.5")


def test_another_seed_trains_on_other_patients_of_a_share(data, tmp_path):
    prepared = HEART.prepare(str(data))
    chosen = set()
    for seed in range(4):
        seen = Seen()
        train(heart(data, train_share=0.25, seed=seed, epochs=1), HEART, prepared, tmp_path / f"{seed}", [seen])
        chosen.add(frozenset(image.numpy().tobytes() for step in seen.steps for image in step))
    assert len(chosen) > 1


def test_without_validation_the_last_epoch_is_kept(data, folds, tmp_path):
    run = train(heart(data, folds=2, fold="1of2", epochs=3), HEART, folds, tmp_path / "run")
    assert (run.best_epoch, len(run.epochs), run.fold) == (3, 3, "1of2")
    assert [(epoch.val_loss, epoch.val_metrics) for epoch in run.epochs] == [(None, {})] * 3
    assert not [name for name in run.metrics if name.startswith("val_")]
    best, last = (
        torch.load(tmp_path / "run" / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("best", "last")
    )
    assert all(torch.equal(best[key], last[key]) for key in last)


def test_a_run_without_validation_that_was_stopped_ends_with_the_same_figures(data, folds, tmp_path):
    settings = heart(data, folds=2, fold="2of2", epochs=3, regularizer="dropout")
    whole = train(settings, HEART, folds, tmp_path / "whole")
    with pytest.raises(Stop):
        train(settings, HEART, folds, tmp_path / "stopped", [StopIn()])
    assert figures(train(settings, HEART, folds, tmp_path / "stopped").model_dump()) == figures(whole.model_dump())


def test_a_run_of_a_fold_is_judged_on_the_images_of_its_fold(data, folds, tmp_path):
    run = train(heart(data, folds=2, fold="2of2"), HEART, folds, tmp_path / "run")
    expected = [folds.images.items[row].where for row in folds.folds[1].rows["test"]]
    with (tmp_path / "run" / "outcomes.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == expected
    judged = evaluate_run(tmp_path / "run", None, "test")
    assert (judged.images, judged.resampled) == (18, ("patients", 6))
    assert judged.metrics["auc"] == pytest.approx(run.metrics["test_auc"], abs=1e-6)
    assert set(judged.sites) == set(run.sites) == {"north", "south"}


def test_the_split_a_fold_lacks_is_said_to_be_missing(data, folds, tmp_path):
    train(heart(data, folds=2, fold="1of2", epochs=1), HEART, folds, tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"fold 1of2: expected images in split 'val', got none\. Use --split test"):
        evaluate_run(tmp_path / "run", None, "val")


def test_both_modes_of_a_run_are_tables_of_the_same_images_row_by_row(data, folds, tmp_path):
    train(heart(data, folds=2, fold="1of2"), HEART, folds, tmp_path / "run")
    names = ("outcomes.csv", "outcomes-batch-statistics.csv")
    running, batch = (read_outcomes(tmp_path / "run" / name) for name in names)
    assert running.names == batch.names
    assert not np.allclose(running.probabilities, batch.probabilities)


def test_the_metrics_of_each_site_are_those_of_its_rows(data, folds, tmp_path):
    run = train(heart(data, folds=2, fold="1of2"), HEART, folds, tmp_path / "run")
    for site, found in run.sites.items():
        table = read_outcomes(tmp_path / "run" / "outcomes.csv")
        rows = [row for row, place in enumerate(table.sites) if place == site]
        chances = {}
        for row in rows:
            chances.setdefault(table.patients[row], []).append((table.probabilities[row, 1], table.targets[row]))
        right = [(np.mean([p for p, _ in said]) > 0.5) == said[0][1] for said in chances.values()]
        assert found["test_accuracy"] == pytest.approx(np.mean(right))


BRAIN = find_task("brain3d")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, _quick_collections):
    folder = tmp_path_factory.mktemp("volumes")
    sizes = ((20, 18, 17), (16, 16, 16), (12, 20, 20))
    return BRAIN.prepare(str(write_volumes(folder, ["train"] * 3 + ["val", "test", "test"], sizes)))


def of_patches(**changed):
    values = {"task": "brain3d", "network": "unet", "epochs": 2, "batch_size": 2, "patch_size": [16, 16, 16]}
    return run_settings(**values | {"patches_per_volume": 3} | changed)


def test_volumes_of_different_sizes_are_trained_on_in_patches_and_judged_whole(volumes, tmp_path):
    seen = Seen()
    run = train(of_patches(), BRAIN, volumes, tmp_path / "run", [seen])
    assert [tuple(images.shape) for images in seen.steps] == [(2, 1, 16, 16, 16)] * 8  # 3 · 3 patches, 4 whole batches
    table = read_outcomes(tmp_path / "run" / "outcomes.csv")
    voxels = [int((mask == 1).sum()) for mask in volumes.splits()["test"].targets]
    assert (table.hits + table.misses)[:, 0].tolist() == voxels
    assert run.metrics["test_dice"] is not None


def test_a_run_on_patches_that_was_stopped_ends_with_the_same_figures(volumes, tmp_path):
    whole = train(of_patches(), BRAIN, volumes, tmp_path / "whole")
    with pytest.raises(Stop):
        train(of_patches(), BRAIN, volumes, tmp_path / "stopped", [StopIn()])
    seen = Seen()
    again = train(of_patches(), BRAIN, volumes, tmp_path / "stopped", [seen])
    assert len(seen.steps) == 4
    assert figures(again.model_dump()) == figures(whole.model_dump())
