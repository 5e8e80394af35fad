import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from mednorm.data import Geometry, ImageSet, Item, check_uniform, geometry_of, load_image, read_image
from mednorm.errors import DataError

from .dicoms import AXIAL, OBLIQUE, dicom, place, series
from .made import gradient, picture

AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, -6], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def nifti(path, affine=AFFINE, shape=(2, 3, 4), unit="mm"):
    image = nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


# the value


def test_spacing_and_orientation_follow_the_axes_of_the_array():
    geometry = Geometry(AFFINE, (2, 3, 4))
    assert (geometry.spacing, geometry.orientation) == ((3.0, 2.0, 4.0), "ALS")
    slice_ = Geometry(AFFINE, (2, 3))
    assert (slice_.spacing, slice_.orientation) == ((3.0, 2.0), "AL")


def test_the_affine_is_a_copy_in_float64_that_nobody_can_change():
    affine = AFFINE.astype(np.float32)
    geometry = Geometry(affine, (2, 3, 4))
    affine[0, 0] = 9
    assert (geometry.affine.dtype, geometry.affine[0, 0]) == (np.float64, 0)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 9


@pytest.mark.parametrize(("shift", "close"), [(0.0009, True), (0.0011, False), (-0.5, False)])
def test_two_grids_are_close_within_a_thousandth(shift, close):
    moved = AFFINE.copy()
    moved[1, 3] += shift
    assert Geometry(AFFINE, (2, 3, 4)).close_to(Geometry(moved, (2, 3, 4))) is close


def test_two_grids_of_other_shapes_are_not_close_and_the_tolerance_can_be_set():
    assert not Geometry(AFFINE, (2, 3, 4)).close_to(Geometry(AFFINE, (2, 3, 5)))
    assert Geometry(AFFINE, (2, 3, 4)).close_to(Geometry(AFFINE + 0.4, (2, 3, 4)), tolerance=0.5)


# one input


@pytest.mark.parametrize(("suffix", "format"), [("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("bmp", "BMP")])
def test_a_picture_has_the_pixels_of_load_image_and_no_place(tmp_path, suffix, format):
    path = picture(tmp_path / f"a.{suffix}", gradient())
    image = read_image(str(path))
    assert (image.geometry, image.format) == (None, format)
    np.testing.assert_array_equal(image.pixels, load_image(path))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_nifti_has_the_affine_of_its_header(tmp_path, name):
    path = nifti(tmp_path / name)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, load_image(path))
    np.testing.assert_array_equal(image.geometry.affine, AFFINE)
    assert (image.geometry.shape, image.format) == ((2, 3, 4), "NIfTI")


def test_a_fourth_axis_of_nifti_is_no_part_of_the_grid(tmp_path):
    image = read_image(nifti(tmp_path / "a.nii", shape=(2, 3, 4, 5)))
    assert (image.pixels.shape, image.geometry.shape) == ((5, 2, 3, 4), (2, 3, 4))


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_a_nifti_in_other_units_is_converted_to_mm(tmp_path, unit, factor):
    geometry = read_image(nifti(tmp_path / "a.nii", unit=unit)).geometry
    assert geometry.spacing == pytest.approx((3 * factor, 2 * factor, 4 * factor))
    assert geometry.affine[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("units", "factor"), [(4, 1), (58, 1), (66, 1), (9, 1000), (8 + 3, 0.001)])
def test_unusual_units_of_a_nifti_are_read_by_their_lowest_bits(tmp_path, units, factor):
    """nibabel raises a KeyError for 4, 58 and 66."""
    path = nifti(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[123] = units
    path.write_bytes(content)
    assert read_image(path).geometry.spacing == pytest.approx((3 * factor, 2 * factor, 4 * factor))


def test_a_nifti_whose_codes_are_0_has_a_spacing_and_no_place(tmp_path):
    """nibabel then makes up an affine, which leads to the left and has its origin amid the volume."""
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), None)
    image.header.set_zooms((2.0, 3.0, 4.0))
    nibabel.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    assert (read.geometry, read.spacing) == (None, (2.0, 3.0, 4.0))


def test_a_nifti_of_two_axes_that_says_its_plane_alone_has_the_normal_as_third(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((2, 3), np.int16), None)
    image.header.set_sform(AFFINE * [1, 1, 0, 1], 2)
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii")
    geometry = read_image(tmp_path / "a.nii").geometry
    np.testing.assert_allclose(geometry.affine, AFFINE * [1, 1, 0.25, 1])
    assert (geometry.spacing, geometry.orientation) == ((3.0, 2.0), "AL")


def test_an_affine_that_flattens_the_volume_is_named(tmp_path):
    flat = AFFINE.copy()
    flat[:3, 2] = flat[:3, 1]
    with pytest.raises(DataError, match=r"a\.nii: expected an affine that spans space, got \[0 -2 -2 5; 3 0 0 -6; 0 0"):
        read_image(nifti(tmp_path / "a.nii", flat))


def test_a_dicom_is_placed_as_its_tags_say(tmp_path):
    path = dicom(tmp_path / "a.dcm", ImagePositionPatient=place(0), ImageOrientationPatient=list(OBLIQUE))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, load_image(path))
    # By hand, to the right, anterior, superior: a row is 0.5 mm along (0, 0, -1), a column 0.75 mm along (0.6, 0.8, 0)
    # and the normal (-0.8, 0.6, 0) 9 mm thick, whose first two numbers DICOM counts to the left and posterior.
    expected = [[0, -0.45, 7.2, 10], [0, -0.6, -5.4, -20], [-0.5, 0, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.geometry.affine, expected, rtol=0, atol=1e-12)
    assert (image.geometry.shape, image.geometry.orientation, image.format) == ((4, 6), "IP", "DICOM")
    assert image.geometry.spacing == pytest.approx((0.5, 0.75))


def test_the_distance_between_slices_stands_in_for_a_missing_thickness(tmp_path):
    path = dicom(tmp_path / "a.dcm", SliceThickness=None, SpacingBetweenSlices=-4)
    assert np.linalg.norm(read_image(path).geometry.affine[:3, 2]) == pytest.approx(4)


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_dicom_without_a_tag_of_its_place_has_none(tmp_path, missing):
    assert read_image(dicom(tmp_path / "a.dcm", **{missing: None})).geometry is None


def test_a_dicom_without_thickness_or_of_several_frames_has_no_place(tmp_path):
    assert read_image(dicom(tmp_path / "a.dcm", SliceThickness=None, SpacingBetweenSlices=None)).geometry is None
    frames = np.zeros((2, 4, 6), np.int16).tobytes()
    image = read_image(dicom(tmp_path / "b.dcm", NumberOfFrames=2, PixelData=frames))
    assert (image.pixels.shape, image.geometry) == ((1, 2, 4, 6), None)


def test_pydicoms_own_image_is_placed_at_its_first_voxel():
    geometry = read_image(get_testdata_file("CT_small.dcm")).geometry
    np.testing.assert_allclose(geometry.affine[:3, 3], (158.135803, 179.035797, -75.699997))


def test_an_empty_tag_of_a_dicom_is_an_error_of_the_data(tmp_path):
    """MONAI raises a KeyError, which once went through as it was."""
    with pytest.raises(DataError, match=r"a\.dcm: expected a readable DICOM file, got \d+ bytes .*KeyError"):
        read_image(dicom(tmp_path / "a.dcm", ImagePositionPatient=""))


def test_bad_tags_are_named_with_what_they_hold(tmp_path):
    item = images_of(dicom(tmp_path / "a.dcm", ImagePositionPatient=[1, 2])).items[0]
    with pytest.raises(
        DataError, match=r"row 2: expected 3 finite numbers in ImagePositionPatient, got \[1\.0, 2\.0\]"
    ):
        geometry_of(item)
    with pytest.raises(DataError, match=r"a\.dcm: expected a readable DICOM file"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.dcm"])
def test_a_missing_or_empty_input_is_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: expected an image file, got no file at"):
        read_image(tmp_path / name)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name}: expected an image, got an empty file"):
        read_image(tmp_path / name)


# sets


def images_of(*images):
    items = tuple(Item(f"row {row}", "train", image, label=0) for row, image in enumerate(images, start=2))
    return ImageSet("made up", "classification", ("no", "yes"), items)


def test_the_place_of_an_item_is_that_of_its_file_files_or_folder(tmp_path):
    one, two = nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii")
    folder = series(tmp_path / "ct")
    items = images_of(np.zeros((1, 2, 3)), picture(tmp_path / "c.png", gradient()), one, (one, two), folder).items
    found = [geometry_of(item) for item in items]
    assert found[:2] == [None, None]
    assert found[2].close_to(found[3])
    assert found[3].close_to(Geometry(AFFINE, (2, 3, 4)))
    assert found[4].close_to(read_image(folder).geometry)


def test_the_place_is_read_without_the_voxels(tmp_path):
    path = nifti(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:360])  # the header alone
    assert geometry_of(images_of(path).items[0]).close_to(Geometry(AFFINE, (2, 3, 4)))
    with pytest.raises(DataError, match="expected a readable NIfTI file"):
        read_image(path)


def test_files_of_one_image_that_lie_differently_are_named(tmp_path):
    pair = nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii", AFFINE + np.eye(4)[[3, 0, 1, 2]] * 0.01)
    with pytest.raises(DataError, match=r"row 2: .* got 2×3×4 with \[0 -2 0 5; .* in a\.nii and .*3\.01 .* in b\.nii"):
        geometry_of(images_of(pair).items[0])


def test_a_uniform_set_gives_its_spacing_and_orientation(tmp_path):
    nearly = AFFINE * [1.009, 1, 1, 1]
    images = images_of(nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii", nearly, (5, 5, 5)))
    assert check_uniform(images) == ((3.0, 2.0, 4.0), "ALS")


def test_mixed_spacing_is_named_with_two_items(tmp_path):
    images = images_of(*(nifti(tmp_path / f"{n}.nii", AFFINE * [n, 1, 1, 1]) for n in (1, 1.005, 1.02)))
    with pytest.raises(
        DataError, match=r"made up: .* got mixed spacing: 3×2×4 mm in row 2 and 3\.06×2×4 mm in row 4\. Resample"
    ):
        check_uniform(images)


def test_mixed_orientation_is_named_with_two_items(tmp_path):
    images = images_of(nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii", AFFINE * [-1, 1, 1, 1]))
    with pytest.raises(DataError, match=r"mixed orientation: ALS in row 2 and PLS in row 3"):
        check_uniform(images)


def test_a_series_and_a_nifti_in_another_order_of_axes_are_mixed(tmp_path):
    axes = np.diag([-0.75, -0.5, 2.5, 1])
    images = images_of(series(tmp_path / "ct"), nifti(tmp_path / "b.nii", axes))
    with pytest.raises(DataError, match=r"mixed orientation: PLS in row 2 and LPS in row 3"):
        check_uniform(images)


@pytest.mark.parametrize("order", [1, -1])
def test_a_volume_that_does_not_say_among_those_that_do_is_named(tmp_path, order):
    images = images_of(*(nifti(tmp_path / "a.nii"), np.zeros((1, 2, 3, 4)))[::order])
    known, unknown = (2, 3)[::order]
    with pytest.raises(DataError, match=rf"got one for row {known} and none for row {unknown}"):
        check_uniform(images)


def test_pictures_and_slices_are_not_compared(tmp_path):
    slices = [dicom(tmp_path / f"{n}.dcm", PixelSpacing=[n, n], ImageOrientationPatient=list(AXIAL)) for n in (1, 2)]
    assert check_uniform(images_of(*slices)) is None
    assert check_uniform(images_of(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)))) is None
