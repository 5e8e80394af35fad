"""Volumes in a manifest: several files an image, series, and where they lie."""

import nibabel
import numpy as np
import pytest

from mednorm.data import describe, read_manifest
from mednorm.errors import DataError

from .dicoms import series, stored
from .made import THREE, classification, table

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def labelled(folder):
    return classification(folder, list("abab"), split=["train", "train", "val", "test"])


def refused(path, message):
    """Expect a manifest that is not read, and one line that names its row."""
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith("manifest.csv row ")
    assert "\n" not in str(caught.value)


def volume(path, number=0, shape=(2, 3, 4), affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + number
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels


def modalities(folder, *names, count=3):
    """Write volumes of several modalities, and masks, and return the rows of a manifest over them."""
    rows = []
    for row, split in zip(range(count), THREE, strict=True):
        for place, name in enumerate(names):
            volume(folder / f"{row}{name}.nii.gz", 100 * row + 1000 * place)
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), AFFINE), folder / f"{row}mask.nii.gz")
        image = ";".join(f"{row}{name}.nii.gz" for name in names)
        rows.append({"image": image, "mask": f"{row}mask.nii.gz", "split": split})
    return rows


def unusable(path, message, split="train"):
    """Expect a manifest that is read, and one line that names its row when the voxels are asked for."""
    images = read_manifest(path, classes=["no", "yes"])
    with pytest.raises(DataError, match=message) as caught:
        images.load(split)
    assert str(caught.value).startswith("manifest.csv row ")
    assert "\n" not in str(caught.value)


def test_several_files_become_channels_in_their_order(tmp_path):
    rows = modalities(tmp_path, "flair", "t1", "t2")
    rows[1]["image"] = rows[1]["image"].replace(";", " ; ")
    images = read_manifest(table(tmp_path, rows), classes=["no", "yes"])
    assert images.items[1].image == tuple(tmp_path / f"1{name}.nii.gz" for name in ("flair", "t1", "t2"))
    first = np.arange(24).reshape(2, 3, 4) + 100
    np.testing.assert_array_equal(images.load("val").images[0].numpy(), [first, first + 1000, first + 2000])


def test_several_files_are_described_channel_by_channel(tmp_path):
    images = read_manifest(table(tmp_path, modalities(tmp_path, "flair", "t1")), classes=["no", "yes"])
    found = describe(images)
    assert (found.shapes, found.dtypes) == ({"2×2×3×4": 3}, {"int16": 3})
    assert found.intensity["train"].mean == (11.5, 1011.5)


def test_a_folder_that_holds_a_series_is_an_image(tmp_path):
    rows = labelled(tmp_path)
    series(tmp_path / "ct")
    rows[0]["image"] = "ct"
    images = read_manifest(table(tmp_path, rows))
    pixels = images.pixels(images.items[0])[0].numpy()
    np.testing.assert_array_equal(pixels[0], np.stack([stored(n) - 1024.0 for n in range(4)], axis=-1))


def test_a_bad_series_is_named_with_its_row_and_file(tmp_path):
    rows = labelled(tmp_path)
    (series(tmp_path / "ct") / "notes.txt").write_text("x")
    rows[0]["image"] = "ct"
    images = read_manifest(table(tmp_path, rows))
    with pytest.raises(DataError, match=r"manifest\.csv row 2 \(ct\), notes\.txt: expected a readable DICOM file"):
        images.load("train")


@pytest.mark.parametrize(("cell", "number"), [("{};", 2), (";{}", 1), ("{};;1.png", 2)])
def test_an_empty_part_is_a_missing_channel(tmp_path, cell, number):
    rows = labelled(tmp_path)
    rows[0]["image"] = cell.format("0.png")
    refused(table(tmp_path, rows), rf"row 2 .*got nothing for file {number} of \d \(missing channel\)")


def test_a_missing_channel_is_named_with_its_number(tmp_path):
    rows = modalities(tmp_path, "flair", "t1")
    (tmp_path / "1t1.nii.gz").unlink()
    refused(table(tmp_path, rows), r"row 3 \(.*\), channel 2 of 2: expected a file, got no file at .*1t1\.nii\.gz")


def test_rows_of_different_numbers_of_files_are_both_named(tmp_path):
    rows = modalities(tmp_path, "flair", "t1")
    rows[2]["image"] = "2flair.nii.gz"
    refused(
        table(tmp_path, rows),
        r"row 4 \(2flair\.nii\.gz\): expected 2 files .* like manifest\.csv row 2 \(0flair.*\), got 1 \(wrong modality",
    )


@pytest.mark.parametrize(("row", "cell"), [(2, "0t1.nii.gz;2t1.nii.gz"), (0, "0t1.nii.gz;./0t1.nii.gz")])
def test_a_file_that_comes_twice_is_named_whichever_channel_it_is(tmp_path, row, cell):
    rows = modalities(tmp_path, "flair", "t1")
    rows[row]["image"] = cell
    refused(table(tmp_path, rows), rf"row {row + 2} .*got 0t1\.nii\.gz of manifest\.csv row 2 .*again")


def test_files_of_one_row_that_differ_in_size_are_named(tmp_path):
    rows = modalities(tmp_path, "flair", "t1")
    volume(tmp_path / "0t1.nii.gz", shape=(2, 3, 5))
    unusable(table(tmp_path, rows), r"row 2 .*got \(2, 3, 4\) in 0flair\.nii\.gz and \(2, 3, 5\) in 0t1\.nii\.gz")


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_files_of_one_row_that_lie_differently_are_named(tmp_path, kind):
    rows = [row | {"label": label} for row, label in zip(modalities(tmp_path, "flair", "t1"), "aba", strict=True)]
    volume(tmp_path / "0t1.nii.gz", affine=np.diag([-1.0, -1.0, 2.1, 1.0]))
    images = read_manifest(table(tmp_path, rows), kind=kind, classes=["a", "b"])
    with pytest.raises(DataError, match=r"row 2 .*0 0 2 0\] in 0flair\.nii\.gz and .*0 0 2\.1 0\] in 0t1\.nii\.gz"):
        images.load("train")


def test_a_fourth_axis_among_several_files_is_named(tmp_path):
    rows = modalities(tmp_path, "flair", "t1")
    volume(tmp_path / "0t1.nii.gz", shape=(2, 3, 4, 5))
    unusable(
        table(tmp_path, rows), r"one channel in each of 2 files, got 5 channels of size \(2, 3, 4\) in 0t1\.nii\.gz"
    )


def test_a_truncated_file_among_several_is_named(tmp_path):
    rows = modalities(tmp_path, "flair", "t1")
    (tmp_path / "0t1.nii.gz").write_bytes((tmp_path / "0t1.nii.gz").read_bytes()[:-20])
    unusable(table(tmp_path, rows), r"row 2 \(.*\), 0t1\.nii\.gz: expected a readable NIfTI file, got \d+ bytes")


def test_a_mask_that_lies_elsewhere_than_its_volume_is_named_with_both_affines(tmp_path):
    rows = modalities(tmp_path, "flair")
    moved = AFFINE + np.eye(4)[[3, 0, 1, 2]] * 0.002
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), moved), tmp_path / "0mask.nii.gz")
    unusable(
        table(tmp_path, rows),
        r"row 2 .*got 2×3×4 with \[-1 0 0 0; .*\] in the image and 2×3×4 with \[-1 0 0 0\.002; .*\] in the mask",
    )


def test_a_mask_whose_affine_was_rounded_is_taken(tmp_path):
    rows = modalities(tmp_path, "flair")
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), AFFINE * 1.0004), tmp_path / "0mask.nii.gz")
    images = read_manifest(table(tmp_path, rows), classes=["no", "yes"])
    assert images.load("train").targets.all()


def test_a_series_and_its_mask_are_read_where_the_mask_has_the_order_of_the_slices(tmp_path):
    folder = series(tmp_path / "ct")
    ras = [[0, -0.75, 0, 10], [-0.5, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 6, 4), np.uint8), np.array(ras)), tmp_path / "good.nii.gz")
    flipped = np.array(ras) * [-1, 1, 1, 1]  # the rows from below, as many tools save them
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 6, 4), np.uint8), flipped), tmp_path / "bad.nii.gz")
    for mask in ("good", "bad"):
        rows = [{"image": folder.name, "mask": f"{mask}.nii.gz", "split": "train"}]
        path = table(tmp_path, rows)
        if mask == "good":
            assert read_manifest(path, classes=["no", "yes"]).load("train").targets.all()
        else:
            unusable(path, r"row 2 \(ct\): expected a mask with the affine of its image .*in the mask\. Resample")


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_of_a_series_in_another_row_is_a_duplicate(tmp_path, order):
    rows = labelled(tmp_path)
    series(tmp_path / "ct")
    for row, image in zip(rows[:2][::order], ("ct", "ct/c.dcm"), strict=True):
        row["image"] = image
    refused(
        table(tmp_path, rows), r"row 3 \(ct.*\): expected every image once, got .* of manifest\.csv row 2 \(ct.*again"
    )


def test_a_slice_that_a_link_leads_outside_is_refused_as_a_file_would_be(tmp_path):
    folder = tmp_path / "set"
    rows = labelled(folder)
    series(folder / "ct")
    (folder / "ct" / "c.dcm").rename(tmp_path / "elsewhere.dcm")
    (folder / "ct" / "c.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    rows[0]["image"] = "ct"
    refused(
        table(folder, rows), r"row 2 \(ct\): expected a path inside the folder .*'ct', which leads to .*elsewhere\.dcm"
    )
    rows[0]["image"] = str(folder / "ct")
    assert len(read_manifest(table(folder, rows)).items) == 4
