"""Evaluation with running and with batch statistics, against numbers worked out by hand."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.data import Arrays
from mednorm.tasks import find_task
from mednorm.tasks.judge import ClassificationJudge
from mednorm.training.evaluation import evaluate, evaluate_run, outcomes_in_both_modes
from mednorm.training.run import train
from tests.studies import prepared_lung, run_settings, write_npz

LUNG = find_task("lung")
MEAN, VAR = np.array([1.0, -1.0]), np.array([4.0, 9.0])


def network(layer=nn.BatchNorm2d):
    """Logits are the mean of each normalized channel over the image; running statistics are given."""
    norm = layer(2)
    norm.running_mean.copy_(torch.from_numpy(MEAN))
    norm.running_var.copy_(torch.from_numpy(VAR))
    net = nn.Sequential(OrderedDict(norm=norm, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), drop=nn.Dropout(0.5)))
    return nn.Sequential(OrderedDict(scaling=nn.Identity(), net=net))


def images(count):
    pixels = torch.randn(count, 2, 3, 3) * 2 + torch.arange(count).view(-1, 1, 1, 1) / 3
    unknown = (None,) * count
    return Arrays(pixels, torch.arange(count) % 2, tuple(f"image {n}" for n in range(count)), unknown, unknown, unknown)


def by_hand(pixels, mean, var):
    """The probabilities of images normalized with these statistics, in float64."""
    logits = ((pixels - mean.reshape(1, 2, 1, 1)) / np.sqrt(var.reshape(1, 2, 1, 1) + 1e-5)).mean((2, 3))
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, BatchNorm], ids=["torch", "mednorm"])
@pytest.mark.parametrize(("count", "size"), [(6, 3), (7, 3), (5, 8), (4, 4)])
def test_both_modes_say_of_each_image_what_its_statistics_give(layer, count, size):
    """A last batch that is not full is filled from the first, so that every batch has the size of the training."""
    arrays, made = images(count), network(layer).train()
    pixels = arrays.images.double().numpy()
    running, batch = outcomes_in_both_modes(made, LUNG, ("a", "b"), arrays, run_settings(batch_size=size))
    np.testing.assert_allclose(running.probabilities, by_hand(pixels, MEAN, VAR), atol=1e-6)
    order = np.random.default_rng(0).permutation(count).tolist()
    queue, seen = order * size, {}
    for start in range(0, count, size):
        rows = queue[start : start + size]
        together = pixels[rows]
        said = by_hand(together, together.mean((0, 2, 3)), together.var((0, 2, 3)))
        seen = dict(zip(rows, said, strict=False)) | seen  # of a row that comes again, the first time counts
    np.testing.assert_allclose(batch.probabilities, [seen[row] for row in range(count)], atol=1e-5)
    assert batch.names == running.names == arrays.names
    np.testing.assert_array_equal(batch.targets, arrays.targets)
    assert made.training
    assert made.net.norm.running_mean.tolist() == MEAN.tolist()


def test_a_network_without_running_statistics_has_one_mode():
    made = nn.Sequential(OrderedDict(scaling=nn.Identity(), net=nn.Sequential(nn.Flatten(), nn.Linear(18, 2))))
    running, batch = outcomes_in_both_modes(made, LUNG, ("a", "b"), images(5), run_settings())
    assert batch is None
    assert len(running.names) == 5


def test_batches_of_one_value_a_channel_have_no_statistics_and_so_one_mode():
    made = network()
    made.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), *made.net)
    running, batch = outcomes_in_both_modes(made, LUNG, ("a", "b"), images(5), run_settings(batch_size=1))
    assert batch is None
    assert len(running.names) == 5


def test_distances_between_contours_are_measured_in_the_first_mode_alone():
    made = nn.Sequential(OrderedDict(scaling=nn.Identity(), net=nn.BatchNorm2d(2)))
    masks = torch.zeros(4, 3, 3, dtype=torch.long)
    masks[:, 1, 1] = 1
    arrays = images(4)
    segmented = Arrays(arrays.images, masks, arrays.names, arrays.sites, arrays.patients, arrays.spacings)
    settings = run_settings(task="tissue", network="unet", batch_size=2)
    running, batch = outcomes_in_both_modes(made, find_task("tissue"), ("a", "b"), segmented, settings)
    assert "hd95" in running.metrics("image")
    assert set(batch.metrics("image")) == {"dice"}


def test_evaluation_judges_with_running_statistics_whatever_mode_the_network_is_in():
    arrays, made = images(6), network().train()
    found = evaluate(made, arrays, ClassificationJudge(("a", "b"), arrays))
    said = by_hand(arrays.images.double().numpy(), MEAN, VAR).argmax(1)
    assert found["accuracy"] == pytest.approx((said == arrays.targets.numpy()).mean())
    assert made.training


@pytest.fixture(scope="module")
def bn_run(tmp_path_factory):
    """A run with batch normalization on a set whose test images fill no whole number of batches."""
    folder = tmp_path_factory.mktemp("modes")
    data = write_npz(folder / "data.npz", train=24, val=8, test=13)
    prepared = prepared_lung(data)
    settings = run_settings(data, epochs=1, batch_size=8, classes=["normal", "pneumonia"], image_size=[12, 12])
    return folder / "run", train(settings, LUNG, prepared, folder / "run")


def test_a_run_keeps_both_modes_and_its_judgement_says_them_again(bn_run):
    folder, run = bn_run
    judged = evaluate_run(folder, None, "test")
    assert {f"test_{name}" for name in judged.metrics} == set(run.batch_metrics)
    for name, value in judged.metrics.items():
        assert run.metrics[f"test_{name}"] == pytest.approx(value, abs=1e-6)
        assert run.batch_metrics[f"test_{name}"] == pytest.approx(judged.batch_metrics[name], abs=1e-6)
    assert judged.metrics != judged.batch_metrics


def test_a_run_and_its_judgement_have_the_same_interval_over_images(bn_run):
    folder, run = bn_run
    judged = evaluate_run(folder, None, "test")
    assert judged.resampled == ("images", 13)
    low, high = judged.intervals["accuracy"]
    assert run.intervals["test_accuracy"] == pytest.approx((low, high), abs=1e-6)
    assert low < run.metrics["test_accuracy"] < high
    assert judged.sites == {}
