"""The lung study on real chest X-rays (PneumoniaMNIST), one epoch."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mednorm.cli.app import run
from mednorm.results import read_results

DATA = Path(__file__).parents[3] / "shared" / "data" / "lung" / "pneumoniamnist.npz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason="pneumoniamnist.npz is not beside the repository"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("lung") / "out"
    arms = ["--norms", "none,batch", "--seeds", "0", "--epochs", "1"]
    assert run(["study", "lung", "--data", str(DATA), "--out", str(out), *arms]) == 0
    return out


@pytest.fixture(scope="module")
def results(folder):
    return read_results(folder / "results.json")


def test_the_study_is_of_the_published_split(results):
    assert results.study.data.images == {"train": 4708, "val": 524, "test": 624}
    assert results.study.data.classes == ["normal", "pneumonia"]
    assert results.study.parameters == 37250


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_both_arms_are_clearly_above_chance_on_the_test_images(results, norm):
    metrics = next(run for run in results.runs if run.norm == norm).metrics
    with np.load(DATA) as file:
        majority = max(np.bincount(file["test_labels"].ravel())) / len(file["test_labels"])
    assert majority == pytest.approx(0.625)
    assert 0.85 < metrics["test_auc"] < 1
    assert majority + 0.05 < metrics["test_accuracy"] < 1


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_judging_a_run_again_agrees_on_exactly_624_images(folder, results, norm, capsys):
    capsys.readouterr()
    assert run(["evaluate", str(folder / "runs" / f"{norm}-none-b32-s0"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = next(run for run in results.runs if run.norm == norm).metrics
    assert found["images"] == 624
    assert found["metrics"] == pytest.approx({name: stored[f"test_{name}"] for name in found["metrics"]}, abs=1e-6)
    assert found["resampled"] == ["images", 624]


def test_an_auc_of_probabilities_that_saturate_is_that_of_the_order_of_the_logits(folder, results):
    """The AUC hangs on the order of images alone, which a float32 softmax must not lose."""
    import torch

    from mednorm.tasks import find_task
    from mednorm.training.disk import load_weights

    task = find_task("lung")
    test = task.image_set(str(DATA), None, 0).load("test")
    shape = task.prepare(str(DATA)).shape
    network = task.network_for(shape, task.network, "batch").eval()
    load_weights(network, folder / "runs" / "batch-none-b32-s0" / "best.ckpt")
    with torch.no_grad():
        logits = torch.cat([network(images) for images in test.images.split(64)]).double()
    exact = roc_auc_score(test.targets, logits[:, 1] - logits[:, 0])
    stored = next(run for run in results.runs if run.norm == "batch").metrics["test_auc"]
    assert stored == pytest.approx(exact, abs=2e-3)
