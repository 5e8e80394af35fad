"""Read a MedMNIST file: six arrays, images and labels of train, val and test."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mednorm.data.images import SPLITS, ImageSet, Item, Split, checked_classes
from mednorm.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_KEYS = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))


def read_npz(path: str | Path, *, classes: Sequence[str] | None = None) -> ImageSet:
    """Read a classification set in the layout of MedMNIST.

    The file holds ``train_images``, ``train_labels``, and the same for ``val`` and ``test``. Images are ``(n, H, W)``,
    ``(n, H, W, 3)`` in colour, or volumes ``(n, D, H, W)``, and stay in their stored type (8-bit mostly) until a split
    is loaded; labels are whole numbers ``(n,)`` or ``(n, 1)``. Other arrays are named in `ImageSet.note` and not used.
    Nothing in the file is unpickled.

    Args:
        path: the .npz file.
        classes: names of the classes; ``"0"``, ``"1"``, … up to the largest train label where None.

    Raises:
        DataError: missing, no npz, truncated, an array missing, pickled or of another shape, counts of images and
            labels that differ, labels outside the classes.

    Reference:
        Yang et al. (2023), "MedMNIST v2", Scientific Data 10:41.
    """
    path = Path(path)
    arrays, others = _arrays(path)
    labels = {split: _labels(arrays, split, path.name) for split in SPLITS}
    if classes is None:
        known = tuple(str(k) for k in range(int(labels["train"].max(initial=-1)) + 1))
        source_of_classes = "those of train_labels"
    else:
        known, source_of_classes = tuple(classes), "the names given"
    names = checked_classes(known, path.name)
    for split in SPLITS:
        outside = np.flatnonzero((labels[split] < 0) | (labels[split] >= len(names)))
        if outside.size:
            raise DataError(
                f"{path.name} {split}[{outside[0]}]: expected a label from 0 to {len(names) - 1} "
                f"({source_of_classes}), got {labels[split][outside[0]]}. Correct it, or pass the names of all classes."
            )
    items = tuple(item for split in SPLITS for item in _items(arrays, labels[split], split, path.name))
    note = f"Arrays not used: {', '.join(others)}." if others else ""
    return ImageSet(str(path), "classification", names, items, note)


def _arrays(path: Path) -> tuple[dict[str, Array], list[str]]:
    """Read the six arrays, and name the others."""
    name = path.name
    if not path.is_file():
        raise DataError(f"{name}: expected a MedMNIST file, got no file at {path}. Correct the path.")
    try:
        # NumPy leaves the file open where the archive is damaged, so it is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive.files]
            if missing:
                raise DataError(
                    f"{name}: expected arrays {', '.join(_KEYS)}, got {', '.join(archive.files) or 'none'}: "
                    f"{', '.join(missing)} missing. Save them under these names."
                )
            arrays = {key: _one(archive, key, name) for key in _KEYS}
            return arrays, [key for key in archive.files if key not in _KEYS]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        # The last is what zipfile raises for a kind of compression that it does not know.
        raise DataError(
            f"{name}: expected a complete npz archive, got {_said(error)}. Download or save it again."
        ) from None
    except (AttributeError, TypeError, ValueError) as error:  # a plain .npy array, a pickle, a text
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: expected an npz archive, got another file ({_said(error)}). Use numpy.savez."
        ) from None


def _one(archive: Any, key: str, name: str) -> Array:
    try:
        array = archive[key]
    except ValueError as error:
        raise DataError(
            f"{name}: expected numbers in {key}, got an array that cannot be read without unpickling ({_said(error)}). "
            "Save it with a numeric dtype."
        ) from None
    kinds = "iu" if key.endswith("labels") else "iuf"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        wanted = "whole numbers" if key.endswith("labels") else "numbers"
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{name}: expected {wanted} in {key}, got {got}. Save it with a numeric dtype.")
    return array


def _labels(arrays: dict[str, Array], split: Split, name: str) -> Array:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise DataError(
            f"{name}: expected {split}_images of shape (n, H, W), (n, H, W, 3) or (n, D, H, W), got {images.shape}."
        )
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(
            f"{name}: expected {split}_labels of shape ({len(images)},) or ({len(images)}, 1), one label an image, "
            f"got {labels.shape}."
        )
    if len(labels) != len(images):
        raise DataError(
            f"{name}: expected one label for each of {len(images)} {split}_images, got {len(labels)} {split}_labels."
        )
    return labels.reshape(-1).astype(np.int64)


def _items(arrays: dict[str, Array], labels: Array, split: Split, name: str) -> Iterator[Item]:
    images = arrays[f"{split}_images"]
    colour = images.ndim == 4 and images.shape[-1] == 3
    for row, label in enumerate(labels):
        image = np.moveaxis(images[row], -1, 0) if colour else images[row][None]
        yield Item(f"{name} {split}[{row}]", split, image, label=int(label))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
