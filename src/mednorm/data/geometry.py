"""Where the voxels of an image lie in the patient, read from headers alone, and one input read with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednorm.data import pixels, readers
from mednorm.errors import DataError

if TYPE_CHECKING:
    from mednorm.data.images import ImageSet, Item

    Array = np.ndarray[Any, np.dtype[Any]]
    Float = np.ndarray[Any, np.dtype[np.float32]]
    Affine = np.ndarray[Any, np.dtype[np.float64]]

TOLERANCE = 1e-3  # of the entries of two affines that are one: what headers round, in mm
_SPACING = 0.01  # relative
_MM = {1: 1e3, 3: 1e-3}  # metres and micrometres in NIfTI, whose code 2 is mm; the bits above are of time


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The grid of an image in the patient: ``position = affine @ (i, j, k, 1)``.

    Attributes:
        affine: float64 ``(4, 4)``, from the indices of a voxel, in the order of the axes of its array, to mm towards
            right, anterior, superior. A slice of two axes has k = 0; its third column is the normal, as long as the
            slice is thick.
        shape: voxels along each spatial axis, two or three.

    Example:
        >>> scan = Geometry(np.diag([-1.0, -1.0, 2.5, 1.0]), (256, 256, 40))
        >>> scan.spacing, scan.orientation
        ((1.0, 1.0, 2.5), 'LPS')
    """

    affine: Affine
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each spatial axis, in mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0))

    @property
    def orientation(self) -> str:
        """For each spatial axis the letter of where it leads: L or R, P or A, I or S."""
        from nibabel.orientations import aff2axcodes

        axes: tuple[str, ...] = aff2axcodes(self.affine)  # type: ignore[no-untyped-call]
        return "".join(axes[: len(self.shape)])

    def close_to(self, other: Geometry, tolerance: float = TOLERANCE) -> bool:
        """Say whether two grids are one: the same shape, and affines no entry of which differs by more."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, rtol=0, atol=tolerance)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image with its place in the patient.

    Attributes:
        pixels: float32 ``(C, *spatial)``, raw intensities in the units of the file.
        geometry: where its voxels lie; None where the file does not say.
        format: ``"PNG"``, ``"JPEG"``, ``"BMP"``, ``"TIFF"``, ``"NIfTI"``, ``"DICOM"`` or ``"DICOM series"``.
        spacing: mm between neighbours along each spatial axis; None where the file does not say.
    """

    pixels: Float
    geometry: Geometry | None
    format: str
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.geometry is not None:
            object.__setattr__(self, "spacing", self.geometry.spacing)


def read_image(path: str | Path) -> Image:
    """Read one image: a file, as `load_image` does, or a folder that holds a DICOM series, as `read_series` does.

    The affine follows the axes of the pixels: as stored for NIfTI, (row, column) for a DICOM file, (row, column, slice)
    for a series. There is none for PNG, JPEG, BMP and TIFF, for a DICOM file that lacks ImagePositionPatient,
    ImageOrientationPatient, PixelSpacing or both SliceThickness and SpacingBetweenSlices, nor for one of several
    frames, whose third axis may be time; nor for a NIfTI whose sform_code and qform_code are 0, which has a spacing
    alone. A NIfTI in metres or micrometres is converted to mm.

    Raises:
        DataError: whatever `load_image` and `read_series` raise; an affine that maps a volume onto a plane.
        MissingExtraError: the packages that read images are not installed.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = read_image(get_testdata_file("CT_small.dcm"))
        >>> image.pixels.shape, image.geometry.orientation, image.geometry.spacing
        ((1, 128, 128), 'PL', (0.661468, 0.661468))
    """
    path = Path(path)
    if path.is_dir():
        from mednorm.data.series import read_series  # here, as it builds on this module

        return read_series(path)
    loaded = pixels.load_image(path)
    geometry = geometry_at(path, path.name)
    return Image(loaded, geometry, readers.format_of(path) or "", spacing_at(path, path.name))


def geometry_at(path: Path, where: str) -> Geometry | None:
    """Read where the voxels of a file, or of a folder that holds a DICOM series, lie; headers alone are read.

    Raises:
        DataError: an unreadable header, an affine that maps a volume onto a plane, or a folder that is no series.
    """
    from mednorm.data import series  # here, as it builds on this module

    if path.is_dir():
        return series.in_order(path, where)[1]
    match readers.format_of(path):
        case "NIfTI":
            return pixels.opened(path, where, _of_nifti)
        case "DICOM":
            return pixels.opened(path, where, series.of_file)
        case _:
            return None


def spacing_at(path: Path, where: str) -> tuple[float, ...] | None:
    """Read mm between the voxels of a NIfTI, which may say that without saying where they lie; None for others."""
    if path.is_dir() or readers.format_of(path) != "NIfTI":
        return None
    return pixels.opened(path, where, _spacing_of_nifti)


def geometry_of(item: Item) -> Geometry | None:
    """Read where the voxels of an image of a set lie, from the headers of its files; None where they do not say.

    Raises:
        DataError: whatever `geometry_at` raises; several files that lie differently.
    """
    if isinstance(item.image, np.ndarray):
        return None
    if isinstance(item.image, Path):
        return geometry_at(item.image, item.where)
    found = [(path, geometry_at(path, f"{item.where}, {path.name}")) for path in item.image]
    known = [(path, geometry) for path, geometry in found if geometry is not None]
    for path, geometry in known[1:]:
        if not geometry.close_to(known[0][1]):
            raise DataError(
                f"{item.where}: expected files of one grid (size, and affine within {TOLERANCE:g}), got "
                f"{said(known[0][1])} in {known[0][0].name} and {said(geometry)} in {path.name}. "
                "Resample them to one grid."
            )
    return known[0][1] if known else None


def check_uniform(images: ImageSet) -> tuple[tuple[float, ...], str] | None:
    """Check that the volumes of a set have one orientation and one spacing; headers alone are read.

    A network sees voxels, not millimetres: mixed spacing or orientation is a difference it was not told of. Slices
    of two axes are passed over.

    Returns:
        Their spacing in mm and their orientation; None where no file says (and for slices).

    Raises:
        DataError: two volumes differ in orientation, or in spacing by more than 1 %; one says where it lies and another
            does not.
    """
    first: tuple[Item, Geometry | None] | None = None
    for item, geometry in _volumes(images):
        first = first or (item, geometry)
        reference = first[1]
        if (geometry is None) != (reference is None):
            known, unknown = (first[0], item) if geometry is None else (item, first[0])
            raise DataError(
                f"{images.source}: expected a spacing for every volume or for none, got one for {known.where} and none "
                f"for {unknown.where}. Save all as NIfTI with their affine."
            )
        if geometry is None or reference is None:
            continue
        if geometry.orientation != reference.orientation:
            raise DataError(
                f"{images.source}: expected volumes of one orientation, got mixed orientation: {reference.orientation} "
                f"in {first[0].where} and {geometry.orientation} in {item.where}. Save them with their axes in one "
                "order, such as by nibabel.as_closest_canonical."
            )
        if not np.allclose(geometry.spacing, reference.spacing, rtol=_SPACING, atol=0):
            raise DataError(
                f"{images.source}: expected volumes of one spacing (within {_SPACING:.0%}), got mixed spacing: "
                f"{_mm(reference)} in {first[0].where} and {_mm(geometry)} in {item.where}. Resample them to one."
            )
    return None if first is None or first[1] is None else (first[1].spacing, first[1].orientation)


def checked_affine(affine: Affine) -> Affine:
    """Return an affine itself.

    Raises:
        Refused: it holds NaN or inf, or its axes do not span space.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise readers.Refused(f"expected an affine that spans space, got {_rows(affine)}. Correct the header.")
    return affine


def said(geometry: Geometry) -> str:
    """Say a grid in one line."""
    return f"{'×'.join(map(str, geometry.shape))} with {_rows(geometry.affine)}"


def _rows(affine: Affine) -> str:
    return "[" + "; ".join(" ".join(f"{entry:.7g}" for entry in row) for row in affine[:3] + 0.0) + "]"


def _mm(geometry: Geometry) -> str:
    return "×".join(f"{length:g}" for length in geometry.spacing) + " mm"


def _volumes(images: ImageSet) -> Iterator[tuple[Item, Geometry | None]]:
    """Give the images of a set that may be volumes: files of volumes, and those that do not say."""
    for item in images.items:
        geometry = geometry_of(item)
        if geometry is None or len(geometry.shape) == 3:
            yield item, geometry


def _of_nifti(path: Path) -> Geometry | None:
    import nibabel

    image: Any = nibabel.load(path)
    header = image.header
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None
    affine = np.array(image.affine, dtype=np.float64)
    if len(image.shape) == 2 and not affine[:3, 2].any():  # only the plane is said
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1) * (header["pixdim"][3] or 1)
    affine[:3] *= _mm_of(header)
    return Geometry(checked_affine(affine), image.shape[:3])


def _spacing_of_nifti(path: Path) -> tuple[float, ...] | None:
    import nibabel

    image: Any = nibabel.load(path)
    lengths = np.array(image.header.get_zooms()[:3], dtype=np.float64) * _mm_of(image.header)
    return tuple(map(float, lengths)) if np.isfinite(lengths).all() and (lengths > 0).all() else None


def _mm_of(header: Any) -> float:
    return _MM.get(int(header["xyzt_units"]) % 8, 1.0)
