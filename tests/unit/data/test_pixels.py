import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from mednorm.data import load_image, load_mask
from mednorm.data.pixels import as_float, image_of, mask_of, resized
from mednorm.errors import DataError

from .made import gradient, picture, text


def nifti(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def changed_dicom(path, **tags):
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def palette(path, colours, indices):
    image = Image.new("P", (len(indices), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(indices)
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    return path


# pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_a_grey_picture_comes_as_rows_by_columns_in_its_own_intensities(tmp_path, suffix):
    image = load_image(picture(tmp_path / f"a.{suffix}", gradient()))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, gradient()[None])


def test_a_jpeg_comes_as_pillow_decodes_it(tmp_path):
    path = picture(tmp_path / "a.JPG", gradient(16, 24, scale=0) + np.uint8(77))
    np.testing.assert_array_equal(load_image(path), np.full((1, 16, 24), 77))


def test_a_colour_picture_comes_channels_first(tmp_path):
    colour = np.stack([gradient(), gradient() + 1, gradient() + 2], axis=-1)
    np.testing.assert_array_equal(load_image(picture(tmp_path / "a.png", colour)), colour.transpose(2, 0, 1))


def test_sixteen_bits_are_kept(tmp_path):
    deep = (gradient().astype(np.uint16) * 500).astype(np.uint16)
    assert deep.max() > 32767
    np.testing.assert_array_equal(load_image(picture(tmp_path / "a.png", deep)), deep[None])
    assert image_of(tmp_path / "a.png", "a").dtype == np.uint16


def test_a_float_tiff_keeps_its_values(tmp_path):
    values = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(load_image(picture(tmp_path / "a.tif", values)), values[None])


def test_a_palette_picture_is_looked_up(tmp_path):
    path = palette(tmp_path / "a.png", [(5, 6, 7), (200, 10, 30)], [1, 0, 1])
    np.testing.assert_array_equal(load_image(path), [[[200, 5, 200]], [[10, 6, 10]], [[30, 7, 30]]])


def test_a_palette_of_greys_comes_as_one_channel(tmp_path):
    path = palette(tmp_path / "a.png", [(9, 9, 9), (70, 70, 70)], [0, 1])
    np.testing.assert_array_equal(load_image(path), [[[9, 70]]])


def test_a_one_bit_picture_is_black_and_white(tmp_path):
    path = picture(tmp_path / "a.png", gradient() > 50)
    np.testing.assert_array_equal(load_image(path), (gradient() > 50)[None] * 255)


def test_an_opaque_alpha_channel_is_left_out(tmp_path):
    path = picture(tmp_path / "a.png", gradient(), mode="LA")
    np.testing.assert_array_equal(load_image(path), gradient()[None])


def test_a_transparent_picture_is_refused(tmp_path):
    rgba = np.zeros((4, 6, 4), np.uint8)
    with pytest.raises(DataError, match=r"a\.png: expected an opaque picture, got a transparent one"):
        load_image(picture(tmp_path / "a.png", rgba))


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    pages = [Image.fromarray(gradient() + np.uint8(page)) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif: expected one picture, got 3 pages"):
        load_image(tmp_path / "a.tif")


def test_cmyk_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected grey or RGB, got colours stored as CMYK"):
        load_image(picture(tmp_path / "a.jpg", np.zeros((8, 8, 3), np.uint8), mode="CMYK"))


# DICOM


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_dicom_has_slope_and_intercept_applied_and_pydicoms_orientation(name):
    path = get_testdata_file(name)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    assert not np.array_equal(expected, expected.T)
    np.testing.assert_array_equal(load_image(path), expected[None].astype(np.float32))


def test_dicom_ct_is_in_hounsfield_units():
    assert load_image(get_testdata_file("CT_small.dcm")).min() == -896  # air; stored as 128


def test_dicom_slope_other_than_one_is_applied(tmp_path):
    stored = pydicom.dcmread(get_testdata_file("CT_small.dcm")).pixel_array
    path = changed_dicom(tmp_path / "a.dcm", RescaleSlope=2.5, RescaleIntercept=-10)
    np.testing.assert_allclose(load_image(path), stored[None] * 2.5 - 10)


def test_dicom_without_a_suffix_or_with_the_end_of_a_uid_is_read(tmp_path):
    for name in ("IM0001", "1.2.840.5"):
        assert load_image(changed_dicom(tmp_path / name)).min() == -896


def test_dicom_without_the_patients_position_is_read(tmp_path):
    path = changed_dicom(tmp_path / "a.dcm", ImagePositionPatient=None, ImageOrientationPatient=None)
    assert load_image(path).max() == load_image(get_testdata_file("CT_small.dcm")).max()


@pytest.mark.parametrize(("signed", "low", "high"), [(0, 0, 65535), (1, -32768, 32767)])
def test_monochrome1_is_inverted_so_that_bright_means_dense(tmp_path, signed, low, high):
    tags = {"PixelRepresentation": signed, "BitsStored": 16, "HighBit": 15, "RescaleSlope": 2, "RescaleIntercept": 7}
    plain = load_image(changed_dicom(tmp_path / "a.dcm", **tags))
    inverted = load_image(changed_dicom(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_array_equal((inverted - 7) / 2, (low + high) - (plain - 7) / 2)


def test_frames_of_dicom_become_the_first_spatial_axis(tmp_path):
    frames = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    tags = {"NumberOfFrames": 3, "Rows": 4, "Columns": 5, "PixelData": frames.tobytes()}
    tags |= {"PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": 0}
    np.testing.assert_array_equal(load_image(changed_dicom(tmp_path / "a.dcm", **tags)), frames[None])


def test_colour_dicom_comes_channels_first():
    path = get_testdata_file("SC_rgb_small_odd.dcm")
    expected = pydicom.dcmread(path).pixel_array
    assert expected.shape[-1] == 3
    np.testing.assert_array_equal(load_image(path), expected.transpose(2, 0, 1))


def test_dicom_colours_of_other_kinds_come_as_pydicom_makes_them_red_green_and_blue():
    path = get_testdata_file("SC_ybr_full_422_uncompressed.dcm")
    expected = pydicom.pixels.pixel_array(path)
    assert not np.array_equal(expected, pydicom.pixels.pixel_array(path, raw=True))
    np.testing.assert_array_equal(load_image(path), expected.transpose(2, 0, 1))


def test_dicom_of_a_palette_is_refused(tmp_path):
    path = changed_dicom(tmp_path / "a.dcm", PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(DataError, match="expected grey or RGB, got colours stored as PALETTE COLOR"):
        load_image(path)


def test_a_dicom_segmentation_object_is_refused(tmp_path):
    segment, number, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    segment.SegmentNumber = number.ReferencedSegmentNumber = 1
    frame.SegmentIdentificationSequence = [number]
    pixels = np.zeros((2, 128, 128), np.int16).tobytes()
    tags = {"SegmentSequence": [segment], "PerFrameFunctionalGroupsSequence": [frame, frame]}
    path = changed_dicom(tmp_path / "a.dcm", NumberOfFrames=2, PixelData=pixels, **tags)
    with pytest.raises(DataError, match="expected a DICOM image, got a segmentation object"):
        load_mask(path)


def test_dicom_without_pixels_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^scan 3: expected a readable DICOM file, got \d+ bytes .*pixel"):
        load_image(changed_dicom(tmp_path / "a.dcm", PixelData=None), where="scan 3")


# NIfTI


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_keeps_its_axes_and_values(tmp_path, suffix):
    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4) - 5.5
    path = nifti(tmp_path / f"a.{suffix}", volume, np.diag([-1, -1, 2, 1]))
    np.testing.assert_array_equal(load_image(path), volume[None])


def test_the_fourth_axis_of_nifti_becomes_the_channels(tmp_path):
    volume = np.arange(2 * 3 * 4 * 2, dtype=np.int16).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(load_image(nifti(tmp_path / "a.nii", volume)), np.moveaxis(volume, -1, 0))


def test_the_slope_of_nifti_is_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(1, 0)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([0.5, -1], np.float32).tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(load_image(tmp_path / "a.nii")[0].ravel(), np.arange(8) * 0.5 - 1)


def test_nifti_of_five_axes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"got shape \(2, 2, 2, 1, 3\) of"):
        load_image(nifti(tmp_path / "a.nii", np.zeros((2, 2, 2, 1, 3), np.float32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_counted(tmp_path, bad):
    volume = np.zeros((2, 2, 2), np.float32)
    volume[0, 0, :2] = bad
    with pytest.raises(DataError, match=r"a\.nii: expected finite numbers, got NaN or inf in 2 of 8 voxels"):
        load_image(nifti(tmp_path / "a.nii", volume))


def test_a_number_too_large_for_float32_is_refused():
    with pytest.raises(DataError, match="NaN or inf in 1 of 4"):
        as_float(np.array([[[1e300, 0], [0, 0]]]), "a")


# masks


@pytest.mark.parametrize("values", [(0, 255), (255, 255), (0, 0)])
def test_an_eight_bit_mask_of_0_and_255_is_read_as_0_and_1(tmp_path, values):
    mask = load_mask(picture(tmp_path / "m.png", np.array([values], np.uint8)))
    assert mask.dtype == np.int64
    np.testing.assert_array_equal(mask, [[value // 255 for value in values]])


def test_a_mask_of_more_values_than_0_and_255_is_kept(tmp_path):
    np.testing.assert_array_equal(
        load_mask(picture(tmp_path / "m.png", np.array([[0, 2, 255]], np.uint8))), [[0, 2, 255]]
    )


def test_0_and_255_in_sixteen_bits_are_kept(tmp_path):
    np.testing.assert_array_equal(load_mask(picture(tmp_path / "m.png", np.array([[0, 255]], np.uint16))), [[0, 255]])


def test_a_palette_mask_gives_its_indices(tmp_path):
    path = palette(tmp_path / "m.png", [(0, 0, 0), (255, 0, 0), (0, 255, 0)], [0, 2, 1])
    np.testing.assert_array_equal(load_mask(path), [[0, 2, 1]])


def test_a_one_bit_mask_gives_0_and_1(tmp_path):
    np.testing.assert_array_equal(load_mask(picture(tmp_path / "m.png", gradient() > 50)), gradient() > 50)


def test_a_colour_mask_of_equal_channels_is_reduced(tmp_path):
    colour = np.repeat(np.array([[0, 3, 1]], np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_mask(picture(tmp_path / "m.png", colour)), [[0, 3, 1]])


def test_a_colour_mask_of_different_channels_is_refused(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0, 0] = 255
    with pytest.raises(DataError, match=r"mask of m\.png: expected one channel of class numbers, got 3 channels that"):
        load_mask(picture(tmp_path / "m.png", colour))


def test_a_jpeg_mask_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"mask of m\.jpg: expected a mask in a format without losses, got JPEG"):
        load_mask(picture(tmp_path / "m.jpg", gradient()))


def test_a_float_nifti_mask_of_whole_numbers_is_read(tmp_path):
    labels = np.array([[[0, 1], [4, 2]]], np.float64)
    np.testing.assert_array_equal(load_mask(nifti(tmp_path / "m.nii.gz", labels)), labels.astype(np.int64))


def test_a_mask_of_shares_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected whole numbers, got 0\.25"):
        load_mask(nifti(tmp_path / "m.nii", np.array([[[0, 1], [0.25, 0]]], np.float32)))


def test_a_negative_mask_is_refused():
    with pytest.raises(DataError, match="mask of row 2: expected class numbers from 0, got -3"):
        mask_of(np.array([[0, -3]], np.int16), "row 2")


# files that cannot be read


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"row 4: expected an image file, got no file at .*a\.png"):
        load_image(tmp_path / "a.png", where="row 4")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DataError, match="expected an image file, got a folder at"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "dcm", "nii", "nii.gz"])
def test_a_file_of_zero_bytes_is_named(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(DataError, match=rf"a\.{suffix}: expected an image, got an empty file \(0 bytes\)"):
        load_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    ("load", "suffix"),
    [(load_image, suffix) for suffix in ("png", "jpg", "bmp", "tif", "dcm", "nii", "nii.gz")]
    + [(load_mask, suffix) for suffix in ("png", "dcm", "nii")],
)
def test_text_under_another_name_is_named_with_its_beginning(tmp_path, suffix, load):
    path = text(tmp_path / f"a.{suffix}", "patient,age\n1,60\n" * 40)
    with pytest.raises(
        DataError, match=r"expected a readable \w+ file, got 680 bytes that begin with b'patient,'"
    ) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, name, share):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    if name.endswith("dcm"):
        changed_dicom(path)
    elif ".nii" in name:
        nifti(path, np.stack([noise, noise], -1))
    else:
        picture(path, noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"row 9: expected a readable \w+ file, got {int(len(whole) * share)} bytes"):
        load_image(path, where="row 9")


def test_an_unknown_suffix_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a file ending in \.png, .*\.nii\.gz, got 'a\.mha'"):
        load_image(text(tmp_path / "a.mha", "x"))


# resampling


def test_resizing_keeps_the_mean_of_an_image_and_the_values_of_a_mask():
    image = torch.arange(16.0).reshape(1, 4, 4)
    mask = torch.tensor([[0, 0, 3, 3]] * 4)
    small, small_mask = resized(image, mask, (2, 2), "a")
    assert small.mean().item() == pytest.approx(image.mean().item())
    assert small[0, 0, 0] < small[0, 0, 1] < small[0, 1, 0]
    assert torch.equal(small_mask, torch.tensor([[0, 3], [0, 3]]))
    assert type(small) is torch.Tensor


def test_resizing_a_volume_keeps_a_constant_and_leaves_a_label():
    image, label = resized(torch.full((2, 4, 4, 4), 3.0), torch.tensor(1), (6, 2, 4), "a")
    assert torch.allclose(image, torch.full((2, 6, 2, 4), 3.0))
    assert label == 1


def test_a_size_of_the_wrong_rank_is_refused():
    with pytest.raises(DataError, match=r"expected size to hold 2 positive numbers .* got \(8, 8, 8\)"):
        resized(torch.zeros(1, 4, 4), torch.tensor(1), (8, 8, 8), "a")


def test_growing_is_linear():
    grown, _ = resized(torch.tensor([[[0.0, 4.0]]]), torch.tensor(0), (1, 4), "a")
    assert grown.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("size", [(3, 5), (3, 5, 2)])
def test_an_image_of_the_size_asked_for_is_returned_as_it_is(size):
    image, mask = torch.rand(2, *size), torch.randint(0, 3, size)
    same, same_mask = resized(image, mask, size, "a")
    assert same is image
    assert same_mask is mask
