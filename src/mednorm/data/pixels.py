"""Read one image or mask file through MONAI's readers; arrays come out channels first, rows before columns."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from torch import Tensor

from mednorm.data import readers
from mednorm.errors import DataError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]
    Float = np.ndarray[Any, np.dtype[np.float32]]
    Int = np.ndarray[Any, np.dtype[np.int64]]

Read = TypeVar("Read")

# What Pillow (SyntaxError for a broken PNG), nibabel and pydicom (AttributeError for a missing tag, LookupError or
# TypeError for an empty one, RuntimeError for a codec that is not installed) raise for content they cannot read;
# `readers.failures` adds the errors of their own.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    AttributeError,
    TypeError,
    LookupError,
    RuntimeError,
    zlib.error,
    struct.error,
)


def load_image(path: str | Path, *, where: str | None = None) -> Float:
    """Read an image in the intensities of its file: 8-bit stays 0…255, CT comes in Hounsfield units.

    PNG, JPEG, BMP and TIFF come as ``(C, H, W)``: one channel for grey, three for colour. A palette is looked up. An
    alpha channel is left out where it is opaque everywhere and an error elsewhere: what it hides has no agreed value.
    DICOM comes as ``(1, rows, columns)`` with rescale slope and intercept applied; several frames come as
    ``(1, frames, rows, columns)``, colours as RGB in three channels. MONOCHROME1, where larger is darker, is inverted
    over the range its bits hold, so that bright means dense as in all other files. NIfTI keeps its axes as stored; a
    fourth becomes the channels. A folder that holds a DICOM series is read by `read_image`.

    Args:
        path: a file ending in .png, .jpg, .jpeg, .bmp, .tif, .tiff, .dcm, .dicom, .nii or .nii.gz; one without a suffix
            is taken for DICOM.
        where: how messages call it; its name where None.

    Returns:
        float32 ``(C, *spatial)``, two or three spatial axes.

    Raises:
        DataError: missing, empty, unreadable, of an unknown suffix, of several pages, or holding NaN or inf.
        MissingExtraError: the packages that read images are not installed.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = load_image(get_testdata_file("CT_small.dcm"))
        >>> image.shape, float(image.min())
        ((1, 128, 128), -896.0)
    """
    path = Path(path)
    where = where or path.name
    return as_float(_numbers(opened(path, where, readers.image), where), where)


def load_mask(path: str | Path, *, where: str | None = None) -> Int:
    """Read a mask of class numbers.

    An 8-bit mask of the two values 0 and 255, or of one of them, is read as 0 and 1, for that is how painting programs
    save "yes"; every other value is kept. A palette image gives its indices, a 1-bit image 0 and 1, and a colour image
    whose channels are equal one of them.

    Args:
        path: a file as for `load_image`, but no JPEG, whose compression changes class numbers.
        where: how messages call it; its name where None.

    Returns:
        int64 ``(*spatial)``, no channel axis.

    Raises:
        DataError: as `load_image`; also channels that differ, values that are negative or no whole numbers.
        MissingExtraError: the packages that read images are not installed.
    """
    path = Path(path)
    return mask_of(path, where or path.name)


def image_of(image: Path | tuple[Path, ...] | Array, where: str) -> Array:
    """Return an image ``(C, *spatial)`` in the type in which it is stored.

    A folder is read as a DICOM series; of several files each is one channel, in their order.

    Raises:
        DataError: unreadable, or not of three or four axes; one of several files has more than one channel or another
            size than the first.
    """
    if isinstance(image, tuple):
        return _channels(image, where)
    if not isinstance(image, Path):
        return _numbers(image, where)
    if image.is_dir():
        from mednorm.data import series  # here, as it reads its slices by this module

        return series.stacked(series.in_order(image, where)[0], where)
    return _numbers(opened(image, where, readers.image), where)


def opened(path: Path, where: str, reader: Callable[[Path], Read], format: str | None = None) -> Read:
    """Call a reader of a file, turning what its libraries raise into one line that names the row.

    Raises:
        DataError: missing, empty, or whatever the reader raises, with the format that the suffix (or `format`) names.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file"
        raise DataError(f"{where}: expected an image file, got {got} at {path}. Correct the path.")
    if path.stat().st_size == 0:
        raise DataError(f"{where}: expected an image, got an empty file (0 bytes) at {path}. Copy it again.")
    failures: tuple[type[Exception], ...] = (*_UNREADABLE, *readers.failures())
    try:
        return reader(path)
    except readers.Refused as refused:
        raise DataError(f"{where}: {refused}") from None
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{where}: expected a readable {format or readers.format_of(path)} file, got {_content(path)} "
            f"({type(error).__name__}: {reason}). Copy or export it again."
        ) from None


def _channels(paths: Sequence[Path], where: str) -> Array:
    """Stack files of one channel each."""
    arrays: list[Array] = []
    for path in paths:
        array = image_of(path, f"{where}, {path.name}")
        if array.shape[0] != 1:
            raise DataError(
                f"{where}: expected one channel in each of {len(paths)} files, got {array.shape[0]} channels "
                f"of size {array.shape[1:]} in {path.name}. Save each channel as a file, or name this file alone."
            )
        if arrays and array.shape != arrays[0].shape:
            raise DataError(
                f"{where}: expected files of one size, got {arrays[0].shape[1:]} in {paths[0].name} and "
                f"{array.shape[1:]} in {path.name}. Resample them to one grid."
            )
        arrays.append(array)
    return np.concatenate(arrays)


def _numbers(array: Array, where: str) -> Array:
    if array.ndim not in (3, 4) or array.dtype.kind not in "buif" or 0 in array.shape:
        raise DataError(
            f"{where}: expected an image of numbers with one channel axis and 2 or 3 spatial axes, "
            f"got shape {array.shape} of {array.dtype}."
        )
    return array


def as_float(stored: Array, where: str) -> Float:
    """Copy an image as float32, in the same intensities.

    Raises:
        DataError: it holds NaN or inf, or a number too large for float32.
    """
    with np.errstate(over="ignore"):
        return cast("Float", finite(stored.astype(np.float32), where))


def mask_of(mask: Path | Array, where: str) -> Int:
    """Return a mask ``(*spatial)`` as int64; see `load_mask`."""
    where = f"mask of {where}"
    array = _one_channel(opened(mask, where, readers.mask), where) if isinstance(mask, Path) else mask
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}: expected whole numbers, got {array.dtype}.")
    if array.dtype == np.uint8 and array.max(initial=0) == 255 and not ((array != 0) & (array != 255)).any():
        array = array // 255
    whole = (np.rint(finite(array, where)) if array.dtype.kind == "f" else array).astype(np.int64)
    if array.dtype.kind == "f" and (off := np.abs(array - whole)).max(initial=0) > 1e-4:  # slope and intercept round
        raise DataError(
            f"{where}: expected whole numbers, got {array.flat[off.argmax()]:g}. Save class numbers, not shares."
        )
    if whole.min(initial=0) < 0:
        raise DataError(f"{where}: expected class numbers from 0, got {whole.min()}.")
    return whole


def finite(array: Array, where: str) -> Array:
    """Return the array itself.

    Raises:
        DataError: it holds NaN or inf.
    """
    if array.dtype.kind == "f" and (bad := np.count_nonzero(~np.isfinite(array))):
        raise DataError(
            f"{where}: expected finite numbers, got NaN or inf in {bad} of {array.size} voxels. "
            "Replace them in the file by the value of background."
        )
    return array


def resized(image: Tensor, target: Tensor, size: Sequence[int], where: str) -> tuple[Tensor, Tensor]:
    """Resample an image ``(C, *spatial)`` by areas where it shrinks, else linearly; its mask by nearest neighbour.

    Areas, because the smoothing that MONAI offers for linear shrinking takes what lies outside the image as 0, and so
    darkens a border of constant intensity by 8 % and more. A label stays as it is.

    Raises:
        DataError: `size` has not one positive number for each spatial axis.
    """
    if len(size) != image.dim() - 1 or min(size) < 1:
        raise DataError(
            f"{where}: expected size to hold {image.dim() - 1} positive numbers for an image of shape "
            f"{tuple(image.shape)}, got {tuple(size)}."
        )
    if tuple(size) == tuple(image.shape[1:]):
        return image, target
    shrinks = any(new < old for new, old in zip(size, image.shape[1:], strict=True))
    linear = "bilinear" if len(size) == 2 else "trilinear"
    image = readers.resample(image, size, "area" if shrinks else linear)
    if target.dim():
        target = readers.resample(target[None].double(), size, "nearest-exact")[0].long()
    return image, target


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"{path.stat().st_size} bytes that begin with {file.read(8)!r}"
    except OSError:
        return "one that cannot be opened"


def _one_channel(array: Array, where: str) -> Array:
    if (array != array[:1]).any():
        raise DataError(
            f"{where}: expected one channel of class numbers, got {array.shape[0]} channels that differ. "
            "Save class numbers, not colours."
        )
    return cast("Array", array[0])
