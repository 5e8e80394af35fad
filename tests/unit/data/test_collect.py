import csv
import os

import numpy as np
import pytest

from mednorm.data import manifest_of_folders, read_manifest
from mednorm.errors import DataError

from .made import gradient, picture

IMAGES = ["flair*.png", "t1*.png"]


def patients(root, *names):
    for number, name in enumerate(names):
        for file in ("flair_1.png", "t1.png", "mask.png"):
            picture(root / name / file, (gradient() + np.uint8(number)) if file != "mask.png" else gradient() // 50)
    return root


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_row_a_patient_names_its_files_relative_to_the_manifest(tmp_path):
    patients(tmp_path / "data", "p2", "p1")
    out = tmp_path / "manifest.csv"
    assert manifest_of_folders(tmp_path / "data", IMAGES, "mask.png", out) == 2
    assert rows(out) == [
        ["image", "mask", "patient"],
        ["data/p1/flair_1.png;data/p1/t1.png", "data/p1/mask.png", "p1"],
        ["data/p2/flair_1.png;data/p2/t1.png", "data/p2/mask.png", "p2"],
    ]


def test_what_is_written_is_read_as_it_is(tmp_path):
    root = patients(tmp_path / "data", "p1", "p2", "p3")
    manifest_of_folders(root, IMAGES, "mask.png", root / "manifest.csv")
    images = read_manifest(root)
    assert sorted(item.patient for item in images.items) == ["p1", "p2", "p3"]
    first = next(item for item in images.items if item.patient == "p1")
    np.testing.assert_array_equal(images.pixels(first)[0].numpy(), [gradient(), gradient()])


def test_files_that_are_not_below_the_manifest_are_named_absolute(tmp_path):
    root = patients(tmp_path / "data", "p1")
    out = tmp_path / "study" / "manifest.csv"
    manifest_of_folders(root, ["t1.png"], "mask.png", out)
    assert rows(out)[1] == [str(root / "p1" / "t1.png"), str(root / "p1" / "mask.png"), "p1"]


def test_a_link_out_of_the_folder_is_named_absolute_by_its_own_name(tmp_path):
    patients(tmp_path / "set", "p1")
    picture(tmp_path / "store" / "b.png", gradient())
    os.symlink(tmp_path / "store" / "b.png", tmp_path / "set" / "p1" / "linked.png")
    manifest_of_folders(tmp_path / "set", ["linked.png"], None, tmp_path / "set" / "manifest.csv")
    assert rows(tmp_path / "set" / "manifest.csv")[1] == [str(tmp_path / "set" / "p1" / "linked.png"), "p1"]


def test_without_a_mask_there_is_no_such_column_and_hidden_folders_are_passed_over(tmp_path):
    root = patients(tmp_path / "data", "p1", ".trash")
    (root / "readme.txt").write_text("x")
    assert manifest_of_folders(root, ["t1.png"], None, tmp_path / "m.csv") == 1
    assert rows(tmp_path / "m.csv") == [["image", "patient"], ["data/p1/t1.png", "p1"]]


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (["t2*.png"], None, r"p1: expected one file for pattern 't2\*\.png', got none\."),
        (["*.png"], None, r"p1: expected one file for .*'\*\.png', got 3 \(flair_1\.png, mask\.png, t1\.png\)"),
        (IMAGES, "mask*.nii", r"pattern 'mask\*\.nii', got none"),
        (["t1.png", "t1*"], None, r"p1: expected another file for every pattern, got t1\.png for two"),
        (["/t1.png"], None, r"expected a pattern such as .*, got '/t1\.png'"),
        ([""], None, "expected a pattern such as .*, got ''"),
        ([], None, r"at least one pattern for the images in a list, got \[\]"),
        ("t1.png", None, r"at least one pattern for the images in a list, got 't1\.png'"),
    ],
)
def test_patterns_that_do_not_fit_one_file_are_named_and_nothing_is_written(tmp_path, images, mask, message):
    root = patients(tmp_path / "data", "p1")
    with pytest.raises(DataError, match=message):
        manifest_of_folders(root, images, mask, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


def test_a_folder_without_patients_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data: expected a folder holding one folder a patient, got nothing there"):
        manifest_of_folders(tmp_path / "data", ["*"], None, tmp_path / "m.csv")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data: expected .*, got no folder in it"):
        manifest_of_folders(tmp_path / "data", ["*"], None, tmp_path / "m.csv")


def test_a_manifest_that_is_there_is_kept(tmp_path):
    root = patients(tmp_path / "data", "p1")
    (tmp_path / "m.csv").write_text("mine")
    with pytest.raises(DataError, match=r"m\.csv: expected no file there, got one"):
        manifest_of_folders(root, ["t1.png"], None, tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == "mine"
    with pytest.raises(DataError, match=r"expected the manifest to end in \.csv, got 'm\.txt'"):
        manifest_of_folders(root, ["t1.png"], None, tmp_path / "m.txt")


def test_a_path_with_the_sign_between_files_is_named(tmp_path):
    root = patients(tmp_path / "data", "p;1")
    with pytest.raises(DataError, match=r"p;1/t1\.png: expected a path without ';'"):
        manifest_of_folders(root, ["t1.png"], None, tmp_path / "m.csv")
