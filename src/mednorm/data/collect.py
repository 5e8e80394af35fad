"""Write a manifest of images that lie in one folder a patient."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from mednorm.data.manifest import SEPARATOR
from mednorm.errors import DataError
from mednorm.files import write_atomically


def manifest_of_folders(root: str | Path, images: Sequence[str], mask: str | None, out: str | Path) -> int:
    """Write a row a patient: the files that patterns find in each folder, and the folder's name as the patient.

    Several patterns make several channels, in their order. Paths are written relative to the manifest where the files
    lie below its folder, else absolute. Hidden folders, and files beside the folders, are passed over. Columns such as
    ``label``, ``site`` and ``split`` can be added to what is written.

    Args:
        root: folder whose direct folders are one patient each.
        images: patterns such as ``"Flair*.nii.gz"``, each of which fits one file (or folder of a DICOM series) in
            every patient's folder.
        mask: pattern of the mask; None to write no column ``mask``.
        out: the manifest, which must not be there; ends in .csv.

    Returns:
        How many patients were found.

    Raises:
        DataError: no such folder, no folder in it, a pattern that fits no file or several, one file for two patterns,
            or `out` is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for patient in ("p1", "p2"):
        ...         os.mkdir(f"{root}/{patient}")
        ...         for name in ("flair.nii.gz", "t1.nii.gz", "tumour.nii.gz"):
        ...             Path(root, patient, name).touch()
        ...     count = manifest_of_folders(root, ["flair*", "t1*"], "tumour*", f"{root}/manifest.csv")
        ...     print(Path(root, "manifest.csv").read_text().splitlines()[1])
        p1/flair.nii.gz;p1/t1.nii.gz,p1/tumour.nii.gz,p1
    """
    root, out = Path(root), Path(out)
    if isinstance(images, str) or not images:
        raise DataError(f"{root}: expected at least one pattern for the images in a list, got {images!r}.")
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out}: expected the manifest to end in .csv, got {out.name!r}.")
    if out.exists():
        raise DataError(f"{out}: expected no file there, got one. Choose another name, or remove it.")
    rows = []
    for folder in _folders(root):
        found = [_match(folder, pattern) for pattern in (*images, *([mask] if mask else []))]
        twice = [path for path in found if found.count(path) > 1]
        if twice:
            raise DataError(f"{folder}: expected another file for every pattern, got {twice[0].name} for two of them.")
        cells = [_cell(path, out.parent) for path in found]
        image, masks = SEPARATOR.join(cells[: len(images)]), cells[len(images) :]
        rows.append([image, *masks, folder.name])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(["mask"] if mask else []), "patient"])
    writer.writerows(rows)
    write_atomically(out, text.getvalue())
    return len(rows)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        got = "a file" if root.is_file() else "nothing"
        raise DataError(f"{root}: expected a folder holding one folder a patient, got {got} there. Correct the path.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: expected a folder holding one folder a patient, got no folder in it.")
    return folders


def _match(folder: Path, pattern: str) -> Path:
    try:
        matches = sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:  # empty, or absolute
        raise DataError(f"{folder}: expected a pattern such as 'Flair*.nii.gz', got {pattern!r} ({error}).") from None
    if len(matches) != 1:
        names = ", ".join(str(match.relative_to(folder)) for match in matches[:5])
        got = f"{len(matches)} ({names}{', …' if len(matches) > 5 else ''})" if matches else "none"
        raise DataError(
            f"{folder}: expected one file for pattern {pattern!r}, got {got}. "
            "Make the pattern fit one file in every folder, or move the folder away."
        )
    return matches[0]


def _cell(path: Path, base: Path) -> str:
    """Write a path as a manifest wants it: relative only where it, and what it links to, lies below the manifest."""
    here, start = Path(os.path.abspath(path)), Path(os.path.abspath(base))
    inside = here.is_relative_to(start) and here.resolve().is_relative_to(start.resolve())
    cell = here.relative_to(start).as_posix() if inside else str(here)
    if SEPARATOR in cell:
        raise DataError(f"{path}: expected a path without {SEPARATOR!r}, which stands between files. Rename it.")
    return cell
