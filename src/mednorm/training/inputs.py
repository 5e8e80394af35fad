"""The images that are to be predicted: found, checked by their headers and named before the first is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednorm.data import Image, Item, geometry_of, pixels, readers
from mednorm.data.geometry import geometry_at, spacing_at
from mednorm.data.manifest import SEPARATOR
from mednorm.errors import DataError


@dataclass(frozen=True, slots=True)
class Input:
    """One image that is to be predicted.

    Attributes:
        text: what was given; begins the messages about it.
        paths: a file or the folder of a DICOM series for each channel; one alone may hold several channels.
        name: of what is written for it; no two inputs share one.
        shape: voxels along each spatial axis, as the headers say; None where they do not.
    """

    text: str
    paths: tuple[Path, ...]
    name: str
    shape: tuple[int, ...] | None

    def read(self) -> Image:
        """Read the pixels and where they lie.

        Raises:
            DataError: unreadable, NaN or inf, or files of one image that differ in size or place.
        """
        item = _item(self.text, self.paths)
        geometry = geometry_of(item)
        array = pixels.as_float(pixels.image_of(item.image, self.text), self.text)
        first = self.paths[0]
        kind = "DICOM series" if first.is_dir() else readers.format_of(first) or ""
        return Image(array, geometry, kind, spacing_at(first, self.text))


def find_inputs(texts: Sequence[str]) -> list[Input]:
    """Find images, and check by headers alone that each can be read.

    Args:
        texts: of each image its file, the folder of its DICOM series, or several of these with `;` between, one a
            channel.

    Raises:
        DataError: none at all, one that is missing, empty or unreadable, one twice, or two that would be written under
            one name.
        MissingExtraError: the packages that read images are not installed.
    """
    if not texts:
        raise DataError("images: expected at least one, got none. Name a file, or the folder of a DICOM series.")
    found: dict[tuple[Path, ...], str] = {}
    split = [_paths(text) for text in texts]
    for text, paths in zip(texts, split, strict=True):
        resolved = tuple(_resolved(text, path) for path in paths)
        if resolved in found:
            raise DataError(f"{text}: expected every image once, got it again after {found[resolved]}. Name it once.")
        found[resolved] = text
    shapes = [_shape(text, paths) for text, paths in zip(texts, split, strict=True)]
    names = _names(texts, split)
    return [Input(*each) for each in zip(texts, split, names, shapes, strict=True)]


def check_apart(found: Sequence[Input], outputs: Iterable[Path]) -> None:
    """Pass if no output is an input or lies in the folder of one, also through links.

    Raises:
        DataError: one does.
    """
    taken: dict[Path, str] = {}
    for each in found:
        for path in each.paths:
            for part in (path, *(path.iterdir() if path.is_dir() else ())):
                taken[part.resolve()] = each.text
    for output in outputs:
        for real in (output.resolve(), output.parent.resolve() / output.name):
            text = next((taken[place] for place in (real, *real.parents) if place in taken), None)
            if text is not None:
                raise DataError(
                    f"{text}: expected what is written to leave the images alone, got {output}, which would replace "
                    "an image or lie among its slices. Choose another folder."
                )


def _paths(text: str) -> tuple[Path, ...]:
    if SEPARATOR not in text or _exists(text):
        return (Path(text),)
    names = [name.strip() for name in text.split(SEPARATOR)]
    again = [name for name, count in Counter(names).items() if count > 1]
    if "" in names or again:
        got = f"{again[0]!r} twice" if again and again[0] else "nothing beside one"
        raise DataError(f"{text}: expected a file of its own on each side of {SEPARATOR!r}, got {got}. Correct it.")
    return tuple(map(Path, names))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than a name may be, as several joined can be
        return False


def _resolved(text: str, path: Path) -> Path:
    try:
        path.is_dir()  # which raises for a name that is too long
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError for a ring of links
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{text[:80]}: expected a path, got {str(path)[:80]!r} ({reason}). Correct it.") from None


def _item(text: str, paths: tuple[Path, ...]) -> Item:
    return Item(text, "test", paths if len(paths) > 1 else paths[0])


def _shape(text: str, paths: tuple[Path, ...]) -> tuple[int, ...] | None:
    """Read what the headers say of the size; every file is looked at, and files of one image are compared."""
    shapes = [_shape_at(path, text if len(paths) == 1 else f"{text}, {path.name}") for path in paths]
    if len(paths) > 1:
        geometry_of(_item(text, paths))  # which compares them
        known = [(path, shape) for path, shape in zip(paths, shapes, strict=True) if shape is not None]
        for path, shape in known[1:]:
            if shape != known[0][1]:
                raise DataError(
                    f"{text}: expected files of one size, got {known[0][1]} in {known[0][0].name} and {shape} in "
                    f"{path.name}. Resample them to one grid."
                )
    return shapes[0]


def _shape_at(path: Path, where: str) -> tuple[int, ...] | None:
    kind = None if path.is_dir() else readers.format_of(path)
    if path.is_dir() or kind in ("NIfTI", "DICOM"):
        geometry = geometry_at(path, where)
        if geometry is None and kind == "NIfTI":
            return pixels.opened(path, where, _size_of_nifti)
        return None if geometry is None else geometry.shape
    if kind is None:
        pixels.opened(path, where, readers.image)  # which says what is wrong with it
    return pixels.opened(path, where, _size)


def _size(path: Path) -> tuple[int, ...]:
    from PIL import Image as Picture

    with Picture.open(path) as picture:
        return picture.height, picture.width


def _size_of_nifti(path: Path) -> tuple[int, ...]:
    import nibabel

    image: Any = nibabel.load(path)
    return tuple(image.shape[:3])


def _names(texts: Sequence[str], split: Sequence[tuple[Path, ...]]) -> list[str]:
    """Name each image by its (first) file as given, not by what a link leads to; those of one name by folders too."""
    firsts = [Path(os.path.abspath(paths[0])) for paths in split]
    names = [_stem(path) for path in firsts]
    counts = Counter(names)
    names = [
        f"{path.parent.name}-{name}" if counts[name] > 1 else name for name, path in zip(names, firsts, strict=True)
    ]
    first: dict[str, str] = {}
    for name, text in zip(names, texts, strict=True):
        if name in first:
            raise DataError(
                f"{text}: expected a name of its own for what is written, got {name!r}, as for {first[name]}. "
                "Predict one of them into another folder."
            )
        first[name] = text
    return names


def _stem(path: Path) -> str:
    """Leave out the suffix of a format; numbers behind a dot may be a UID and stay."""
    suffix = next((s for s in (".nii.gz", *readers.SUFFIXES) if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)] if not path.is_dir() else path.name
