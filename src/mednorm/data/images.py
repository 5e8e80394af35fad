"""What every reader returns: images with their targets, cut into train, val and test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mednorm.data import pixels
from mednorm.data.geometry import geometry_of
from mednorm.data.masks import on_image
from mednorm.errors import DataError

Kind = Literal["classification", "segmentation"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image with its target. Pixels named by a path are read when asked for.

    Attributes:
        where: where it came from, such as ``"manifest.csv row 3 (images/a.png)"``; part of every message about it.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image: a file, a folder that holds a DICOM series, several files of one channel each, or an array
            ``(C, *spatial)``.
        mask: a file, or an array ``(*spatial)`` of class numbers; None for classification.
        label: class number; None for segmentation.
        patient: who was imaged, where known: one patient is in one split only.
        site: hospital or scanner, where known.
        metadata: everything else that was said about the image.
    """

    where: str
    split: Split
    image: Path | tuple[Path, ...] | np.ndarray[Any, Any]
    mask: Path | np.ndarray[Any, Any] | None = None
    label: int | None = None
    patient: str | None = None
    site: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, one row an image, in the order of the items.

    Attributes:
        images: float32 ``(N, C, *spatial)``, raw intensities in the units of the file; a tuple of ``(C, *spatial)``
            where they were loaded unstacked, so that volumes may differ in size.
        targets: int64, labels ``(N,)`` or masks ``(N, *spatial)``; a tuple like the images where they are one.
        names: where each image came from.
        sites: hospital or scanner of each, None where unknown.
        patients: patient of each, None where unknown.
        spacings: size of a voxel in mm along each spatial axis, None where the file does not say.
    """

    images: Tensor | tuple[Tensor, ...]
    targets: Tensor | tuple[Tensor, ...]
    names: tuple[str, ...]
    sites: tuple[str | None, ...]
    patients: tuple[str | None, ...]
    spacings: tuple[tuple[float, ...] | None, ...]

    def take(self, rows: Sequence[int]) -> Arrays:
        """Choose some rows, in the order given; a copy, unless they are neighbours in order."""

        def chosen(column: Any) -> Any:
            if isinstance(column, tuple):
                return tuple(column[row] for row in rows)
            neighbours = list(rows) == list(range(rows[0], rows[0] + len(rows)))
            return column[rows[0] : rows[0] + len(rows)] if neighbours else column[list(rows)]

        return Arrays(*(chosen(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images of one kind with their classes, cut into train, val and test.

    Attributes:
        source: what was read; begins the messages about the whole set.
        kind: ``"classification"`` (a label an image) or ``"segmentation"`` (a mask an image).
        class_names: name of every class, in the order of the numbers; None (segmentation only) to find them in the
            train masks. `classes` holds what was given or found.
        items: every image of every split.
        note: what a reader of results must know about these images.
        independent: False where images are no separate draws from a population, so that resampling them says nothing.

    Example:
        >>> import numpy as np
        >>> items = [
        ...     Item(f"image {i}", split, np.full((1, 4, 4), 7 * i), label=i % 2)
        ...     for split in SPLITS for i in range(2)
        ... ]
        >>> images = ImageSet("made up", "classification", ("normal", "pneumonia"), tuple(items))
        >>> images
        ImageSet('made up', classification, train 2, val 2, test 2)
        >>> images.load("train").targets
        tensor([0, 1])
    """

    source: str
    kind: Kind
    class_names: Sequence[str] | None
    items: tuple[Item, ...]
    note: str = ""
    independent: bool = True

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Name of every class, in the order of the numbers.

        Where none were given they are ``"background"``, ``"1"``, … up to the largest value in the train masks (all
        masks, where nothing is said to be train), which are then all read once, when this is first asked for.

        Raises:
            DataError: fewer than two classes, one twice, or none to be found.
        """
        return _classes_in_masks(self) if self.class_names is None else checked_classes(self.class_names, self.source)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {sum(item.split == name for item in self.items)}" for name in SPLITS)
        return f"ImageSet({self.source!r}, {self.kind}, {counts})"

    def split(self, name: Split) -> tuple[Item, ...]:
        """Return the items of one split.

        Raises:
            DataError: the name is no split, or the split holds no image.
        """
        if name not in SPLITS:
            raise DataError(f"{self.source}: expected a split named train, val or test, got {name!r}.")
        items = tuple(item for item in self.items if item.split == name)
        if not items:
            raise DataError(
                f"{self.source}: expected at least one image in split {name!r}, got none ({self!r}). "
                "Add images to it, or leave out the column `split` to have them divided."
            )
        return items

    def pixels(self, item: Item) -> tuple[Tensor, Tensor]:
        """Read one image and its target, and check both.

        Returns:
            The image, float32 ``(C, *spatial)`` in raw intensities, and its target, int64: a label without axes,
            or a mask ``(*spatial)``.

        Raises:
            DataError: unreadable, NaN or inf in the image, no target, files of one volume that lie differently, a mask
                of another size, a label or a mask value outside the classes.
        """
        image = pixels.as_float(pixels.image_of(item.image, item.where), item.where)
        return torch.from_numpy(image), self.target(item, image.shape[1:])

    def target(self, item: Item, size: tuple[int, ...]) -> Tensor:
        """Read the target of one image whose spatial size is given, and check it; see `pixels`."""
        if isinstance(item.image, tuple):
            geometry_of(item)  # which compares the files
        if self.kind == "classification":
            return torch.tensor(_label_of(item, self.classes))
        mask = on_image(_mask_of(item), item, size)
        largest = int(mask.max(initial=0))
        if largest >= len(self.classes):
            raise DataError(
                f"{item.where}: expected mask values from 0 to {len(self.classes) - 1} for the classes "
                f"{', '.join(self.classes)}, got {largest}. Correct the mask, or pass the names of all classes."
            )
        return torch.from_numpy(mask)

    def load(self, name: Split, *, size: Sequence[int] | None = None) -> Arrays:
        """Read and check every pixel of a split; see `load_items`.

        Raises:
            DataError: an empty split, or whatever `load_items` raises.
        """
        return self.load_items(self.split(name), size=size)

    def load_items(self, items: Sequence[Item], *, size: Sequence[int] | None = None, stack: bool = True) -> Arrays:
        """Read and check every pixel of some images.

        Args:
            items: which images, at least one.
            size: resample every image to these spatial sizes in voxels, whatever its proportions: by areas where it
                shrinks, else linearly; masks by nearest neighbour. Needed where the images differ in size.
            stack: False to keep images and targets apart, so that their sizes may differ.

        Raises:
            DataError: whatever `pixels` raises, or images of different shapes that are to be stacked.
        """
        read = (self._sized(item, size) for item in items)
        images, targets = self._stacked(items, read) if stack else tuple(zip(*read, strict=True))
        return Arrays(
            images,
            targets,
            tuple(item.where for item in items),
            tuple(item.site for item in items),
            tuple(item.patient for item in items),
            (None,) * len(items),
        )

    def _sized(self, item: Item, size: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        image, target = self.pixels(item)
        return (image, target) if size is None else pixels.resized(image, target, size, item.where)

    def _stacked(self, items: Sequence[Item], read: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        # Filled as NumPy arrays: torch would start its threads for each image, which on busy cores took thrice as long.
        images, targets = np.empty(0, np.float32), np.empty(0, np.int64)
        for row, (image, target) in enumerate(read):
            if row == 0:  # one allocation for all, instead of a list and then a copy of it
                images = np.empty((len(items), *image.shape), np.float32)
                targets = np.empty((len(items), *target.shape), np.int64)
            elif image.shape != images.shape[1:]:
                raise DataError(_shapes_differ(self.source, items[0], images.shape[1:], items[row], image.shape))
            images[row], targets[row] = image.numpy(), target.numpy()
        return torch.from_numpy(images), torch.from_numpy(targets)


def checked_classes(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Return names of classes as a tuple.

    Raises:
        DataError: fewer than two, or one twice.
    """
    if isinstance(names, str) or len(set(names)) != len(names) or len(names) < 2:
        raise DataError(f"{source}: expected at least two classes with different names, got {names!r}.")
    return tuple(names)


def _label_of(item: Item, classes: Sequence[str]) -> int:
    if item.label is None or not 0 <= item.label < len(classes):
        raise DataError(f"{item.where}: expected a label from 0 to {len(classes) - 1}, got {item.label}.")
    return item.label


def _mask_of(item: Item) -> np.ndarray[Any, np.dtype[np.int64]]:
    if item.mask is None:
        raise DataError(f"{item.where}: expected a mask, got none. Give one, or read the set as classification.")
    return pixels.mask_of(item.mask, item.where)


def _classes_in_masks(images: ImageSet) -> tuple[str, ...]:
    if images.kind != "segmentation":
        raise DataError(f"{images.source}: expected names of classes for classification, got None.")
    items = [item for item in images.items if item.split == "train"] or images.items  # folds need no train split
    largest = max((int(_mask_of(item).max(initial=0)) for item in items), default=0)
    if largest == 0:
        raise DataError(
            f"{images.source}: expected at least one train mask with a value above 0, got only background. "
            "Check the masks, or pass the names of all classes."
        )
    return ("background", *map(str, range(1, largest + 1)))


def _shapes_differ(source: str, first: Item, shape: Sequence[int], other: Item, got: Sequence[int]) -> str:
    message = (
        f"{source}: expected all images to have one shape, "
        f"got {tuple(shape)} in {first.where} and {tuple(got)} in {other.where}."
    )
    if shape[0] != got[0]:
        return f"{message} Save all with the same number of channels."
    sizes = ", ".join(str(n) for n in shape[1:])
    return f"{message} Resize the files to one size, or pass one, such as size=({sizes})."
