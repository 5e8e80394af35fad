import subprocess
import sys
from pathlib import Path

import pytest

from mednorm.data import load_image, readers
from mednorm.errors import MissingExtraError

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
