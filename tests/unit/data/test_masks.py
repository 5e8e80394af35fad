"""Masks and images that say, or do not say, that they are one grid."""

import nibabel
import numpy as np
import pytest

from mednorm.data import ImageSet, Item, read_image, write_mask
from mednorm.errors import DataError

from .dicoms import OBLIQUE, dicom, place, series
from .made import picture

LABELS = {2: np.arange(24).reshape(4, 6) % 3, 3: np.arange(96).reshape(4, 6, 4) % 5}
PLACED = {"ImagePositionPatient": place(5, OBLIQUE), "ImageOrientationPatient": list(OBLIQUE)}


def target(image, mask, size):
    items = (Item("row 2", "train", image, mask=mask),)
    return ImageSet("made up", "segmentation", tuple("abcde"), items).target(items[0], size).numpy()


def refused(image, mask, size, message):
    with pytest.raises(DataError, match=message) as caught:
        target(image, mask, size)
    assert "\n" not in str(caught.value)


def saved(path, labels, affine, codes=None):
    """Save labels as NIfTI, in another order of the axes where codes name one."""
    image = nibabel.Nifti1Image(labels.astype(np.uint8), affine)
    if codes is not None:
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
        )
        image = image.as_reoriented(turn)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "ILP", "PIL"])
def test_a_mask_of_a_series_is_read_in_any_order_of_its_axes(tmp_path, codes):
    """dcm2niix, Slicer and ITK save (column, row, slice), turned to the right or the left."""
    folder = series(tmp_path / "ct", orientation=OBLIQUE)
    affine = read_image(folder).geometry.affine
    mask = saved(tmp_path / "m.nii.gz", LABELS[3], affine, codes)
    np.testing.assert_array_equal(target(folder, mask, (4, 6, 4)), LABELS[3])


def test_a_mask_that_lies_beside_the_grid_of_its_image_is_named_with_both(tmp_path):
    folder = series(tmp_path / "ct")
    moved = read_image(folder).geometry.affine.copy()
    moved[2, 3] += 2.5
    mask = saved(tmp_path / "m.nii.gz", LABELS[3], moved, "LPS")
    refused(folder, mask, (4, 6, 4), r"row 2: expected a mask of the size of its image, \(4, 6, 4\), got \(6, 4, 4\)")
    mask = saved(tmp_path / "n.nii.gz", LABELS[3], moved)
    refused(folder, mask, (4, 6, 4), r"0 0 2\.5 30\] in the image and .*0 0 2\.5 32\.5\] in the mask\. Resample")


def test_the_mask_that_is_written_for_a_dicom_slice_is_read_as_its_own(tmp_path):
    path = dicom(tmp_path / "a.dcm", **PLACED)
    mask = write_mask(LABELS[2], read_image(path), tmp_path / "m", classes=5)
    assert nibabel.load(mask).shape == (4, 6, 1)
    np.testing.assert_array_equal(target(path, mask, (4, 6)), LABELS[2])


@pytest.mark.parametrize("codes", ["RAS", "ILP", "PIL"])
def test_a_mask_of_a_slice_is_read_in_any_order_of_its_axes_and_of_any_thickness(tmp_path, codes):
    path = dicom(tmp_path / "a.dcm", **PLACED)
    affine = read_image(path).geometry.affine * [1, 1, 0.5, 1]
    mask = saved(tmp_path / "m.nii.gz", LABELS[2][..., None], affine, codes)
    np.testing.assert_array_equal(target(path, mask, (4, 6)), LABELS[2])


def test_a_nifti_mask_of_a_square_dicom_slice_is_not_taken_transposed(tmp_path):
    """Both have one size; a mask drawn elsewhere is (x, y) where the slice is (row, column)."""
    square = {"Rows": 4, "Columns": 4, "PixelData": np.zeros((4, 4), np.int16).tobytes(), "PixelSpacing": [0.5, 0.5]}
    path = dicom(tmp_path / "a.dcm", **PLACED | square)
    affine = read_image(path).geometry.affine
    labels = np.arange(16).reshape(4, 4) % 3
    turned = saved(tmp_path / "m.nii.gz", labels.T, affine[:, [1, 0, 2, 3]])
    np.testing.assert_array_equal(target(path, turned, (4, 4)), labels)
    elsewhere = saved(tmp_path / "n.nii.gz", labels.T, np.eye(4))
    refused(path, elsewhere, (4, 4), r"expected a mask with the affine .* got 4×4 with .* and 4×4 with \[1 0 0 0; ")
    unplaced = saved(tmp_path / "o.nii.gz", labels.T, None)
    refused(
        path, unplaced, (4, 4), r"row 2: .* axes that differ: \(x, y, …\) of a NIfTI for \(row, column, …\) of a DICOM"
    )


def test_a_nifti_mask_of_a_picture_and_a_picture_of_a_nifti_are_refused(tmp_path):
    grey = picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    scan = saved(tmp_path / "a.nii", np.zeros((4, 4)), np.eye(4))
    refused(grey, scan, (4, 4), r"\(x, y, …\) of a NIfTI for \(row, column, …\) of a PNG, .* Save the mask as PNG")
    refused(scan, grey, (4, 4), r"\(row, column, …\) of a PNG for \(x, y, …\) of a NIfTI, .* Save the mask as NIfTI")


def test_a_picture_is_the_mask_of_a_dicom_slice_row_by_row(tmp_path):
    mask = picture(tmp_path / "m.png", LABELS[2].astype(np.uint8))
    np.testing.assert_array_equal(target(dicom(tmp_path / "a.dcm", **PLACED), mask, (4, 6)), LABELS[2])


def test_niftis_that_do_not_say_where_they_lie_are_compared_by_size(tmp_path):
    flat = saved(tmp_path / "a.nii", np.zeros((4, 6)), None)
    one = saved(tmp_path / "m.nii", LABELS[2][..., None], None)
    np.testing.assert_array_equal(target(flat, one, (4, 6)), LABELS[2])
    turned = saved(tmp_path / "n.nii", LABELS[2].T, None)
    refused(flat, turned, (4, 6), r"expected a mask of the size of its image, \(4, 6\), got \(6, 4\)")
