"""Bring a mask to the axes of its image where both say that they are one grid, or say why they are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednorm.data import readers
from mednorm.data.geometry import TOLERANCE, Geometry, geometry_at, geometry_of, said
from mednorm.errors import DataError

if TYPE_CHECKING:
    from mednorm.data.images import Item

    Int = np.ndarray[Any, np.dtype[np.int64]]


def on_image(mask: Int, item: Item, size: tuple[int, ...]) -> Int:
    """Return the mask of an item on the grid of its image.

    Programs save one grid in several orders: dcm2niix and ITK swap the rows and columns of DICOM and turn axes round. A
    mask whose affine leads its voxels to those of the image is reordered, no value changed. Without an affine the axes
    must be of one kind: those of a picture or a DICOM are (row, column), those of a NIfTI (x, y).

    Args:
        mask: class numbers, as stored.
        item: whose mask it is; its files are asked where they lie.
        size: voxels of the image along each spatial axis.

    Raises:
        DataError: a mask of another size or place, or of axes that cannot be told from those of the image.
    """
    image = geometry_of(item) if isinstance(item.mask, Path) else None
    place = geometry_at(item.mask, f"mask of {item.where}") if isinstance(item.mask, Path) else None
    if image is not None and place is not None:
        found = _reordered(mask, place, image)
        if found is not None:
            return found
    else:
        _check_axes(item)
    if len(size) == 2 and mask.ndim == 3 and mask.shape[2] == 1 and (image is None or place is None):
        mask = mask[..., 0]
    if mask.shape != size:
        raise DataError(
            f"{item.where}: expected a mask of the size of its image, {size}, got {mask.shape}. "
            "Draw or resample the mask on the grid of the image."
        )
    if image is not None and place is not None:
        raise DataError(
            f"{item.where}: expected a mask with the affine of its image (within {TOLERANCE:g}, in any order of the "
            f"axes), got {said(image)} in the image and {said(place)} in the mask. Resample the mask on the image's "
            "grid, or correct its header."
        )
    return mask


def _reordered(mask: Int, place: Geometry, image: Geometry) -> Int | None:
    """Return a mask in the order of the axes of its image; None where they are not one grid."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    volume = mask[..., None] if mask.ndim == 2 else mask
    size = (*image.shape, 1)[:3]
    ways: Any = io_orientation(np.linalg.inv(image.affine) @ place.affine)  # type: ignore[no-untyped-call]
    turned: Int = np.ascontiguousarray(apply_orientation(volume, ways))  # type: ignore[no-untyped-call]
    affine = place.affine @ inv_ornt_aff(ways, volume.shape)  # type: ignore[no-untyped-call]
    columns = [0, 1, 3] if len(image.shape) == 2 else [0, 1, 2, 3]  # a slice may be as thick as it likes
    if turned.shape != size or not np.allclose(affine[:, columns], image.affine[:, columns], rtol=0, atol=TOLERANCE):
        return None
    return turned.reshape(image.shape)


def _check_axes(item: Item) -> None:
    """Pass if the files of an image and its mask have axes of one kind, or either is no file."""
    first = item.image[0] if isinstance(item.image, tuple) else item.image
    if not isinstance(first, Path) or not isinstance(item.mask, Path):
        return
    image = "DICOM series" if first.is_dir() else readers.format_of(first)
    mask = readers.format_of(item.mask)
    if (image == "NIfTI") != (mask == "NIfTI"):
        axes = {True: "(x, y, …)", False: "(row, column, …)"}
        do = "Save the mask as NIfTI" if image == "NIfTI" else "Save the mask as PNG"
        raise DataError(
            f"{item.where}: expected a mask with the axes of its image, got axes that differ: {axes[mask == 'NIfTI']} "
            f"of a {mask} for {axes[image == 'NIfTI']} of a {image}, not both saying where they lie. {do}, or on "
            "the image's own grid with its affine."
        )
