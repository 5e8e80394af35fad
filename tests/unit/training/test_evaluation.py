import io
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from mednorm.data import Arrays
from mednorm.errors import ConfigError, DataError, RunError
from mednorm.tasks import find_task
from mednorm.training.evaluation import evaluate_run, samples
from tests.studies import write_npz
from tests.unit.data.made import picture, table

RUN = "batch-dropout-b16-s0"


@pytest.fixture(scope="module")
def folder(study_folder):
    return study_folder / "runs" / RUN


@pytest.fixture(scope="module")
def stored(study_results):
    return next(run for run in study_results.runs if run.name == RUN).metrics


@pytest.mark.parametrize(("split", "count"), [("train", 48), ("val", 16), ("test", 20)])
def test_a_run_judged_again_on_its_own_data_gets_its_stored_metrics(folder, stored, split, count):
    judged = evaluate_run(folder, None, split)
    assert (judged.images, judged.resampled) == (count, ("images", count))
    assert judged.metrics == pytest.approx({name: stored[f"{split}_{name}"] for name in judged.metrics}, abs=1e-6)


def test_the_same_images_from_another_file_get_the_same_metrics(folder, stored, lung_npz, tmp_path):
    copy = shutil.copy(lung_npz, tmp_path / "elsewhere.npz")
    judged = evaluate_run(folder, str(copy), "test")
    assert (judged.images, judged.metrics["auc"]) == (20, pytest.approx(stored["test_auc"], abs=1e-6))


def test_other_images_get_other_metrics(folder, stored, tmp_path):
    other = write_npz(tmp_path / "other.npz", seed=9, test=31)
    with np.load(other) as file:
        content = dict(file)
    content["test_labels"] = 1 - content["test_labels"]
    np.savez(other, **content)
    judged = evaluate_run(folder, str(other), "test")
    assert judged.images == 31
    assert judged.metrics["auc"] < stored["test_auc"]


def test_all_means_every_image_of_every_split(folder, stored):
    judged = evaluate_run(folder, None, "all")
    right = sum(count * stored[f"{split}_accuracy"] for split, count in (("train", 48), ("val", 16), ("test", 20)))
    assert judged.images == 84
    assert judged.metrics["accuracy"] == pytest.approx(right / 84, abs=1e-6)


def test_images_of_another_size_are_resampled_to_that_of_the_training(folder, stored, lung_npz, tmp_path):
    with np.load(lung_npz) as file:
        content = dict(file)
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = content[f"{split}_images"].repeat(2, 1).repeat(2, 2)
    np.savez(tmp_path / "twice.npz", **content)
    judged = evaluate_run(folder, str(tmp_path / "twice.npz"), "test")
    assert judged.metrics["auc"] == pytest.approx(stored["test_auc"], abs=1e-6)


def test_images_with_other_channels_are_refused_with_both_shapes(folder, lung_npz, tmp_path):
    with np.load(lung_npz) as file:
        content = dict(file)
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = np.stack([content[f"{split}_images"]] * 3, -1)
    np.savez(tmp_path / "colour.npz", **content)
    with pytest.raises(RunError, match=r"best\.ckpt: .*size mismatch for scaling\.mean: .*\[1\].*\[3\]"):
        evaluate_run(folder, str(tmp_path / "colour.npz"), "test")


def test_images_with_a_class_the_run_does_not_know_are_refused(folder, tmp_path):
    other = write_npz(tmp_path / "three.npz")
    with np.load(other) as file:
        content = dict(file)
    content["test_labels"][3] = 2
    np.savez(other, **content)
    with pytest.raises(DataError, match=r"three\.npz test\[3\]: expected a label from 0 to 1 .*got 2"):
        evaluate_run(folder, str(other), "test")


def test_data_that_is_gone_is_named(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(re.sub('data = ".*"', f'data = "{tmp_path}/gone.npz"', config))
    with pytest.raises(DataError, match=r"gone\.npz"):
        evaluate_run(copy, None, "test")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match=rf"{re.escape(str(tmp_path / 'no'))}: expected the folder of a run"):
        evaluate_run(tmp_path / "no", None, "test")


def test_the_folder_of_a_study_is_not_that_of_a_run(study_folder):
    with pytest.raises(RunError, match=r"expected the folder of a run, with config\.toml"):
        evaluate_run(study_folder, None, "test")


def test_a_run_without_weights_is_said(folder, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "config.toml", tmp_path / "run")
    with pytest.raises(RunError, match=r"best\.ckpt: no such file\. The run has not finished an epoch"):
        evaluate_run(tmp_path / "run", None, "test")


def test_a_task_this_version_does_not_know_is_named(folder, tmp_path):
    (tmp_path / "run").mkdir()
    config = (folder / "config.toml").read_text()
    (tmp_path / "run" / "config.toml").write_text(config.replace('task = "lung"', 'task = "kidney"'))
    with pytest.raises(ConfigError, match="got 'kidney'"):
        evaluate_run(tmp_path / "run", None, "test")


def test_evaluating_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    evaluate_run(folder, None, "test")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_samples_are_evenly_spaced_test_images_with_what_the_kept_network_says(folder, lung_npz):
    with np.load(lung_npz) as file:
        images, labels = file["test_images"], file["test_labels"][:, 0]
    rows = [0, 3, 6, 10, 13, 16]
    with np.load(folder / "samples.npz") as file:
        sample = dict(file)
    np.testing.assert_array_equal(sample["image"][:, 0], images[rows])
    np.testing.assert_array_equal(sample["truth"], labels[rows])
    np.testing.assert_array_equal(sample["prediction"], sample["probability"].argmax(1))
    np.testing.assert_allclose(sample["probability"].sum(1), 1, rtol=1e-5)
    task = find_task("lung")
    prepared = task.prepare(str(lung_npz))
    network = task.network_for(prepared.shape, "article_cnn", "batch", 0.25, "every").eval()
    state = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    with torch.no_grad():
        expected = network(torch.from_numpy(images[rows]).float()[:, None]).softmax(1)
    np.testing.assert_allclose(sample["probability"], expected.numpy(), atol=1e-5)


@pytest.fixture
def two_images(tmp_path):
    """A manifest of two images, too few to be divided."""
    rows = []
    for number, label in enumerate(("normal", "pneumonia")):
        picture(tmp_path / f"{number}.png", np.full((12, 12), 100 * number, np.uint8))
        rows.append({"image": f"{number}.png", "label": label})
    return str(table(tmp_path, rows))


def test_all_images_of_data_without_splits_are_judged_without_dividing_them(folder, two_images):
    judged = evaluate_run(folder, two_images, "all")
    assert judged.images == 2
    assert set(judged.intervals.values()) == {None}, "two images are too few to resample"


def test_one_split_of_data_without_splits_still_divides_them(folder, two_images):
    with pytest.raises(DataError, match=r"expected at least 3 patients .* got 2"):
        evaluate_run(folder, two_images, "test")


def sampled(images, targets, network, task="tissue"):
    names = tuple(f"image {number}" for number in range(len(images)))
    unknown = (None,) * len(images)
    arrays = Arrays(images, targets, names, ("Geneva", *unknown[1:]), unknown, unknown)
    with np.load(io.BytesIO(samples(network, find_task(task), arrays, None))) as file:
        return dict(file)


def test_samples_of_volumes_are_their_middle_slices():
    images, truth = torch.rand(7, 1, 4, 5, 6), torch.randint(0, 2, (7, 4, 5, 6))
    network = nn.Conv3d(1, 2, 1)
    found = sampled(images, truth, network)
    np.testing.assert_array_equal(found["image"], images[:6, :, :, :, 3])
    np.testing.assert_array_equal(found["truth"], truth[:6, :, :, 3])
    np.testing.assert_array_equal(found["prediction"], network(images[:6]).argmax(1)[..., 3])
    assert found["name"].tolist() == [f"image {number}" for number in range(6)]
    assert found["site"].tolist() == ["Geneva", "", "", "", "", ""]


def test_samples_in_the_plane_are_whole():
    images, truth = torch.rand(6, 1, 4, 5), torch.randint(0, 2, (6, 4, 5))
    found = sampled(images, truth, nn.Conv2d(1, 2, 1))
    np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_array_equal(found["truth"], truth)


def test_samples_of_volumes_that_differ_in_size_are_cut_or_padded_to_the_first():
    images = tuple(torch.rand(1, side, 5, 3) for side in (4, 6, 2))
    truth = tuple(torch.ones(side, 5, 3, dtype=torch.long) for side in (4, 6, 2))
    names, unknown = ("a", "b", "c"), (None,) * 3
    arrays = Arrays(images, truth, names, unknown, unknown, unknown)
    with np.load(io.BytesIO(samples(nn.Conv3d(1, 2, 1), find_task("brain3d"), arrays, None))) as file:
        found = dict(file)
    middle = [image[0, :, :, 1].numpy() for image in images]
    np.testing.assert_array_equal(found["image"][:, 0], [middle[0], middle[1][:4], np.pad(middle[2], ((0, 2), (0, 0)))])
    assert found["truth"].sum((1, 2)).tolist() == [20, 20, 10]


def test_a_sample_of_a_classified_volume_keeps_its_label():
    images, truth = torch.rand(6, 1, 4, 5, 6), torch.tensor([0, 1, 1, 0, 1, 0])
    found = sampled(images, truth, nn.Sequential(nn.Flatten(), nn.Linear(120, 2)), task="lung")
    assert found["image"].shape == (6, 1, 4, 5)
    assert found["truth"].tolist() == truth.tolist()


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 1), (5, 1)])
@pytest.mark.parametrize("size", [(4, 5), (4, 5, 6)], ids=str)
def test_samples_show_one_channel_or_three(channels, shown, size):
    images = torch.rand(6, channels, *size)
    layer = (nn.Conv2d, nn.Conv3d)[len(size) - 2](channels, 2, 1)
    found = sampled(images, torch.zeros(6, *size, dtype=torch.long), layer)
    plane = images[:, :shown] if len(size) == 2 else images[:, :shown, :, :, 3]
    np.testing.assert_array_equal(found["image"], plane)
