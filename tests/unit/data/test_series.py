import nibabel
import numpy as np
import pydicom
import pytest

from mednorm.data import load_image, read_image, read_series
from mednorm.errors import DataError

from .dicoms import AXIAL, NAMES, OBLIQUE, dicom, place, series, stored


def refused(folder, message):
    """Expect one line that begins with the folder's name and matches."""
    with pytest.raises(DataError, match=message) as caught:
        read_series(folder)
    assert str(caught.value).startswith(folder.name)
    assert "\n" not in str(caught.value)


# what is read


def test_slices_are_sorted_by_position_whatever_their_names_and_numbers(tmp_path):
    image = read_series(series(tmp_path / "ct", InstanceNumber=[3, 1, 4, 2]))
    assert (image.format, image.pixels.dtype, image.geometry.shape) == ("DICOM series", np.float32, (4, 6, 4))
    for number in range(4):
        np.testing.assert_array_equal(image.pixels[0, ..., number], stored(number) - 1024.0)


def test_a_series_written_from_the_far_end_comes_in_the_same_order(tmp_path):
    forward = read_series(series(tmp_path / "a"))
    backward = read_series(series(tmp_path / "b", heights=(7.5, 5, 2.5, 0)))
    np.testing.assert_array_equal(backward.pixels, forward.pixels[..., ::-1])
    assert backward.geometry.close_to(forward.geometry)


def test_each_slice_has_its_own_slope_and_intercept_applied(tmp_path):
    slopes, intercepts = [1, 2, 0.5], [-1024, 10, 0]
    image = read_series(series(tmp_path / "pet", (0, 1, 2), RescaleSlope=slopes, RescaleIntercept=intercepts))
    for number, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        np.testing.assert_array_equal(image.pixels[0, ..., number], stored(number) * slope + intercept)


def test_each_slice_is_what_the_reader_of_one_file_gives(tmp_path):
    folder = series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    pixels = read_series(folder).pixels
    for number, name in enumerate(NAMES[:4]):
        np.testing.assert_array_equal(pixels[..., number], load_image(folder / name))


def test_the_affine_places_every_corner_where_the_tags_say(tmp_path):
    image = read_series(series(tmp_path / "mr", (0, 3, 6), OBLIQUE))
    for row, column, number in ((0, 0, 0), (3, 0, 0), (0, 5, 0), (0, 0, 2), (3, 5, 2)):
        # By hand: a row further is 0.5 mm along (0, 0, -1), a column 0.75 mm along (0.6, 0.8, 0), a slice 3 mm along
        # the normal (-0.8, 0.6, 0); DICOM counts to the left and posterior, the affine to the right and anterior.
        left = -10 + column * 0.75 * 0.6 + number * 3 * -0.8
        posterior = 20 + column * 0.75 * 0.8 + number * 3 * 0.6
        superior = 30 - row * 0.5
        found = image.geometry.affine @ (row, column, number, 1)
        np.testing.assert_allclose(found, (-left, -posterior, superior, 1), rtol=0, atol=1e-9)
    assert image.geometry.spacing == pytest.approx((0.5, 0.75, 3))
    assert image.geometry.orientation == "IPR"


def test_the_distance_is_that_of_positions_and_not_the_thickness(tmp_path):
    assert read_series(series(tmp_path / "ct")).geometry.spacing == pytest.approx((0.5, 0.75, 2.5))


def test_gaps_within_the_tolerance_are_one_spacing(tmp_path):
    assert read_series(series(tmp_path / "ct", (0, 2.51, 5, 7.5))).geometry.spacing[2] == pytest.approx(2.5)
    assert read_series(series(tmp_path / "thin", (0, 0.106, 0.2, 0.3))).geometry.spacing[2] == pytest.approx(0.1)


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    places = [[-10.0, 20.0 + 0.5 * number, 30.0 + 2.5 * number] for number in range(4)]
    image = read_series(series(tmp_path / "head", ImagePositionPatient=places))
    np.testing.assert_allclose(image.geometry.affine[:3, 2], (0, -0.5, 2.5), atol=1e-12)


def test_one_slice_is_as_thick_as_its_tag_says(tmp_path):
    image = read_series(series(tmp_path / "ct", (0,)))
    assert (image.pixels.shape, image.geometry.spacing[2]) == ((1, 4, 6, 1), 9.0)
    refused(series(tmp_path / "bare", (0,), SliceThickness=None, SpacingBetweenSlices=None), "got m.dcm alone without")


def test_hidden_files_and_a_dicomdir_are_passed_over(tmp_path):
    folder = series(tmp_path / "ct")
    (folder / ".DS_Store").write_text("x")
    (folder / "DICOMDIR").write_text("x")
    assert read_series(folder).pixels.shape == (1, 4, 6, 4)


def test_a_suffix_that_is_not_of_dicom_is_read_by_its_content(tmp_path):
    folder = series(tmp_path / "ct", names=("a.IMA", "b.IMA", "c.IMA", "d.IMA"))
    np.testing.assert_array_equal(read_series(folder).pixels[0, ..., 2], stored(2) - 1024.0)


def test_read_image_reads_a_folder_as_a_series(tmp_path):
    folder = series(tmp_path / "ct")
    np.testing.assert_array_equal(read_image(folder).pixels, read_series(folder).pixels)


# folders that are no volume


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "ct").mkdir()
    refused(tmp_path / "ct", "expected a folder holding a DICOM series, got an empty one")


def test_what_is_no_folder_is_named(tmp_path):
    refused(tmp_path / "ct", "expected a folder .*, got nothing at")
    refused(dicom(tmp_path / "a.dcm"), r"expected a folder .*, got a file at .*a\.dcm")


def test_a_folder_among_the_slices_is_named(tmp_path):
    (series(tmp_path / "ct") / "more").mkdir()
    refused(tmp_path / "ct", "got a folder 'more' among them")


def test_a_file_that_is_no_dicom_is_named(tmp_path):
    (series(tmp_path / "ct") / "notes.txt").write_text("taken in the morning")
    refused(tmp_path / "ct", r"ct, notes\.txt: expected a readable DICOM file, got 20 bytes that begin with b'taken in")


def test_a_dicom_without_pixels_is_named_by_its_kind(tmp_path):
    folder = series(tmp_path / "ct")
    report = pydicom.dcmread(folder / NAMES[0])
    report.SOPClassUID = pydicom.uid.BasicTextSRStorage
    del report.Rows, report.PixelData
    report.save_as(folder / "report.dcm")
    refused(folder, r"ct, report\.dcm: expected a DICOM image, got Basic Text SR Storage")


def test_an_empty_number_of_rows_is_named(tmp_path):
    folder = series(tmp_path / "ct")
    empty = pydicom.dcmread(folder / NAMES[0])
    empty.Rows = None
    empty.save_as(folder / "x.dcm")
    refused(folder, r"ct, x\.dcm: expected a DICOM image, got CT Image Storage")


def test_an_empty_slice_is_named(tmp_path):
    (series(tmp_path / "ct") / "b.dcm").touch()
    refused(tmp_path / "ct", r"ct, b\.dcm: expected an image, got an empty file \(0 bytes\)")


def test_a_truncated_slice_is_named(tmp_path):
    path = series(tmp_path / "ct", DataSetTrailingPadding=None) / NAMES[1]
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path / "ct", r"ct, c\.dcm: expected a readable DICOM file, got \d+ bytes")


def test_frames_in_one_file_are_refused(tmp_path):
    folder = series(tmp_path / "us")
    dicom(folder / "x.dcm", NumberOfFrames=2, PixelData=np.zeros((2, 4, 6), np.int16).tobytes())
    refused(folder, r"expected a slice a file, got 2 frames in x\.dcm")


def test_a_colour_slice_is_refused(tmp_path):
    folder = series(tmp_path / "ct")
    dicom(folder / "x.dcm", SamplesPerPixel=3)
    refused(folder, r"expected grey slices, got 3 colours in x\.dcm")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_slice_that_does_not_say_where_it_lies_is_named(tmp_path, tag):
    folder = series(tmp_path / "ct")
    dicom(folder / "x.dcm", **{tag: None})
    refused(folder, rf"got no {tag} in x\.dcm")


def test_two_series_are_named_with_a_file_of_each(tmp_path):
    folder = series(tmp_path / "ct", SeriesInstanceUID="1.2.3")
    dicom(folder / "zz.dcm", SeriesInstanceUID="1.2.4", ImagePositionPatient=place(10))
    refused(folder, r"one series, got two: 1\.2\.3 in IM0007 and 1\.2\.4 in zz\.dcm")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 6, "Columns": 4}, r"got mixed size: \(4, 6\) in IM0007 and \(6, 4\) in zz\.dcm"),
        (
            {"ImageOrientationPatient": list(OBLIQUE)},
            r"got mixed orientation: \[1, 0, 0, 0, 1, 0\] in IM0007 and \[0\.6, 0\.8, 0, 0, 0, -1\] in zz\.dcm",
        ),
        ({"PixelSpacing": [0.5, 0.8]}, r"got mixed spacing: \[0\.5, 0\.75\] in IM0007 and \[0\.5, 0\.8\] in zz\.dcm"),
    ],
)
def test_a_slice_of_another_size_orientation_or_spacing_is_named(tmp_path, tags, message):
    folder = series(tmp_path / "ct")
    dicom(folder / "zz.dcm", **({"ImagePositionPatient": place(10), "ImageOrientationPatient": list(AXIAL)} | tags))
    refused(folder, message)


def test_a_missing_slice_is_suspected_where_a_gap_is_twice_the_others(tmp_path):
    folder = series(tmp_path / "ct", (0, 2.5, 7.5, 10))
    refused(folder, r"mixed spacing: 5 mm from c\.dcm to IM0007 where 2\.5 mm is usual, 2 times as much: 1 missing")
    refused(series(tmp_path / "three", (0, 1, 3)), r"2 mm from c\.dcm to IM0007 where 1 mm is usual, 2 times")


def test_a_gap_that_is_no_multiple_is_mixed_spacing_without_a_guess(tmp_path):
    folder = series(tmp_path / "ct", (0, 2.5, 5, 8.2))
    refused(folder, r"mixed spacing: 3\.2 mm from IM0007 to a\.dcm where 2\.5 mm is usual\. Export")


def test_two_slices_in_one_place_are_named(tmp_path):
    folder = series(tmp_path / "ct", (0, 2.5, 5, 2.5))
    refused(folder, r"got a\.dcm and c\.dcm both at 32\.5 mm along the slice normal")


def test_slices_that_leave_their_line_are_named(tmp_path):
    places = [place(0), place(2.5), [-6.0, 20.0, 35.0], place(7.5)]
    refused(
        series(tmp_path / "ct", ImagePositionPatient=places), r"got a step of \[4, 0, 2\.5\] mm from c\.dcm to IM0007"
    )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, r"perpendicular directions .* got \[1\.0, 0\.0, 0\.0, 1\.0"),
        ({"PixelSpacing": [0, 1]}, r"above 0, got \[0\.0, 1\.0\]"),
    ],
)
def test_tags_that_cannot_be_are_named(tmp_path, tags, message):
    dicom(tmp_path / "ct" / "0.dcm", **tags)
    refused(tmp_path / "ct", rf"ct, 0\.dcm: expected .*{message}")


def test_the_volume_saved_as_nifti_has_the_place_that_nibabel_reads_back(tmp_path):
    image = read_series(series(tmp_path / "mr", (0, 3, 6), OBLIQUE))
    nibabel.save(nibabel.Nifti1Image(image.pixels[0], image.geometry.affine), tmp_path / "a.nii.gz")
    again = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.pixels, image.pixels)
    assert again.geometry.close_to(image.geometry)
