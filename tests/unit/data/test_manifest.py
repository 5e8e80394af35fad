import os

import numpy as np
import pytest

from mednorm.data import read_manifest
from mednorm.errors import ConfigError, DataError

from .dicoms import series
from .made import THREE, classification, gradient, picture, segmentation, table, text

LABELS = ["b", "a", "a", "b", "b", "a"]
SPLITS = ["train", "train", "val", "val", "test", "test"]


def labelled(folder, **columns):
    return classification(folder, LABELS, **{"split": SPLITS, **columns})


def refused(path, message, **options):
    """Expect one line that begins with the manifest's name and matches."""
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path, **options)
    assert str(caught.value).startswith("manifest.csv")
    assert "\n" not in str(caught.value)


# what is read


def test_a_classification_manifest_gives_every_image_with_its_label(tmp_path):
    images = read_manifest(table(tmp_path, labelled(tmp_path)))
    assert (images.kind, images.classes) == ("classification", ("a", "b"))
    for split, labels, first in (("train", [1, 0], 0), ("val", [0, 1], 2), ("test", [1, 0], 4)):
        loaded = images.load(split)
        assert loaded.targets.tolist() == labels
        np.testing.assert_array_equal(loaded.images[:, 0].numpy(), [gradient() + first, gradient() + first + 1])
        assert loaded.names[0] == f"manifest.csv row {first + 2} ({first}.png)"


def test_a_segmentation_manifest_gives_every_image_with_its_mask(tmp_path):
    masks = [(gradient() > limit).astype(np.uint8) * 255 for limit in (20, 40, 60)]
    images = read_manifest(table(tmp_path, segmentation(tmp_path, masks, THREE)))
    assert (images.kind, images.classes) == ("segmentation", ("background", "1"))
    for split, mask in zip(THREE, masks, strict=True):
        np.testing.assert_array_equal(images.load(split).targets.numpy(), [mask // 255])


def test_a_folder_stands_for_the_manifest_in_it(tmp_path):
    table(tmp_path, labelled(tmp_path))
    assert len(read_manifest(tmp_path).items) == 6


def test_a_byte_order_mark_and_spaces_are_tolerated(tmp_path):
    rows = [
        {" image ": f" {row['image']} ", "label": row["label"], "split": row["split"]} for row in labelled(tmp_path)
    ]
    images = read_manifest(table(tmp_path, rows, encoding="utf-8-sig"))
    assert images.items[0].image == tmp_path / "0.png"


def test_empty_rows_are_passed_over_and_counted(tmp_path):
    path = table(tmp_path, labelled(tmp_path))
    lines = path.read_text().splitlines()
    text(path, "\n".join([*lines[:2], "", ",,", *lines[2:]]))
    assert [item.where.split(" (")[0] for item in read_manifest(path).items[:2]] == [
        "manifest.csv row 2",
        "manifest.csv row 5",
    ]


def test_patient_and_site_are_kept_and_further_columns_become_metadata(tmp_path):
    rows = labelled(tmp_path, patient=list("uvwxyz"), site=["A", "", "B", "B", "A", "A"], age=list("123456"))
    items = read_manifest(table(tmp_path, rows)).items
    assert [item.patient for item in items] == list("uvwxyz")
    assert [item.site for item in items] == ["A", None, "B", "B", "A", "A"]
    assert items[3].metadata == {"age": "4"}


def test_with_masks_and_labels_kind_chooses_and_the_other_becomes_metadata(tmp_path):
    masks = [np.ones((4, 6), np.uint8)] * 6
    rows = segmentation(tmp_path, masks, SPLITS)
    path = table(tmp_path, [row | {"label": label} for row, label in zip(rows, LABELS, strict=True)])
    assert read_manifest(path).kind == "segmentation"
    assert read_manifest(path).items[0].metadata == {"label": "b"}
    labels = read_manifest(path, kind="classification")
    assert (labels.kind, labels.classes) == ("classification", ("a", "b"))
    assert labels.items[0].mask is None
    assert labels.items[0].metadata == {"mask": "mask0.png"}


def test_labels_that_are_whole_numbers_are_sorted_by_size(tmp_path):
    rows = classification(tmp_path, ["10", "9", "2", "10", "9"], split=["train", "train", "train", "val", "test"])
    assert read_manifest(table(tmp_path, rows)).classes == ("2", "9", "10")


def test_classes_given_keep_their_order(tmp_path):
    images = read_manifest(table(tmp_path, labelled(tmp_path)), classes=["b", "c", "a"])
    assert images.classes == ("b", "c", "a")
    assert images.load("train").targets.tolist() == [0, 2]


def test_files_outside_the_folder_are_read_when_written_absolute(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "x.png", gradient())
    rows = labelled(tmp_path / "set")
    rows[0]["image"] = str(outside)
    assert read_manifest(table(tmp_path / "set", rows)).items[0].image == outside


def test_a_path_that_leaves_and_comes_back_is_inside(tmp_path):
    rows = labelled(tmp_path / "set")
    rows[0]["image"] = "../set/0.png"
    assert len(read_manifest(table(tmp_path / "set", rows)).items) == 6


def test_a_manifest_reached_through_a_link_to_its_folder_is_read(tmp_path):
    table(tmp_path / "set", labelled(tmp_path / "set"))
    os.symlink(tmp_path / "set", tmp_path / "link")
    assert len(read_manifest(tmp_path / "link").items) == 6


# splits


def undivided(folder, patients, reverse=False):
    rows = classification(folder, [str(index % 2) for index in range(len(patients))], patient=patients)
    return table(folder, rows[::-1] if reverse else rows)


def drawn(images):
    return {item.image.name: item.split for item in images.items}


PATIENTS = [name for name in "abcdefghij" for _ in range(2)]


def test_without_a_split_column_patients_are_divided_and_never_cut(tmp_path):
    images = read_manifest(undivided(tmp_path, PATIENTS))
    of = {}
    for item in images.items:
        of.setdefault(item.patient, set()).add(item.split)
    assert all(len(splits) == 1 for splits in of.values())
    counts = [sum(splits == {name} for splits in of.values()) for name in THREE]
    assert counts == [6, 2, 2]
    assert "seed 0" in images.note


def test_the_division_follows_the_seed_and_not_the_order_of_rows(tmp_path):
    path = undivided(tmp_path, PATIENTS)
    forward = drawn(read_manifest(path, seed=3))
    assert drawn(read_manifest(path, seed=3)) == forward
    assert drawn(read_manifest(path, seed=4)) != forward
    assert drawn(read_manifest(undivided(tmp_path, PATIENTS, reverse=True), seed=3)) == forward


def test_without_patients_images_are_divided(tmp_path):
    rows = classification(tmp_path, list("0101010101"))
    images = read_manifest(table(tmp_path, rows))
    assert [len(images.split(name)) for name in THREE] == [6, 2, 2]


DIVIDED = "Divided into train, val and test by seed 7, as the manifest has no column split."
UNKNOWN = "The manifest has no column patient: images of one patient may stand in several splits."


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"split": SPLITS, "patient": list("ppqqrr")}, ""),
        ({"split": SPLITS}, UNKNOWN),
        ({"patient": list("ppqqrr")}, DIVIDED),
        ({}, f"{DIVIDED} {UNKNOWN}"),
    ],
)
def test_the_note_says_what_the_manifest_leaves_open(tmp_path, columns, note):
    assert read_manifest(table(tmp_path, classification(tmp_path, LABELS, **columns)), seed=7).note == note


def test_images_that_are_not_divided_are_all_test_however_few_and_the_note_says_nothing_of_it(tmp_path):
    images = read_manifest(table(tmp_path, classification(tmp_path, ["a", "b"])), classes=["a", "b"], divide=False)
    assert [item.split for item in images.items] == ["test", "test"]
    assert images.note == UNKNOWN


def test_a_column_split_is_followed_whether_or_not_the_rest_would_be_divided(tmp_path):
    images = read_manifest(table(tmp_path, labelled(tmp_path)), divide=False)
    assert [item.split for item in images.items] == SPLITS


def test_too_few_patients_to_divide_are_counted(tmp_path):
    refused(undivided(tmp_path, list("aabb")), "expected at least 3 patients .*got 2")


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got -1"):
        read_manifest(undivided(tmp_path, PATIENTS), seed=-1)


def test_a_patient_in_two_splits_is_named_with_both_rows(tmp_path):
    rows = labelled(tmp_path, patient=["p1", "p2", "p3", "p1", "p4", "p5"])
    refused(
        table(tmp_path, rows),
        r"row 5 \(3\.png\): expected patient 'p1' in split 'train' like manifest\.csv row 2 \(0\.png\), got 'val'",
    )


def test_an_empty_split_is_named_when_asked_for(tmp_path):
    images = read_manifest(table(tmp_path, labelled(tmp_path, split=["train"] * 4 + ["test"] * 2)))
    with pytest.raises(DataError, match=r"at least one image in split 'val', got none .*train 4, val 0, test 2"):
        images.load("val")


# tables that cannot be used


def test_a_missing_manifest_is_named(tmp_path):
    refused(tmp_path, "expected a folder holding manifest.csv, got no file at")


def test_an_empty_file_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", ""), "expected the names of the columns in row 1, got an empty row")


def test_a_manifest_without_rows_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", "image,label\n\n"), "expected at least one row below .*, got none")


def test_a_manifest_without_a_column_image_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", "file,label\na.png,1\n"), "a column `image`, got file, label")


def test_a_manifest_without_a_target_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", "image,site\na.png,1\n"), "a column `mask` or `label`, got image, site")


@pytest.mark.parametrize(("kind", "column"), [("segmentation", "mask"), ("classification", "label")])
def test_a_kind_without_its_column_is_named(tmp_path, kind, column):
    other = {"mask": "label", "label": "mask"}[column]
    path = text(tmp_path / "manifest.csv", f"image,{other}\na.png,1\n")
    refused(path, f"expected a column `{column}` for {kind}, got image, {other}", kind=kind)


def test_an_unknown_kind_is_named(tmp_path):
    refused(table(tmp_path, labelled(tmp_path)), "expected kind to be .*, got 'detection'", kind="detection")


def test_a_column_named_twice_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", "image,label,label\na.png,1,2\n"), "got 'label' twice")


def test_a_column_without_a_name_is_named(tmp_path):
    refused(text(tmp_path / "manifest.csv", "image,label,\na.png,1,2\n"), "got no name in column 3")


def test_a_row_of_another_length_is_named(tmp_path):
    path = text(tmp_path / "manifest.csv", "image,label\na.png,1\nb.png,x,y\n")
    refused(path, r"row 3: expected 2 cells \(image, label\), got 3")


@pytest.mark.parametrize("content", [b"image,label\n\xff\xfe,1\n", b'image,label\n"a"b,1\n'])
def test_text_that_is_no_csv_in_utf8_is_named(tmp_path, content):
    (tmp_path / "manifest.csv").write_bytes(content)
    refused(tmp_path, "expected comma-separated text in UTF-8, got ")


# rows that cannot be used


@pytest.mark.parametrize("column", ["image", "label", "patient"])
def test_an_empty_cell_is_named(tmp_path, column):
    rows = labelled(tmp_path, patient=list("uvwxyz"))
    rows[1][column] = " "
    name = "" if column == "image" else r"1\.png"
    refused(table(tmp_path, rows), rf"row 3 \({name}\): expected a value in column `{column}`, got an empty cell")


def test_an_empty_mask_cell_is_named(tmp_path):
    rows = segmentation(tmp_path, [gradient()] * 3, THREE)
    rows[2]["mask"] = ""
    refused(table(tmp_path, rows), r"row 4 \(2\.png\): expected a value in column `mask`, got an empty cell")


@pytest.mark.parametrize("name", ["validation", "Train", ""])
def test_an_unknown_split_is_named(tmp_path, name):
    path = table(tmp_path, labelled(tmp_path, split=[*SPLITS[:-1], name]))
    refused(path, rf"row 7 \(5\.png\): expected train, val or test in column `split`, got '{name}'")


@pytest.mark.parametrize("again", ["1.png", "./1.png", "link.png"])
def test_an_image_in_two_rows_is_named_with_both(tmp_path, again):
    rows = labelled(tmp_path)
    os.symlink(tmp_path / "1.png", tmp_path / "link.png")
    rows[4]["image"] = again
    refused(table(tmp_path, rows), rf"row 6 \({again}\): .* got the image of manifest\.csv row 3 \(1\.png\) again")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_label_that_train_does_not_have_is_named(tmp_path, split):
    rows = labelled(tmp_path)
    row = SPLITS.index(split)
    rows[row]["label"] = "c"
    refused(table(tmp_path, rows), rf"row {row + 2} .* among the labels in train \(a, b\), got 'c'")


def test_a_label_that_is_not_among_the_classes_given_is_named(tmp_path):
    path = table(tmp_path, labelled(tmp_path))
    refused(path, r"row 2 \(0\.png\): .* among the names given \(a, c\), got 'b'", classes=["a", "c"])


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], "ab"])
def test_classes_must_be_two_different_names(tmp_path, classes):
    refused(
        table(tmp_path, labelled(tmp_path)), "expected at least two classes with different names, got", classes=classes
    )


def test_one_label_in_all_of_train_is_refused(tmp_path):
    path = table(tmp_path, classification(tmp_path, list("aaa"), split=THREE))
    refused(path, r"at least two classes with different names, got \['a'\]")


def test_a_missing_image_is_named(tmp_path):
    rows = labelled(tmp_path)
    rows[3]["image"] = "gone.png"
    refused(table(tmp_path, rows), r"row 5 \(gone\.png\): expected a file, got no file at .*gone\.png")


def test_a_missing_mask_is_named_with_the_row_of_its_image(tmp_path):
    rows = segmentation(tmp_path, [gradient()] * 3, THREE)
    rows[1]["mask"] = "gone.png"
    refused(table(tmp_path, rows), r"row 3 \(1\.png\): expected a file, got no file at .*gone\.png")


def test_a_folder_in_a_cell_is_named(tmp_path):
    (tmp_path / "series").mkdir()
    rows = labelled(tmp_path)
    rows[0]["image"] = "series"
    refused(table(tmp_path, rows), r"row 2 \(series\): expected a file, got an empty folder at")


def test_a_folder_as_mask_is_named(tmp_path):
    series(tmp_path / "series")
    rows = segmentation(tmp_path, [gradient()] * 3, THREE)
    rows[0]["mask"] = "series"
    refused(table(tmp_path, rows), r"row 2 \(0\.png\): expected a file, got a folder at .*series")


def test_an_unsupported_suffix_is_named(tmp_path):
    rows = labelled(tmp_path)
    rows[0]["image"] = text(tmp_path / "a.mha", "x").name
    refused(table(tmp_path, rows), r"row 2 \(a\.mha\): expected a file ending in \.png.*got 'a\.mha'")


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_path_outside_the_folder_is_refused(tmp_path, column):
    picture(tmp_path / "outside.png", gradient())
    rows = segmentation(tmp_path / "set", [gradient()] * 3, THREE)
    rows[0][column] = "../outside.png"
    refused(
        table(tmp_path / "set", rows), r"row 2 .*: expected a path inside the folder .*, got '\.\./outside\.png', which"
    )


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    rows = labelled(tmp_path / "set")
    os.symlink(picture(tmp_path / "outside.png", gradient()), tmp_path / "set" / "in.png")
    rows[0]["image"] = "in.png"
    refused(table(tmp_path / "set", rows), r"row 2 \(in\.png\): expected a path inside .* leads to .*outside\.png")


@pytest.mark.parametrize("cell", ["a" * 300 + ".png", "ring.png", "a\0.png"])
def test_a_cell_that_is_no_path_is_named(tmp_path, cell):
    rows = labelled(tmp_path)
    os.symlink(tmp_path / "ring.png", tmp_path / "ring.png")
    rows[0]["image"] = cell
    refused(table(tmp_path, rows), r"row 2 .*expected (a path|a file), got ")
