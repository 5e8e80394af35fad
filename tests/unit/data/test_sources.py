import numpy as np
import pytest

from mednorm.data import read
from mednorm.errors import DataError

from .made import THREE, classification, segmentation, table, text
from .test_npz import saved


def test_a_folder_a_csv_and_an_npz_are_told_apart(tmp_path):
    path = table(tmp_path, classification(tmp_path, list("abab"), split=["train", *THREE]))
    assert len(read(tmp_path).items) == len(read(str(path)).items) == 4
    assert len(read(saved(tmp_path / "lung.npz")).items) == 10


def test_any_csv_may_be_a_manifest(tmp_path):
    rows = classification(tmp_path, list("abab"), split=["train", "train", "val", "test"])
    images = read(table(tmp_path, rows, name="fold 2.CSV"))
    assert images.items[0].where == "fold 2.CSV row 2 (0.png)"


def test_options_reach_the_reader(tmp_path):
    masks = [np.ones((4, 6), np.uint8)] * 4
    rows = [row | {"label": "x"} for row in segmentation(tmp_path, masks, ["train", *THREE])]
    images = read(table(tmp_path, rows), kind="classification", classes=["y", "x"])
    assert (images.kind, images.classes) == ("classification", ("y", "x"))
    assert read(saved(tmp_path / "a.npz"), classes=["no", "yes"]).classes == ("no", "yes")


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"none: expected a \.npz file, a \.csv manifest or a folder, got nothing there"
    ):
        read(tmp_path / "none")


def test_a_folder_without_a_manifest_is_named_with_what_it_holds(tmp_path):
    text(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=r"expected a folder holding manifest\.csv, got one holding notes\.txt"):
        read(tmp_path)


def test_another_suffix_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a file ending in \.npz or \.csv, or a folder, got 'a\.h5'"):
        read(text(tmp_path / "a.h5", "x"))


def test_a_medmnist_file_has_no_masks(tmp_path):
    with pytest.raises(DataError, match="expected a manifest for segmentation, got a MedMNIST file"):
        read(saved(tmp_path / "a.npz"), kind="segmentation")


def test_a_manifest_named_by_itself_or_by_its_folder_is_left_undivided_where_asked(tmp_path):
    path = table(tmp_path, classification(tmp_path, list("abab")))
    for source in (path, tmp_path):
        images = read(source, classes=["a", "b"], divide=False)
        assert [item.split for item in images.items] == ["test"] * 4
