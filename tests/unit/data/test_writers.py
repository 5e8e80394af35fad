import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from mednorm.data import Geometry, Image, load_mask, read_image, write_mask
from mednorm.errors import DataError

from .dicoms import OBLIQUE, dicom, place, series
from .made import gradient, picture

AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, -6], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def labels(shape, classes=4):
    return np.arange(np.prod(shape)).reshape(shape) % classes


def plain(*shape):
    return Image(np.zeros((1, *shape), np.float32), None, "PNG")


def test_a_mask_of_a_nifti_lies_on_it(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 5), np.float32), AFFINE), tmp_path / "a.nii")
    path = write_mask(labels((2, 3, 5)), read_image(tmp_path / "a.nii"), tmp_path / "out" / "a.seg")
    assert path == tmp_path / "out" / "a.seg.nii.gz"
    written = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels((2, 3, 5)))
    np.testing.assert_array_equal(written.affine, AFFINE)
    np.testing.assert_allclose(written.get_qform(coded=True)[0], AFFINE, atol=1e-6)
    np.testing.assert_array_equal(written.get_sform(coded=True)[0], AFFINE)
    assert (written.get_data_dtype(), written.header.get_xyzt_units()[0]) == (np.uint8, "mm")
    assert written.header.get_zooms() == (3, 2, 4)
    np.testing.assert_array_equal(load_mask(path), labels((2, 3, 5)))


def test_a_mask_of_a_series_lies_on_it(tmp_path):
    image = read_image(series(tmp_path / "mr", (0, 3, 6), OBLIQUE))
    written = nibabel.load(write_mask(labels((4, 6, 3)), image, tmp_path / "m"))
    np.testing.assert_allclose(written.affine, image.geometry.affine, atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), image.geometry.affine, atol=1e-5)
    assert [int(written.header[code]) for code in ("qform_code", "sform_code")] == [1, 1]


def test_a_sheared_grid_is_in_the_sform_alone(tmp_path):
    places = [[0.0, 0.5 * number, 2.5 * number] for number in range(4)]
    image = read_image(series(tmp_path / "head", ImagePositionPatient=places))
    written = nibabel.load(write_mask(labels((4, 6, 4)), image, tmp_path / "m"))
    np.testing.assert_allclose(written.affine, image.geometry.affine, atol=1e-6)
    assert [int(written.header[code]) for code in ("qform_code", "sform_code")] == [0, 1]


def test_a_mask_of_a_dicom_slice_is_a_volume_of_one_slice(tmp_path):
    image = read_image(dicom(tmp_path / "a.dcm", ImagePositionPatient=place(5)))
    written = nibabel.load(write_mask(labels((4, 6)), image, tmp_path / "m"))
    np.testing.assert_array_equal(np.asarray(written.dataobj)[..., 0], labels((4, 6)))
    np.testing.assert_allclose(written.affine, image.geometry.affine, atol=1e-5)
    assert written.shape == (4, 6, 1)


def test_a_mask_of_a_nifti_of_two_axes_keeps_them(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3), np.float32), AFFINE), tmp_path / "a.nii")
    path = write_mask(labels((2, 3)), read_image(tmp_path / "a.nii"), tmp_path / "m")
    np.testing.assert_array_equal(load_mask(path), labels((2, 3)))


def test_a_volume_without_a_place_claims_none(tmp_path):
    written = nibabel.load(write_mask(labels((2, 3, 4)), plain(2, 3, 4), tmp_path / "m"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels((2, 3, 4)))
    assert [int(written.header[code]) for code in ("qform_code", "sform_code")] == [0, 0]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_a_mask_of_a_nifti_whose_codes_are_0_has_its_spacing_and_claims_no_place(tmp_path, shape):
    image = nibabel.Nifti1Image(np.zeros(shape, np.float32), None)
    image.header.set_zooms((2.0, 3.0, 4.0)[: len(shape)])
    nibabel.save(image, tmp_path / "a.nii")
    written = nibabel.load(write_mask(labels(shape), read_image(tmp_path / "a.nii"), tmp_path / "m"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels(shape))
    assert [int(written.header[code]) for code in ("qform_code", "sform_code")] == [0, 0]
    assert written.header.get_zooms() == (2, 3, 4)[: len(shape)]


def test_a_mask_of_a_picture_holds_its_class_numbers(tmp_path):
    image = read_image(picture(tmp_path / "a.png", gradient()))
    path = write_mask(labels((4, 6)), image, tmp_path / "m")
    with Picture.open(path) as written:
        assert (path.name, written.mode, written.size) == ("m.png", "L", (6, 4))
        np.testing.assert_array_equal(np.asarray(written), labels((4, 6)))


@pytest.mark.parametrize(
    ("mask", "classes", "greys"),
    [
        ([[0, 1]], None, [[0, 255]]),
        ([[0, 1]], 2, [[0, 255]]),
        ([[0, 0]], None, [[0, 0]]),
        ([[False, True]], None, [[0, 255]]),
        ([[0, 1]], 3, [[0, 1]]),
        ([[0, 2]], None, [[0, 2]]),
        ([[0, 254]], None, [[0, 254]]),
    ],
)
def test_two_classes_are_black_and_white_and_read_back_as_they_were(tmp_path, mask, classes, greys):
    path = write_mask(np.array(mask), plain(1, 2), tmp_path / "m", classes=classes)
    with Picture.open(path) as written:
        assert np.asarray(written).tolist() == greys
    assert load_mask(path).tolist() == np.array(mask, int).tolist()


def test_a_file_that_is_there_is_kept_unless_asked(tmp_path):
    path = write_mask(np.array([[0, 1]]), plain(1, 2), tmp_path / "m")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"m\.png: expected no file there, got one\. .*overwrite=True"):
        write_mask(np.array([[1, 0]]), plain(1, 2), tmp_path / "m")
    assert path.read_bytes() == before
    write_mask(np.array([[1, 0]]), plain(1, 2), tmp_path / "m", overwrite=True)
    assert load_mask(path).tolist() == [[1, 0]]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.png"]


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    like = Image(np.zeros((1, 2, 3, 4), np.float32), Geometry(AFFINE, (2, 3, 4)), "NIfTI")
    one, two = (write_mask(labels((2, 3, 4)), like, tmp_path / name) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.zeros((2, 1), int), {}, r"m: expected a mask of the size of its image, \(1, 2\), got \(2, 1\)"),
        (np.array([[0.0, 1.0]]), {}, "m: expected whole numbers, got float64"),
        (np.array([[0, -1]]), {}, "m: expected class numbers from 0 to 254, got -1"),
        (np.array([[0, 255]]), {}, "m: expected class numbers from 0 to 254, got 255"),
        (np.array([[0, 3]]), {"classes": 3}, "m: expected class numbers from 0 to 2, got 3"),
        (np.array([[0, 1]]), {"classes": 256}, "m: expected from 2 to 255 classes, got 256"),
    ],
)
def test_what_is_no_mask_of_the_image_is_named_and_nothing_written(tmp_path, mask, options, message):
    with pytest.raises(DataError, match=message):
        write_mask(mask, plain(1, 2), tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []
