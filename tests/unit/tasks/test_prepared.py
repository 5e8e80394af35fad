"""Images prepared for a task: how they are divided, what is kept of them, and what is refused."""

import csv
from dataclasses import replace

import pytest
import torch

from mednorm.errors import DataError
from mednorm.tasks import find_task
from tests.studies import write_npz, write_patients, write_volumes

HEART, LV, BRAIN3D = find_task("heart"), find_task("heart-lv"), find_task("brain3d")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_patients(tmp_path_factory.mktemp("patients")))


def patients(prepared, fold=None):
    return {split: set(part.patients) for split, part in prepared.splits(fold).items()}


def rewritten(data, tmp_path, change):
    """The manifest with its rows changed, in a folder of its own, its images where they were."""
    with open(data, newline="") as file:
        rows = list(csv.DictReader(file))
    folder = data.rpartition("/")[0]
    for number, row in enumerate(rows):
        row |= {name: f"{folder}/{row[name]}" for name in ("image", "mask") if name in row}
        row |= change(number, row)
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_the_splits_the_data_names_are_used_as_they_are(data):
    prepared = HEART.prepare(data)
    assert [fold.name for fold in prepared.folds] == [""]
    assert patients(prepared) == {
        "train": {f"p{number:02}" for number in range(4, 12)},
        "val": {"p00", "p01"},
        "test": {"p02", "p03"},
    }


def test_the_images_of_a_split_are_those_its_rows_name(data):
    prepared = HEART.prepare(data, folds=3)
    for fold in prepared.folds:
        for split, part in prepared.splits(fold.name).items():
            assert part.names == tuple(prepared.images.items[row].where for row in fold.rows[split])
            expected = torch.stack([prepared.images.pixels(prepared.images.items[row])[0] for row in fold.rows[split]])
            assert torch.equal(part.images, expected)


def test_the_splits_of_a_fold_are_taken_once_and_only_those_of_the_last_are_kept(data):
    prepared = HEART.prepare(data, folds=3)
    first = prepared.splits("1of3")
    assert prepared.splits("1of3") is first
    assert prepared.splits() is first, "without a name, the first"
    prepared.splits("2of3")
    assert prepared.splits("1of3") is not first
    assert torch.equal(prepared.splits("1of3")["test"].images, first["test"].images)


def test_another_division_of_the_same_images_does_not_inherit_the_splits_that_were_taken(data):
    prepared = HEART.prepare(data)
    prepared.splits()
    (own,) = prepared.folds
    swapped = replace(own, rows={"train": own.rows["test"], "test": own.rows["train"]})
    assert len(replace(prepared, folds=(swapped,)).splits()["train"].names) == 6


def test_a_fold_that_is_not_there_is_named_with_those_that_are(data):
    with pytest.raises(DataError, match=r"manifest\.csv: expected a fold of 1of2, 2of2, got '1of5'"):
        HEART.prepare(data, folds=2).splits("1of5")
    with pytest.raises(DataError, match="expected a fold of none, got 'site-HT'"):
        HEART.prepare(data).splits("site-HT")


def test_folds_take_the_place_of_the_splits_the_data_names(data):
    prepared = HEART.prepare(data, folds=4)
    tested = [patient for fold in prepared.folds for patient in patients(prepared, fold.name)["test"]]
    assert sorted(tested) == [f"p{number:02}" for number in range(12)]


@pytest.mark.parametrize("task", [LV, BRAIN3D])
def test_a_manifest_without_splits_and_classes_can_be_divided_into_folds(task, tmp_path):
    """It is read as test alone, and the classes were once looked for in the train masks."""
    path = write_volumes(tmp_path, ["", ""]) if task is BRAIN3D else write_patients(tmp_path, split=False)
    prepared = task.prepare(str(path), folds=2)
    assert prepared.images.classes == (("background", "1") if task is BRAIN3D else ("background", "endocardium"))
    assert [len(prepared.splits(fold.name)["test"].names) for fold in prepared.folds] in ([1, 1], [18, 18])
    assert "Divided into train, val and test" not in prepared.images.note


def test_the_seed_of_the_split_makes_the_folds(data):
    tests = [HEART.prepare(data, folds=3, split_seed=seed).folds[0].rows["test"] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_a_site_is_held_out(data):
    prepared = LV.prepare(data, holdout_site="south")
    assert [fold.name for fold in prepared.folds] == ["site-south"]
    assert patients(prepared)["test"] == {"p00", "p03", "p06", "p09"}
    assert patients(prepared)["val"] == {"p01"}


def test_a_split_of_a_fold_that_lacks_a_class_is_named_with_its_fold(data, tmp_path):
    only_north = rewritten(data, tmp_path, lambda number, row: {"site": "north" if row["label"] == "ill" else "south"})
    with pytest.raises(
        DataError, match=r"every class in split 'train' of fold site-north, got no image of ill\. .*fewer --folds"
    ):
        HEART.prepare(only_north, holdout_site="north")


def test_more_folds_than_patients_are_refused_with_the_number_of_patients(data):
    with pytest.raises(DataError, match=r"expected from 2 to 12 folds, the number of patients .*, got 13"):
        HEART.prepare(data, folds=13)


def test_a_patient_with_two_labels_is_refused_where_patients_are_judged(data, tmp_path):
    changed = rewritten(data, tmp_path, lambda number, row: {"label": "ill"} if number == 14 else {})
    with pytest.raises(
        DataError,
        match=r"row 16 .*p04-2\.png\): expected the label of patient 'p04' to be 'well', as in .*row 14 .*, got 'ill'",
    ):
        HEART.prepare(changed)


def test_a_patient_with_two_labels_is_taken_where_images_are_judged(data, tmp_path):
    changed = rewritten(data, tmp_path, lambda number, row: {"label": "ill"} if number == 14 else {})
    assert len(find_task("lung").prepare(changed).images.items) == 36


def test_data_without_test_images_is_refused(data, tmp_path):
    changed = rewritten(data, tmp_path, lambda number, row: {"split": "train" if row["split"] == "test" else "val"})
    with pytest.raises(DataError, match=r"expected at least one image in split 'test', got none \(ImageSet"):
        HEART.prepare(changed)


def test_data_without_validation_images_is_taken(data, tmp_path):
    changed = rewritten(data, tmp_path, lambda number, row: {"split": row["split"].replace("val", "train")})
    assert set(HEART.prepare(changed).splits()) == {"train", "test"}


def test_volumes_keep_their_sizes_and_a_network_must_fit_the_patches(tmp_path):
    sizes = ((16, 16, 16), (17, 18, 19), (20, 16, 16))
    prepared = BRAIN3D.prepare(str(write_volumes(tmp_path, ["train", "train", "test"], sizes)))
    assert [tuple(image.shape[1:]) for image in prepared.arrays.images] == list(sizes)
    assert prepared.shape.size == (16, 16, 16)
    assert prepared.shape_for([8, 8, 24]).size == (8, 8, 24)


@pytest.mark.parametrize(
    ("where", "patients_known", "expected"), [("lung", False, "images"), ("heart", True, "patients")]
)
def test_what_may_be_resampled_is_patients_where_all_are_known(where, patients_known, expected, tmp_path):
    path = write_patients(tmp_path) if patients_known else write_npz(tmp_path / "lung.npz")
    assert find_task(where).prepare(str(path)).resampled == expected


def test_slices_of_one_head_are_no_draws_from_a_population():
    assert find_task("tissue").prepare(None, image_size=[16, 16]).resampled == ""
