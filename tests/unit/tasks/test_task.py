import shutil

import numpy as np
import pytest
import torch

from mednorm.errors import ConfigError, DataError
from mednorm.tasks import TASKS, find_task
from mednorm.tasks.judge import ClassificationJudge, SegmentationJudge, SegmentationLoss
from mednorm.tasks.networks import Shape
from mednorm.tasks.scaling import StandardizeByTraining, StandardizeEach
from tests.studies import write_npz, write_patients
from tests.unit.data.made import THREE, segmentation, table

SLICES = Shape(1, (16, 16), 3)


def with_classes(path, count):
    with np.load(write_npz(path)) as file:
        content = dict(file)
    for split in ("train", "val", "test"):
        content[f"{split}_labels"] = (np.arange(len(content[f"{split}_labels"])) % count)[:, None]
    np.savez(path, **content)
    return path


def test_a_task_without_embedded_images_asks_for_data():
    with pytest.raises(ConfigError, match=r"lung: expected --data .*, got none\. Only tissue brings its own"):
        find_task("lung").prepare(None)


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.npz: expected"):
        find_task("lung").prepare(str(tmp_path / "missing.npz"))


def test_numbers_alone_become_the_names_of_the_task(lung_npz):
    assert find_task("lung").prepare(str(lung_npz)).images.classes == ("normal", "pneumonia")


def test_names_that_were_given_are_kept(lung_npz):
    assert find_task("lung").prepare(str(lung_npz), ["well", "ill"]).images.classes == ("well", "ill")


def test_another_number_of_classes_keeps_its_numbers(tmp_path):
    assert find_task("lung").prepare(str(with_classes(tmp_path / "three.npz", 3))).images.classes == ("0", "1", "2")


def test_the_shape_is_that_of_the_images_after_resampling(lung_npz):
    shape = find_task("lung").prepare(str(lung_npz), image_size=[8, 10]).shape
    assert (shape.channels, shape.size, shape.classes) == (1, (8, 10), 2)


def test_the_digest_is_that_of_the_images_wherever_they_lie(lung_npz, tmp_path):
    lung = find_task("lung")
    digest = lung.prepare(str(lung_npz)).digest
    assert len(digest) == 64
    assert lung.prepare(str(shutil.copy(lung_npz, tmp_path / "elsewhere.npz"))).digest == digest
    assert lung.prepare(str(lung_npz), image_size=[8, 8]).digest != digest


@pytest.mark.parametrize("name", ["train_images", "test_labels"])
def test_one_changed_value_changes_the_digest(lung_npz, tmp_path, name):
    with np.load(lung_npz) as file:
        content = dict(file)
    content[name] = content[name].copy()
    content[name].flat[3] ^= 1
    np.savez(tmp_path / "other.npz", **content)
    lung = find_task("lung")
    assert lung.prepare(str(tmp_path / "other.npz")).digest != lung.prepare(str(lung_npz)).digest


def test_another_division_or_another_patient_changes_the_digest(tmp_path):
    rows = segmentation(tmp_path, [np.ones((4, 6), np.uint8)] * 6, [*THREE, *THREE])
    tissue = find_task("tissue")

    def digest(**changed):
        return tissue.prepare(str(table(tmp_path, [row | changed for row in rows]))).digest

    plain = digest()
    rows[0], rows[1] = rows[0] | {"split": rows[1]["split"]}, rows[1] | {"split": rows[0]["split"]}
    assert digest() != plain
    assert digest(site="A") != digest(site="B")


def test_the_embedded_images_of_another_seed_have_another_digest():
    tissue = find_task("tissue")
    first, again, other = (tissue.prepare(None, split_seed=seed, image_size=[16, 16]).digest for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("split", "left", "lost"), [("val", 0, "pneumonia"), ("test", 1, "normal")])
def test_a_split_that_lacks_a_class_is_refused_with_both_named(lung_npz, tmp_path, split, left, lost):
    with np.load(lung_npz) as file:
        content = dict(file)
    content[f"{split}_labels"] = np.full_like(content[f"{split}_labels"], left)
    np.savez(tmp_path / "poor.npz", **content)
    with pytest.raises(
        DataError, match=rf"poor\.npz: expected every class in split '{split}', got no image of {lost}\."
    ):
        find_task("lung").prepare(str(tmp_path / "poor.npz"))


@pytest.mark.parametrize("empty", [1, 2])
def test_a_split_whose_masks_are_background_alone_is_refused(tmp_path, empty):
    masks = [np.full((4, 6), number != empty, np.uint8) for number in range(3)]
    path = table(tmp_path, segmentation(tmp_path, masks, THREE))
    expected = rf"manifest\.csv: expected masks in split '{THREE[empty]}' to hold a structure, got background alone"
    with pytest.raises(DataError, match=expected):
        find_task("tissue").prepare(str(path))


def test_a_split_without_one_of_several_tissues_is_used(tmp_path):
    masks = [np.array([[0, 0, 1, 1, 2, 2]] * 4, np.uint8), *[np.array([[0, 0, 1, 1, 1, 1]] * 4, np.uint8)] * 2]
    prepared = find_task("tissue").prepare(str(table(tmp_path, segmentation(tmp_path, masks, THREE))))
    assert prepared.images.classes == ("background", "1", "2")


def test_x_rays_are_scaled_by_the_training_images_and_mr_each_by_itself(lung_npz):
    lung, tissue = find_task("lung"), find_task("tissue")
    shape = lung.prepare(str(lung_npz)).shape
    assert type(lung.network_for(shape, lung.network, "batch").scaling) is StandardizeByTraining
    assert type(tissue.network_for(SLICES, tissue.network, "batch").scaling) is StandardizeEach


def test_how_images_are_scaled_can_be_chosen():
    tissue = find_task("tissue")
    by_training, by_image = (tissue.network_for(SLICES, "unet", "none", scaling=how) for how in ("training", "image"))
    assert type(by_training.scaling) is StandardizeByTraining
    assert type(by_image.scaling) is StandardizeEach


def test_the_output_of_the_tissue_network_does_not_depend_on_the_scanners_gain():
    network = find_task("tissue").network_for(SLICES, "unet", "none").eval()
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(network(images), network(images * 700 + 30), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("placement", "dropouts"), [("every", 6), ("last", 1)])
def test_dropout_stands_in_the_network_where_it_is_asked_for(placement, dropouts):
    network = find_task("tissue").network_for(SLICES, "unet", "batch", 0.3, placement)
    rates = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert rates == [0.3] * dropouts


def test_the_metrics_and_the_loss_fit_the_kind_of_task():
    lung, tissue = find_task("lung"), find_task("tissue")
    assert type(lung.judge(("a", "b"))) is ClassificationJudge
    assert type(tissue.judge(("a", "b"))) is SegmentationJudge
    assert type(lung.loss()) is torch.nn.CrossEntropyLoss
    assert type(tissue.loss()) is SegmentationLoss


@pytest.mark.parametrize("name", TASKS)
def test_the_metric_that_chooses_the_epoch_is_among_those_measured(name):
    task = find_task(name)
    assert task.main_metric in task.judge(("background", "tissue")).compute()


@pytest.mark.parametrize("name", ["lung", "heart"])
def test_the_judge_knows_who_was_imaged_and_counts_what_the_task_counts(name, tmp_path):
    """Three images a patient; two of three probabilities are wrong, and yet the mean over the patient is right."""
    prepared = find_task(name).prepare(str(write_patients(tmp_path)))
    rows = prepared.splits()["test"]
    logits = torch.tensor([[0.0, 0.1], [0.0, 0.1], [4.0, 0.0]] * 2)
    logits[3:] = logits[3:].flip(1)
    judge = find_task(name).judge(prepared.images.classes, rows)
    judge.update(logits, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert judge.compute()["accuracy"] == pytest.approx({"lung": 1 / 3, "heart": 1}[name])
    assert judge.outcomes().patients == rows.patients


@pytest.mark.parametrize(("distances", "metrics"), [(False, {"dice"}), (True, {"dice", "hd95"})])
def test_distances_are_measured_where_they_are_asked_for(distances, metrics):
    judge = find_task("brain").judge(("background", "tumour"), distances=distances)
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[0, 1:3, 1:3] = 1
    judge.update(torch.nn.functional.one_hot(mask, 2).movedim(-1, 1).float(), mask)
    assert judge.compute() == {name: {"dice": 1.0, "hd95": 0.0}[name] for name in metrics}
