"""MONAI's readers, one small function a format; they raise what their libraries raise, or `Refused` with a sentence.

The readers are called themselves rather than through `monai.transforms.LoadImage`, which would only add a conversion
of types (16-bit images to int32) and, given a reader, hide which error it raised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mednorm.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Array = np.ndarray[Any, np.dtype[Any]]

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
}
SUFFIXES = tuple(_FORMATS)

# The photometric interpretations of DICOM that come as grey, and those that pydicom gives as RGB.
_GREY = ("MONOCHROME1", "MONOCHROME2")
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_RESCALE = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}  # and what an absent or empty tag means


class Refused(Exception):
    """A file that could be read, but not without guessing; the text says expected, got, what to do."""


def format_of(path: Path) -> str | None:
    """Name the format by the suffix; no suffix, or one of digits (as in a UID), means DICOM; None if unknown."""
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if not suffix or suffix[1:].isdigit():
        return "DICOM"
    return _FORMATS.get(suffix)


def image(path: Path) -> Array:
    """Read an image ``(C, *spatial)`` in its stored type."""
    return _by_format(path, _grey_or_colour)


def mask(path: Path) -> Array:
    """Read a mask ``(C, *spatial)`` in its stored type: a palette gives indices."""
    if format_of(path) == "JPEG":
        raise Refused(
            "expected a mask in a format without losses, got JPEG, which changes class numbers. Save it as PNG."
        )
    return _by_format(path, _class_numbers)


def failures() -> tuple[type[Exception], ...]:
    """Name the errors of Pillow, nibabel and pydicom that derive from Exception alone."""
    monai_data()
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from PIL.Image import DecompressionBombError
    from pydicom.errors import InvalidDicomError

    return ImageFileError, HeaderDataError, DecompressionBombError, InvalidDicomError


def resample(tensor: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Resample ``(C, *spatial)`` in one of MONAI's modes."""
    monai_data()
    from monai.transforms.spatial.array import Resize
    from monai.utils.type_conversion import convert_to_tensor

    return cast("Tensor", convert_to_tensor(Resize(tuple(size), mode=mode)(tensor), track_meta=False))


@cache
def monai_data() -> Any:
    """Import `monai.data`, which takes seconds, once and when needed.

    Raises:
        MissingExtraError: it or a library it reads with is missing.
    """
    try:
        import monai.data
        import nibabel
        import PIL
        import pydicom
    except ImportError as error:
        raise MissingExtraError(
            f"Reading images: expected the packages of mednorm[study], got no {error.name}. "
            "Install them: pip install 'mednorm[study]'."
        ) from None
    del nibabel, PIL, pydicom
    return monai.data


def _by_format(path: Path, converter: Callable[[Image], Image]) -> Array:
    match format_of(path):
        case "NIfTI":
            return _nifti(path)
        case "DICOM":
            return dicom(path)
        case None:
            raise Refused(
                f"expected a file ending in {', '.join(SUFFIXES)}, got {path.name!r}. Convert it to one of these."
            )
        case _:
            return _picture(path, converter)


def _picture(path: Path, converter: Callable[[Image], Image]) -> Array:
    reader = monai_data().PILReader(converter=converter, reverse_indexing=False)
    with path.open("rb") as file:  # given the path, Pillow would leave it open when it fails
        array, _ = reader.get_data(reader.read([file]))
    return cast("Array", array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))


def _grey_or_colour(picture: Image) -> Image:
    picture = _opaque(_one_page(picture))
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode == "P":
        colour = picture.convert("RGB")
        red, *others = colour.split()
        return red if all(red.tobytes() == other.tobytes() for other in others) else colour
    if picture.mode not in ("L", "RGB", "F") and not picture.mode.startswith("I"):
        raise Refused(f"expected grey or RGB, got colours stored as {picture.mode}. Convert it to RGB.")
    return picture


def _class_numbers(picture: Image) -> Image:
    picture = _one_page(picture)
    return picture if picture.mode == "P" else _opaque(picture)


def _one_page(picture: Image) -> Image:
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise Refused(f"expected one picture, got {pages} pages. Save a volume as NIfTI, or each page as a file.")
    return picture


def _opaque(picture: Image) -> Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    full = picture.convert("RGBA")
    if full.getchannel("A").getextrema() != (255, 255):
        raise Refused("expected an opaque picture, got a transparent one. Save it without an alpha channel.")
    bands = picture.getbands()
    if "A" in bands:
        return picture.convert("L" if bands == ("L", "A") else "RGB")
    return picture


def _nifti(path: Path) -> Array:
    reader = monai_data().NibabelReader()
    array, _ = reader.get_data(reader.read(path))
    if array.dtype.names or array.ndim not in (2, 3, 4):
        raise Refused(
            f"expected a NIfTI image of numbers with 2 or 3 spatial axes and at most one of channels, "
            f"got shape {array.shape} of {array.dtype}. Save it anew, one image a file."
        )
    return cast("Array", array[None] if array.ndim < 4 else np.moveaxis(array, -1, 0))


def dicom(path: Path) -> Array:
    """Read one DICOM file ``(C, *spatial)``, rescaled, whatever its suffix."""
    reader = monai_data().PydicomReader(swap_ij=False)
    dataset = reader.read(path)
    if "SegmentSequence" in dataset:
        raise Refused("expected a DICOM image, got a segmentation object. Export it as NIfTI or PNG.")
    if "ModalityLUTSequence" in dataset:
        raise Refused(
            "expected intensities by RescaleSlope and RescaleIntercept, got a table of them (ModalityLUTSequence). "
            "Convert it to NIfTI by a program that applies the table."
        )
    colours = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
    if colours not in _GREY + _RGB:
        raise Refused(f"expected grey or RGB, got colours stored as {colours}. Convert it to RGB.")
    rescales = _rescales(dataset)
    for name in _RESCALE:
        dataset.pop(name, None)  # applied below, for MONAI does not look into the groups of frames
    with warnings.catch_warnings():  # where the patient lay is not used here
        warnings.filterwarnings("ignore", "PydicomReader: ImageOrientationPatient", UserWarning)
        array, _ = reader.get_data(dataset)
    if colours == "MONOCHROME1":
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        array = np.float32(-1 if signed else 2**bits - 1) - array.astype(np.float32)
    if rescales is not None:
        slope, intercept = rescales.reshape(2, -1, *[1] * (array.ndim - 1) * (rescales.shape[1] > 1))
        array = array.astype(np.float32) * slope + intercept
    return cast("Array", np.moveaxis(array, -1, 0) if colours in _RGB else array[None])


def _rescales(dataset: Any) -> Array | None:
    """Return slopes and intercepts, float32 ``(2, 1)`` or ``(2, frames)``; None where the file says nothing.

    A file of several frames has them in the groups that its frames share, or in the group of each frame.
    """

    def groups(name: str) -> list[Any]:
        found = [group.get("PixelValueTransformationSequence") for group in dataset.get(name) or ()]
        return [transformation[0] for transformation in found if transformation]

    shared, each = groups("SharedFunctionalGroupsSequence"), groups("PerFrameFunctionalGroupsSequence")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not shared and each and len(each) != frames:
        raise Refused(
            f"expected a PixelValueTransformationSequence for each of {frames} frames or for all, got {len(each)}. "
            "Export it again."
        )
    holders = shared[:1] or each or [dataset]
    found = [[_number(holder, name) for holder in holders] for name in _RESCALE]
    if all(value is None for values in found for value in values):
        return None
    filled = [
        [default if value is None else value for value in values]
        for values, default in zip(found, _RESCALE.values(), strict=True)
    ]
    return np.array(filled, np.float32)


def _number(dataset: Any, name: str) -> float | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise Refused(f"expected a finite number in {name}, got {value}. Export it again.")
    return number
