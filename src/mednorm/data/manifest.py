"""Read a table of images, `manifest.csv`: one row an image, with its mask or label, patient, site and split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mednorm.data import readers, series
from mednorm.data.images import SPLITS, ImageSet, Item, Kind, Split, checked_classes
from mednorm.data.splits import check_patients, divide
from mednorm.errors import DataError

NAME = "manifest.csv"
SEPARATOR = ";"  # of the files of one image, one a channel


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    cells: Mapping[str, str]
    images: tuple[Path, ...]


def read_manifest(
    path: str | Path,
    *,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    divide: bool = True,
) -> ImageSet:
    """Read a comma-separated table, UTF-8 with or without BOM, whose first row names the columns.

    ===========  ==============================================================================================
    ``image``    file of the image; see `load_image` for formats. Or a folder that holds a DICOM series. Or several
                 files of one channel each, such as ``flair.nii.gz;t1c.nii.gz``, in one order in all rows
    ``mask``     file of its mask, for segmentation
    ``label``    name of its class, for classification
    ``patient``  who was imaged; all images of one patient must be in one split
    ``site``     hospital or scanner; may be empty
    ``split``    train, val or test; without this column, patients (or images) are divided 60 / 20 / 20 by `seed`
    others       kept as `Item.metadata`, as is the one of ``mask`` and ``label`` that `kind` does not use
    ===========  ==============================================================================================

    Every row names as many files as the others. Relative paths start at the folder of the manifest and must stay inside
    it, also through links; a path outside must be written absolute. Files are looked for, but not opened. Rows are
    numbered as in a spreadsheet: the names of the columns are row 1. Empty rows are passed over.

    Args:
        path: the table, or a folder holding a `manifest.csv`.
        kind: ``"segmentation"`` or ``"classification"``; where None, segmentation if there is a column ``mask``.
        classes: names of the classes. Where None, for classification the sorted distinct train labels (whole numbers by
            size), for segmentation counted in the train masks; see `ImageSet`.
        seed: of the division into splits, where there is no column ``split``.
        divide: False to take all images as test where there is no column ``split``.

    Raises:
        DataError: a table, column, cell or file that cannot be used; the message names the row and says what to do.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    columns, table = _table(path)
    kind = _kind(kind, columns, path.name)
    target = "mask" if kind == "segmentation" else "label"
    rows = _rows(table, target, path)
    splits = _splits(rows, columns, path, seed if divide else None)
    names, numbers = _labels(rows, splits, classes, path.name) if kind == "classification" else (classes, {})
    used = {"image", "patient", "site", "split", target}
    items = []
    for row, split in zip(rows, splits, strict=True):
        cells = row.cells
        items.append(
            Item(
                row.where,
                split,
                row.images if len(row.images) > 1 else row.images[0],
                mask=_file(cells["mask"], path, row.where) if target == "mask" else None,
                label=numbers[cells["label"]] if target == "label" else None,
                patient=cells.get("patient"),
                site=cells.get("site") or None,
                metadata={name: value for name, value in cells.items() if name not in used},
            )
        )
    check_patients(items)
    return ImageSet(str(path), kind, names, tuple(items), _note(columns, seed if divide else None))


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns, and the rows that are not empty with their numbers."""
    numbered = _lines(path)
    if not numbered or numbered[0][0] != 1:
        raise DataError(
            f"{path.name}: expected the names of the columns in row 1, got an empty row. Begin with `image,…`."
        )
    columns, table = numbered[0][1], numbered[1:]
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled or "" in columns:
        got = f"{doubled[0]!r} twice" if doubled else f"no name in column {columns.index('') + 1}"
        raise DataError(
            f"{path.name}: expected every column to have a name of its own, got {got}. Rename or remove one."
        )
    if "image" not in columns:
        raise DataError(f"{path.name}: expected a column `image`, got {', '.join(columns)}. Rename the column.")
    if not table:
        raise DataError(
            f"{path.name}: expected at least one row below the names of the columns, got none. Add the images."
        )
    for number, cells in table:
        if len(cells) != len(columns):
            raise DataError(
                f"{path.name} row {number}: expected {len(columns)} cells ({', '.join(columns)}), got {len(cells)}. "
                "Put cells with a comma in quotes."
            )
    return columns, [(number, dict(zip(columns, cells, strict=True))) for number, cells in table]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    if not path.is_file():
        what = f"a folder holding {NAME}" if path.name == NAME else "a manifest"
        raise DataError(f"{path.name}: expected {what}, got no file at {path}. Correct the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(
            f"{path.name}: expected comma-separated text in UTF-8, got {error}. Save it as CSV UTF-8."
        ) from None
    numbered = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(lines, start=1)]
    return [(number, cells) for number, cells in numbered if any(cells)]


def _kind(kind: Kind | None, columns: Sequence[str], name: str) -> Kind:
    if "mask" not in columns and "label" not in columns:
        raise DataError(f"{name}: expected a column `mask` or `label`, got {', '.join(columns)}. Add one of them.")
    if kind is None:
        return "segmentation" if "mask" in columns else "classification"
    needed = {"segmentation": "mask", "classification": "label"}.get(kind)
    if needed is None:
        raise DataError(f"{name}: expected kind to be 'segmentation' or 'classification', got {kind!r}.")
    if needed not in columns:
        raise DataError(f"{name}: expected a column `{needed}` for {kind}, got {', '.join(columns)}. Add it.")
    return kind


def _rows(table: Iterable[tuple[int, Mapping[str, str]]], target: str, path: Path) -> list[_Row]:
    """Check the cells that must be filled, find the images, and let none come twice."""
    rows: list[_Row] = []
    first: dict[Path, str] = {}
    for number, cells in table:
        where = f"{path.name} row {number} ({cells['image']})"
        for column in ("image", target, "patient"):
            if cells.get(column) == "":
                raise DataError(
                    f"{where}: expected a value in column `{column}`, got an empty cell. Fill it or remove the row."
                )
        images = _images(cells["image"], path, where)
        own: set[Path] = set()
        for image in images:
            slices = series.listed(image) if image.is_dir() else []
            for part in (image, *slices):
                real = part.resolve()
                same = first.setdefault(real, where)
                if same != where or real in own:
                    again = f"the image of {same}" if len(images) == 1 and part == image else f"{part.name} of {same}"
                    raise DataError(f"{where}: expected every image once, got {again} again. Remove one of the two.")
                own.add(real)
        if rows and len(images) != len(rows[0].images):
            raise DataError(
                f"{where}: expected {len(rows[0].images)} files in column `image` like {rows[0].where}, "
                f"got {len(images)} (wrong modality count). Name one file a channel, the same channels in all rows."
            )
        rows.append(_Row(where, cells, images))
    return rows


def _images(cell: str, manifest: Path, where: str) -> tuple[Path, ...]:
    """Find the files of one image, one a channel."""
    names = [name.strip() for name in cell.split(SEPARATOR)]
    if len(names) == 1:
        return (_file(cell, manifest, where, is_series=True),)
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"{where}: expected a file before and after every {SEPARATOR!r}, got nothing for file {number} of "
                f"{len(names)} (missing channel). Name the file."
            )
    return tuple(
        _file(name, manifest, f"{where}, channel {number} of {len(names)}", is_series=True)
        for number, name in enumerate(names, start=1)
    )


def _file(cell: str, manifest: Path, where: str, is_series: bool = False) -> Path:
    """Find a file, or the folder of a series, named in a cell.

    A relative path may not leave the manifest's folder, nor may a slice of a series that it names.
    """
    path = manifest.parent / cell
    home = manifest.parent.resolve()
    try:
        found = path.is_file()
        parts = [path, *(series.listed(path) if is_series and path.is_dir() else ())]
        outside = next((part.resolve() for part in parts if not part.resolve().is_relative_to(home)), None)
    except (OSError, RuntimeError, ValueError) as error:  # too long, a ring of links, a zero byte
        raise DataError(f"{where}: expected a path, got {cell[:80]!r} ({error}). Correct it.") from None
    if outside is not None and not Path(cell).is_absolute():
        raise DataError(
            f"{where}: expected a path inside the folder of {manifest.name}, got {cell!r}, "
            f"which leads to {outside}. Move the file inside, or write its absolute path."
        )
    if not found:
        if is_series and path.is_dir() and any(path.iterdir()):
            return path
        got = ("an empty folder" if is_series else "a folder") if path.is_dir() else "no file"
        raise DataError(f"{where}: expected a file, got {got} at {path}. Correct the path or remove the row.")
    if readers.format_of(path) is None:
        raise DataError(
            f"{where}: expected a file ending in {', '.join(readers.SUFFIXES)}, got {path.name!r}. "
            "Convert it to one of these."
        )
    return path


def _splits(rows: Sequence[_Row], columns: Sequence[str], path: Path, seed: int | None) -> list[Split]:
    if "split" in columns:
        for row in rows:
            if row.cells["split"] not in SPLITS:
                raise DataError(
                    f"{row.where}: expected train, val or test in column `split`, got {row.cells['split']!r}. "
                    "Correct it."
                )
        return [cast(Split, row.cells["split"]) for row in rows]
    if seed is None:
        return ["test"] * len(rows)
    units = [row.cells.get("patient") or row.cells["image"] for row in rows]
    drawn = divide(units, seed, path.name)
    return [drawn[unit] for unit in units]


def _note(columns: Sequence[str], seed: int | None) -> str:
    """Say what the manifest leaves open and a reader of results must know."""
    said = []
    if "split" not in columns and seed is not None:
        said.append(f"Divided into train, val and test by seed {seed}, as the manifest has no column split.")
    if "patient" not in columns:
        said.append("The manifest has no column patient: images of one patient may stand in several splits.")
    return " ".join(said)


def _labels(
    rows: Sequence[_Row], splits: Sequence[Split], classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes and the number of each; every label must be among them."""
    if classes is None:
        train = [row for row, split in zip(rows, splits, strict=True) if split == "train"]
        seen = {row.cells["label"] for row in train or rows}  # folds, and judging alone, need no train split
        whole = all(label.isdecimal() for label in seen)
        classes = sorted(seen, key=lambda label: (int(label), label) if whole else (0, label))
        source = "the labels in train"
    else:
        source = "the names given"
    names = checked_classes(classes, name)
    for row in rows:
        if row.cells["label"] not in names:
            raise DataError(
                f"{row.where}: expected a label among {source} ({', '.join(names)}), got {row.cells['label']!r}. "
                "Correct it, or pass the names of all classes."
            )
    return names, {label: number for number, label in enumerate(names)}
