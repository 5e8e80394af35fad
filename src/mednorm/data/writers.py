"""Write a mask of class numbers on the grid of the image that it was made from."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednorm.data.geometry import Image
from mednorm.errors import DataError
from mednorm.files import write_atomically

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

_MOST = 255  # classes: the numbers 0…254. A picture of 0 and 255 alone is read as 0 and 1.
_SCANNER, _ALIGNED = 1, 2  # NIfTI's codes of what an affine leads to


def write_mask(
    mask: Array, like: Image, path_stem: str | Path, *, classes: int | None = None, overwrite: bool = False
) -> Path:
    """Write a mask beside nothing else, whole or not at all, so that it lies on its image in any viewer.

    Where the image says where it lies, for every NIfTI and every volume, as 8-bit NIfTI of the image's shape, with its
    affine as sform and (unless it is sheared, which a qform cannot say) qform, in mm. A DICOM slice becomes a volume of
    one slice. What has no place, such as a NIfTI with both codes 0, gets both codes 0, and the spacing where that is
    known. Any other image gives an 8-bit PNG of its size, whose greys are the class numbers; of two classes 0 and 255,
    which `load_mask` reads as 0 and 1.

    Args:
        mask: whole numbers from 0, ``(*spatial)``, of the size of the image.
        like: the image, as `read_image` gave it.
        path_stem: where to write, without the suffix, which follows from the image.
        classes: how many classes there are, background counted; the largest number in the mask decides where None.
        overwrite: True to replace a file that is there.

    Returns:
        The path of the file, ending in .nii.gz or .png.

    Raises:
        DataError: a mask of another size, of other than whole numbers, of a number outside the classes; more than 255
            classes; a file that is there.
        RunError: the folder cannot be made.

    Example:
        >>> import tempfile
        >>> like = Image(np.zeros((3, 2, 2), np.float32), None, "PNG")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_mask(np.array([[0, 1], [1, 0]]), like, Path(folder, "ventricle")).name
        'ventricle.png'
    """
    stem = Path(path_stem)
    array = _checked(mask, like, stem.name, classes)
    volume = like.geometry is not None or like.format == "NIfTI" or array.ndim == 3
    path = stem.with_name(stem.name + (".nii.gz" if volume else ".png"))
    if path.exists() and not overwrite:
        raise DataError(f"{path}: expected no file there, got one. Choose another name, or pass overwrite=True.")
    binary = (int(array.max(initial=0)) + 1 if classes is None else classes) <= 2
    write_atomically(path, nifti(array, like) if volume else _png(array * np.uint8(255) if binary else array))
    return path


def _checked(mask: Array, like: Image, name: str, classes: int | None) -> Array:
    """Return a mask as 8-bit numbers."""
    size = like.pixels.shape[1:]
    if mask.shape != size:
        raise DataError(f"{name}: expected a mask of the size of its image, {size}, got {mask.shape}. Resample it.")
    if mask.dtype.kind not in "biu":
        raise DataError(f"{name}: expected whole numbers, got {mask.dtype}. Take the class of the largest score.")
    if classes is not None and not 2 <= classes <= _MOST:
        raise DataError(f"{name}: expected from 2 to {_MOST} classes, got {classes}.")
    lowest, highest, most = int(mask.min(initial=0)), int(mask.max(initial=0)), classes or _MOST
    if lowest < 0 or highest >= most:
        got = lowest if lowest < 0 else highest
        raise DataError(f"{name}: expected class numbers from 0 to {most - 1}, got {got}. 8 bits hold {_MOST} classes.")
    return mask.astype(np.uint8)


def nifti(array: Array, like: Image) -> bytes:
    """Lay an array out as a compressed NIfTI file with the place of an image, its type kept."""
    import nibabel

    if array.ndim == 2 and like.format != "NIfTI":
        array = array[..., None]
    affine = None if like.geometry is None else like.geometry.affine
    image: Any = nibabel.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    if affine is None and like.spacing is not None:
        image.header.set_zooms([*like.spacing, 1.0][: array.ndim])
        image.header.set_xyzt_units("mm")
    elif affine is not None:
        code = _ALIGNED if like.format == "NIfTI" else _SCANNER
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code)
        if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-3):
            image.set_qform(None)  # sheared: better none than one that other programs believe
        image.set_sform(affine, code)
    return gzip.compress(image.to_bytes(), mtime=0)


def _png(array: Array) -> bytes:
    from PIL import Image as Picture

    content = io.BytesIO()
    Picture.fromarray(array).save(content, "PNG")
    return content.getvalue()
