import re

import numpy as np
import pytest
from PIL import Image

from mednorm.errors import DataError
from mednorm.training.inputs import find_inputs
from tests.unit.data.dicoms import OBLIQUE, dicom, series
from tests.unit.training.runs import nifti


@pytest.fixture
def png(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "slice.PNG")
    return str(tmp_path / "slice.PNG")


def test_the_headers_say_the_size_of_every_format(png, tmp_path):
    scan = nifti(tmp_path / "scan.nii.gz", np.zeros((5, 6, 7), np.float32), np.eye(4))
    texts = [png, scan, str(dicom(tmp_path / "one.dcm")), str(series(tmp_path / "ct"))]
    assert [each.shape for each in find_inputs(texts)] == [(3, 4), (5, 6, 7), (4, 6), (4, 6, 4)]


def test_what_is_written_is_named_after_the_input_without_its_suffix(png, tmp_path):
    scan = nifti(tmp_path / "scan.v2.nii.gz", np.zeros((5, 6, 7), np.float32), np.eye(4))
    uid = dicom(tmp_path / "1.2.840.9")
    texts = [png, scan, str(uid), str(series(tmp_path / "ct.2024"))]
    assert [each.name for each in find_inputs(texts)] == ["slice", "scan.v2", "1.2.840.9", "ct.2024"]


def test_inputs_of_one_name_are_told_apart_by_their_folders(png, tmp_path):
    texts = [nifti(tmp_path / f"p{n}" / "flair.nii", np.zeros((5, 6, 7), np.float32), np.eye(4)) for n in (1, 2)]
    assert [each.name for each in find_inputs([*texts, png])] == ["p1-flair", "p2-flair", "slice"]


def test_inputs_that_even_their_folders_do_not_tell_apart_are_refused(tmp_path):
    texts = [nifti(tmp_path / n / "p" / "flair.nii", np.zeros((5, 6, 7), np.float32), np.eye(4)) for n in "ab"]
    with pytest.raises(DataError, match=f"{re.escape(texts[1])}: .* got 'p-flair', as for {re.escape(texts[0])}"):
        find_inputs(texts)


def test_files_joined_by_semicolons_are_channels_in_their_order(tmp_path):
    texts = [nifti(tmp_path / f"{n}.nii", np.full((5, 6, 7), n, np.float32), np.diag([1, 1, 2.5, 1])) for n in (3, 1)]
    (found,) = find_inputs([" ; ".join(texts)])
    image = found.read()
    assert (found.name, found.shape, image.format) == ("3", (5, 6, 7), "NIfTI")
    assert image.pixels[:, 0, 0, 0].tolist() == [3, 1]
    assert image.geometry.spacing == (1, 1, 2.5)


def test_a_path_that_holds_a_semicolon_is_taken_as_it_is(tmp_path):
    path = nifti(tmp_path / "a;b.nii", np.zeros((5, 6, 7), np.float32), np.eye(4))
    assert find_inputs([path])[0].name == "a;b"


def test_a_text_longer_than_a_name_may_be_is_split(tmp_path):
    """Joined, they are longer than a file's name may be, which once went through as an OSError."""
    places = [f"{letter * 100}.nii" for letter in "abc"]
    paths = [nifti(tmp_path / name, np.full((5, 6, 7), 1, np.float32), np.eye(4)) for name in places]
    (found,) = find_inputs([";".join(paths)])
    assert found.name == "a" * 100


def test_a_name_that_is_too_long_is_one_line(png):
    assert refused(f"{png};{'x' * 300}").endswith(
        f"expected a path, got '{'x' * 80}' (File name too long). Correct it."
    )


def test_what_is_written_is_named_after_the_link_and_not_what_it_leads_to(tmp_path):
    """git-annex keeps the content under its hash."""
    (tmp_path / "annex").mkdir()
    nifti(tmp_path / "annex" / "SHA256E-s1--4f2a.nii.gz", np.zeros((5, 6, 7), np.float32), np.eye(4))
    (tmp_path / "scan.nii.gz").symlink_to("annex/SHA256E-s1--4f2a.nii.gz")
    assert find_inputs([str(tmp_path / "scan.nii.gz")])[0].name == "scan"


def test_the_headers_of_a_nifti_without_a_place_say_its_size(tmp_path):
    path = nifti(tmp_path / "scan.nii.gz", np.zeros((5, 6, 7, 2), np.float32), None)
    assert find_inputs([path])[0].shape == (5, 6, 7)


def test_an_image_is_read_with_its_place(tmp_path):
    folder = series(tmp_path / "ct", orientation=OBLIQUE)
    image = find_inputs([str(folder)])[0].read()
    assert image.format == "DICOM series"
    assert image.pixels.shape == (1, *image.geometry.shape) == (1, 4, 6, 4)


def refused(*texts):
    with pytest.raises(DataError) as caught:
        find_inputs(texts)
    return str(caught.value)


def test_no_input_is_refused():
    assert refused() == "images: expected at least one, got none. Name a file, or the folder of a DICOM series."


def test_a_missing_file_is_named_with_its_path(png, tmp_path):
    assert f"got no file at {tmp_path / 'nowhere.nii'}." in refused(png, str(tmp_path / "nowhere.nii"))


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    assert "got an empty file (0 bytes)" in refused(str(tmp_path / "empty.nii.gz"))


def test_a_text_named_dcm_is_no_dicom(tmp_path):
    (tmp_path / "notes.dcm").write_text("not an image at all")
    assert "expected a readable DICOM file, got 19 bytes that begin with b'not an i'" in refused(
        str(tmp_path / "notes.dcm")
    )


def test_a_broken_png_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert "expected a readable PNG file, got 15 bytes" in refused(str(tmp_path / "broken.png"))


def test_an_unknown_suffix_is_named(tmp_path):
    (tmp_path / "scan.mha").write_text("ObjectType = Image")
    assert "got 'scan.mha'" in refused(str(tmp_path / "scan.mha"))


def test_a_series_with_mixed_spacing_is_refused_by_its_headers(tmp_path):
    folder = series(tmp_path / "ct", heights=(0, 2.5, 7.5, 10))
    assert "got mixed spacing: 5 mm" in refused(str(folder))


def test_one_image_twice_is_refused_however_it_is_written(png, tmp_path):
    again = f"{tmp_path}/../{tmp_path.name}/slice.PNG"
    assert refused(png, again) == f"{again}: expected every image once, got it again after {png}. Name it once."


@pytest.mark.parametrize(("text", "got"), [("a.nii;", "nothing beside one"), ("a.nii;a.nii", "'a.nii' twice")])
def test_a_channel_that_is_missing_or_doubled_is_refused(text, got):
    assert f"got {got}" in refused(text)


def test_channels_of_other_size_or_place_are_refused(tmp_path):
    first = nifti(tmp_path / "a.nii", np.zeros((5, 6, 7), np.float32), np.eye(4))
    moved = nifti(tmp_path / "b.nii", np.zeros((5, 6, 7), np.float32), np.diag([1, 1, 2.5, 1]))
    assert "expected files of one grid" in refused(f"{first};{moved}")
    assert "2.5" in refused(f"{first};{moved}")


def test_pictures_of_other_size_are_refused(png, tmp_path):
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "wide.png")
    assert "got (3, 4) in slice.PNG and (3, 5) in wide.png" in refused(f"{png};{tmp_path / 'wide.png'}")
