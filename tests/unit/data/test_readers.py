import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from mednorm.data import load_image, readers
from mednorm.errors import DataError, MissingExtraError

from .dicoms import dicom, stored
from .made import gradient, picture


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.PNG", "PNG"),
        ("a.b.jpeg", "JPEG"),
        ("a.nii.gz", "NIfTI"),
        ("a.NII", "NIfTI"),
        ("IM0001", "DICOM"),
        ("1.2.840.113", "DICOM"),
        ("a.gz", None),
        ("a.npy", None),
        ("notes.txt", None),
    ],
)
def test_the_suffix_names_the_format(name, format):
    assert readers.format_of(Path(name)) == format


def test_importing_the_package_imports_neither_monai_nor_nilearn():
    code = "import sys, mednorm.data; print([name for name in ('monai', 'nilearn', 'nibabel') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def without_monai(monkeypatch):
    readers.monai_data.cache_clear()
    monkeypatch.setitem(sys.modules, "monai.data", None)
    yield
    readers.monai_data.cache_clear()


@pytest.mark.usefixtures("without_monai")
def test_a_missing_package_is_named_with_its_extra(tmp_path):
    with pytest.raises(MissingExtraError, match=r"got no monai.*pip install 'mednorm\[study\]'"):
        load_image(picture(tmp_path / "a.png", gradient()))


# The intensities of DICOM


def groups(*rescales):
    """Functional groups of an enhanced file, each with a slope and an intercept."""
    found = []
    for slope, intercept in rescales:
        group, transformation = pydicom.Dataset(), pydicom.Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        group.PixelValueTransformationSequence = [transformation]
        found.append(group)
    return found


def enhanced(path, **tags):
    """A file of three frames, whose rescale is in its functional groups alone."""
    frames = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    tags |= {"NumberOfFrames": 3, "Rows": 4, "Columns": 5, "PixelData": frames.tobytes()}
    return frames, dicom(path, **{"RescaleSlope": None, "RescaleIntercept": None} | tags)


def test_the_rescale_that_frames_share_is_applied(tmp_path):
    """MONAI looks at the top of the file alone, and gave stored values for Hounsfield units."""
    frames, path = enhanced(tmp_path / "a.dcm", SharedFunctionalGroupsSequence=groups((2, -1024)))
    np.testing.assert_array_equal(load_image(path), frames[None] * 2.0 - 1024)


def test_the_rescale_of_each_frame_is_applied_to_it_also_where_larger_is_darker(tmp_path):
    each = {"PerFrameFunctionalGroupsSequence": groups((1, 0), (2, -10), (0.5, 7))}
    frames, path = enhanced(tmp_path / "a.dcm", **each)
    expected = np.stack([frames[0], frames[1] * 2 - 10, frames[2] * 0.5 + 7])
    np.testing.assert_array_equal(load_image(path), expected[None])
    _, dark = enhanced(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **each)
    inverted = -1 - frames.astype(float)
    expected = np.stack([inverted[0], inverted[1] * 2 - 10, inverted[2] * 0.5 + 7])
    np.testing.assert_array_equal(load_image(dark), expected[None])


def test_a_rescale_of_some_frames_alone_is_refused(tmp_path):
    _, path = enhanced(tmp_path / "a.dcm", PerFrameFunctionalGroupsSequence=groups((1, 0), (2, 0)))
    with pytest.raises(DataError, match=r"a\.dcm: expected a PixelValueTransformationSequence .* 3 frames .*, got 2\."):
        load_image(path)


def test_a_table_of_intensities_is_refused(tmp_path):
    path = dicom(tmp_path / "a.dcm", ModalityLUTSequence=[pydicom.Dataset()])
    with pytest.raises(
        DataError, match=r"a\.dcm: expected intensities .*, got a table of them \(ModalityLUTSequence\)"
    ):
        load_image(path)


def test_an_empty_slope_or_intercept_is_none_at_all(tmp_path):
    """MONAI multiplied by None: a TypeError, and a traceback."""
    path = dicom(tmp_path / "a.dcm", RescaleSlope="", RescaleIntercept=-10)
    np.testing.assert_array_equal(load_image(path), stored(0)[None] - 10.0)
    np.testing.assert_array_equal(
        load_image(dicom(tmp_path / "b.dcm", RescaleSlope="", RescaleIntercept="")), stored(0)[None]
    )


def test_a_slope_of_two_numbers_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a finite number in RescaleSlope, got \[1\.?0?, 2\.?0?\]"):
        load_image(dicom(tmp_path / "a.dcm", RescaleSlope=[1, 2]))


@pytest.mark.parametrize("tag", ["Rows", "BitsAllocated", "PixelRepresentation"])
def test_an_empty_tag_of_the_size_is_one_line(tmp_path, tag):
    path = tmp_path / "a.dcm"
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    setattr(dataset, tag, None)
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"^a\.dcm: expected a readable DICOM file, got \d+ bytes") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)
