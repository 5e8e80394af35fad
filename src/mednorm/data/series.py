"""Read a folder of DICOM slices as one volume, or say why it is none.

MONAI's reader of series sorts by InstanceNumber, skips slices that lack it, only warns where pixel spacings differ, and
takes the mean of uneven gaps along z. A volume made so is silently wrong, so the slices are checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednorm.data import pixels, readers
from mednorm.data.geometry import Geometry, Image, checked_affine
from mednorm.errors import DataError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]
    Vector = np.ndarray[Any, np.dtype[np.float64]]

_RELATIVE, _MM = 0.01, 0.01  # what gaps may differ by: the larger of a share of the gap and a length


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """What a header says of one slice; None for what it leaves out. Millimetres, to the left, posterior, superior."""

    name: str
    series: str
    size: tuple[int, int]
    frames: int
    channels: int
    position: Vector | None  # of the first voxel
    directions: Vector | None  # (2, 3): along a row, down a column
    spacing: Vector | None  # between rows, between columns
    thickness: float | None

    def normal(self) -> Vector:
        assert self.directions is not None
        return np.cross(self.directions[0], self.directions[1])

    def geometry(self, step: Vector, count: int | None) -> Geometry:
        """Place the indices (row, column, slice): a step of row goes down a column, one of column along a row."""
        assert self.position is not None
        assert self.directions is not None
        assert self.spacing is not None
        lps = np.eye(4)
        lps[:3, 0] = self.directions[1] * self.spacing[0]
        lps[:3, 1] = self.directions[0] * self.spacing[1]
        lps[:3, 2] = step
        lps[:3, 3] = self.position
        ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps + 0.0
        return Geometry(checked_affine(ras), self.size if count is None else (*self.size, count))


def read_series(folder: str | Path) -> Image:
    """Read a DICOM series as a volume, in the order of its positions.

    Every file of the folder must be a slice of it; hidden files and a DICOMDIR are passed over. Slices are sorted along
    the slice normal, whatever their names and instance numbers; each has its own rescale slope and intercept applied.
    Where the gantry was tilted, slices shift as they advance; the affine then says so by a third axis that is not the
    normal.

    Returns:
        pixels float32 ``(1, rows, columns, slices)``, each slice as `load_image` gives it; the geometry likewise.

    Raises:
        DataError: an empty folder; a file that is no DICOM image of one grey frame or lacks its position; two series,
            sizes, orientations or pixel spacings; two slices in one place; gaps that differ by more than 1 % and
            0.01 mm. The files are named.
        MissingExtraError: the packages that read images are not installed.
    """
    folder = Path(folder)
    where = folder.name or str(folder)
    paths, geometry = in_order(folder, where)
    return Image(pixels.as_float(stacked(paths, where), where), geometry, "DICOM series")


def in_order(folder: Path, where: str) -> tuple[list[Path], Geometry]:
    """Check the slices of a folder by their headers, and sort them; see `read_series`."""
    paths = _files(folder, where)
    slices = [_complete(_open(path, where), where) for path in paths]
    for one in slices[1:]:
        _alike(slices[0], one, where)
    places = np.array([one.position for one in slices])
    heights = places @ slices[0].normal()
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    slices, places, heights = [slices[index] for index in order], places[order], heights[order]
    step = _step(slices, places, heights, where)
    try:
        geometry = slices[0].geometry(step, len(slices))
    except readers.Refused as refused:
        raise DataError(f"{where}: {refused}") from None
    return [paths[index] for index in order], geometry


def stacked(paths: Sequence[Path], where: str) -> Array:
    """Read slices ``(1, rows, columns)``, as DICOM whatever their suffix, and stack them along a last axis."""
    arrays = [pixels.opened(path, f"{where}, {path.name}", readers.dicom, "DICOM") for path in paths]
    return np.stack(arrays, axis=-1)


def of_file(path: Path) -> Geometry | None:
    """Say where the voxels of one DICOM slice lie; None where the header does not say, or has several frames.

    Raises:
        Refused: the header holds what cannot be.
    """
    one = _slice(path)
    known = (one.position, one.directions, one.spacing, one.thickness)
    if one.frames != 1 or one.thickness is None or any(value is None for value in known):
        return None
    return one.geometry(one.normal() * one.thickness, None)


def listed(folder: Path) -> list[Path]:
    """List what must be the slices of a series: all but hidden files and a DICOMDIR."""
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and path.name.upper() != "DICOMDIR"
    )


def _files(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        got = "a file" if folder.is_file() else "nothing"
        raise DataError(f"{where}: expected a folder holding a DICOM series, got {got} at {folder}. Correct the path.")
    paths = listed(folder)
    if not paths:
        raise DataError(f"{where}: expected a folder holding a DICOM series, got an empty one at {folder}.")
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{where}: expected the slices of one DICOM series, got a folder {path.name!r} among them. "
                "Give the folder that holds the slices alone."
            )
    return paths


def _open(path: Path, where: str) -> _Slice:
    return pixels.opened(path, f"{where}, {path.name}", _slice, "DICOM")


def _slice(path: Path) -> _Slice:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    if not header.get("Rows") or not header.get("Columns"):
        kind = getattr(header.get("SOPClassUID"), "name", "one without rows and columns")
        raise readers.Refused(f"expected a DICOM image, got {kind}. Take the file out of the folder.")

    def numbers(name: str, count: int) -> Vector | None:
        value = header.get(name)
        if value is None or (isinstance(value, str) and not value):
            return None
        found = np.atleast_1d(np.array(value, dtype=np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise readers.Refused(f"expected {count} finite numbers in {name}, got {value}. Export it again.")
        return found

    directions, spacing = numbers("ImageOrientationPatient", 6), numbers("PixelSpacing", 2)
    if directions is not None:
        directions = directions.reshape(2, 3)
        if not np.allclose(directions @ directions.T, np.eye(2), rtol=0, atol=1e-3):
            raise readers.Refused(
                "expected ImageOrientationPatient to hold two perpendicular directions of length 1, "
                f"got {header.ImageOrientationPatient}. Export it again."
            )
    if spacing is not None and not (spacing > 0).all():
        raise readers.Refused(f"expected PixelSpacing above 0, got {header.PixelSpacing}. Export it again.")
    thicknesses = [numbers(name, 1) for name in ("SliceThickness", "SpacingBetweenSlices")]
    thickness = next((abs(float(found[0])) for found in thicknesses if found is not None and found[0] != 0), None)
    return _Slice(
        path.name,
        str(header.get("SeriesInstanceUID") or ""),
        (int(header.Rows), int(header.Columns)),
        int(header.get("NumberOfFrames") or 1),
        int(header.get("SamplesPerPixel") or 1),
        numbers("ImagePositionPatient", 3),
        directions,
        spacing,
        thickness,
    )


def _complete(one: _Slice, where: str) -> _Slice:
    """Return a slice itself, if it can be one of a volume."""
    if one.frames != 1:
        raise DataError(
            f"{where}: expected a slice a file, got {one.frames} frames in {one.name}. Read that file by itself."
        )
    if one.channels != 1:
        raise DataError(f"{where}: expected grey slices, got {one.channels} colours in {one.name}. Take it out.")
    tags = {
        "ImagePositionPatient": one.position,
        "ImageOrientationPatient": one.directions,
        "PixelSpacing": one.spacing,
    }
    missing = [name for name, value in tags.items() if value is None]
    if missing:
        raise DataError(
            f"{where}: expected slices that say where they lie, got no {', '.join(missing)} in {one.name}. "
            "Export the series again, or convert it to NIfTI."
        )
    return one


def _alike(first: _Slice, one: _Slice, where: str) -> None:
    checks = (
        ("one series", "two", first.series == one.series, "series", "Put each into a folder of its own."),
        ("one size", "mixed size", first.size == one.size, "size", "Take out what is no slice of the volume."),
        (
            "one orientation",
            "mixed orientation",
            _near(first.directions, one.directions, absolute=1e-3),
            "directions",
            "Put each direction into a folder of its own.",
        ),
        (
            "one PixelSpacing",
            "mixed spacing",
            _near(first.spacing, one.spacing, relative=1e-3),
            "spacing",
            "Put each acquisition into a folder of its own.",
        ),
    )
    for expected, got, same, name, do in checks:
        if not same:
            here, there = (_said(getattr(each, name)) for each in (first, one))
            raise DataError(
                f"{where}: expected slices of {expected}, got {got}: {here} in {first.name} and {there} in {one.name}. "
                f"{do}"
            )


def _near(first: Vector | None, other: Vector | None, relative: float = 0.0, absolute: float = 0.0) -> bool:
    assert first is not None
    assert other is not None
    return np.allclose(first, other, rtol=relative, atol=absolute)


def _step(slices: Sequence[_Slice], places: Vector, heights: Vector, where: str) -> Vector:
    """Return the way from a slice to the next, the same for all."""
    if len(slices) == 1:
        if slices[0].thickness is None:
            raise DataError(
                f"{where}: expected at least 2 slices, or one with SliceThickness, got {slices[0].name} alone without."
            )
        return slices[0].normal() * slices[0].thickness
    gaps = np.diff(heights)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: a gap is never too small, but too large
    allowed = max(_RELATIVE * usual, _MM)
    same = int(gaps.argmin())
    if gaps[same] <= _MM:
        raise DataError(
            f"{where}: expected one slice a position, got {slices[same].name} and {slices[same + 1].name} both "
            f"at {heights[same]:g} mm along the slice normal. Keep one; give volumes of several times a folder each."
        )
    off = int(np.abs(gaps - usual).argmax())
    if abs(gaps[off] - usual) > allowed:
        times = round(gaps[off] / usual)
        lost = times > 1 and abs(gaps[off] - times * usual) <= times * allowed
        hint = f", {times} times as much: {times - 1} missing between them?" if lost else "."
        raise DataError(
            f"{where}: expected slices at one distance, got mixed spacing: {gaps[off]:g} mm from {slices[off].name} to "
            f"{slices[off + 1].name} where {usual:g} mm is usual{hint} Export the series again."
        )
    steps = np.diff(places, axis=0)
    step = (places[-1] - places[0]) / (len(slices) - 1)
    off = int(np.linalg.norm(steps - step, axis=1).argmax())
    if np.linalg.norm(steps[off] - step) > allowed:
        raise DataError(
            f"{where}: expected slices in one line, got a step of {_said(steps[off])} mm from {slices[off].name} to "
            f"{slices[off + 1].name} where {_said(step)} mm is usual. Export the series again."
        )
    return np.asarray(step)


def _said(value: object) -> str:
    if isinstance(value, np.ndarray):
        return "[" + ", ".join(f"{number:g}" for number in value.ravel()) + "]"
    return str(value or "none")
