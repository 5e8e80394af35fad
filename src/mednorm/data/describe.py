"""Say what is in a set of images: counts, classes, sites, patients, sizes, intensities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mednorm.data import pixels
from mednorm.data.images import SPLITS, ImageSet, Item
from mednorm.moments import Moments


@dataclass(frozen=True)
class Intensity:
    """Intensities of many images, one number a channel, in the units of the files.

    Pooled exactly over all their voxels (`Moments`), so the spread between images is in `std`.

    Attributes:
        count: how many voxels.
        mean: their mean.
        std: their biased standard deviation.
        minimum: the smallest.
        maximum: the largest.
        range: largest minus smallest.
    """

    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    range: tuple[float, ...]


@dataclass(frozen=True)
class Description:
    """What `describe` found. Keys of the dictionaries are names of splits unless said otherwise.

    Attributes:
        source: what was read.
        kind: ``"classification"`` or ``"segmentation"``.
        classes: their names.
        note: what the reader of the images has to say about them.
        images: number of images.
        per_class: for each class, its number of images, or for segmentation its share of all voxels (0 to 1).
        sites: number of images of each site; ``"unknown"`` where none is named.
        patients: number of patients; None where any image names none.
        shapes: number of images of each shape ``"C×H×W"``, over all splits.
        dtypes: number of images of each stored type, over all splits.
        intensity: of each split.
        intensity_by_site: of each site (the key), over all splits.
    """

    source: str
    kind: str
    classes: tuple[str, ...]
    note: str
    images: dict[str, int]
    per_class: dict[str, dict[str, float]]
    sites: dict[str, dict[str, int]]
    patients: dict[str, int | None]
    shapes: dict[str, int]
    dtypes: dict[str, int]
    intensity: dict[str, Intensity]
    intensity_by_site: dict[str, Intensity]

    def to_dict(self) -> dict[str, Any]:
        """Return what `json.dumps` can write."""
        return asdict(self)


def describe(image_set: ImageSet) -> Description:
    """Read every image and mask once, one at a time, and count and measure them.

    Images may differ in size, and in their number of channels: each channel is pooled over the images that have it.

    Raises:
        DataError: an image that cannot be used; see `ImageSet.pixels`.

    Example:
        >>> import numpy as np
        >>> from mednorm.data import Item
        >>> items = tuple(Item(f"image {i}", "train", np.full((1, 2, 2), i), label=i) for i in (0, 1))
        >>> found = describe(ImageSet("made up", "classification", ("no", "yes"), items))
        >>> found.images, found.per_class["train"], found.intensity["train"].std
        ({'train': 2}, {'no': 1, 'yes': 1}, (0.5,))
    """
    shapes: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    by_split: dict[str, list[Moments]] = {}
    by_site: dict[str, list[Moments]] = {}
    totals: dict[str, Tensor] = {}
    for item in image_set.items:
        stored = pixels.image_of(item.image, item.where)
        shapes["×".join(map(str, stored.shape))] += 1
        dtypes[str(stored.dtype)] += 1
        target = image_set.target(item, stored.shape[1:])
        counted = torch.bincount(target.flatten(), minlength=len(image_set.classes))
        totals[item.split] = totals[item.split] + counted if item.split in totals else counted
        moments = Moments.of(torch.from_numpy(pixels.as_float(stored, item.where))[None], dtype=torch.float64)
        by_split.setdefault(item.split, []).append(moments)
        by_site.setdefault(item.site or "unknown", []).append(moments)
    present = [name for name in SPLITS if name in totals]
    items = {name: image_set.split(name) for name in present}
    return Description(
        source=image_set.source,
        kind=image_set.kind,
        classes=image_set.classes,
        note=image_set.note,
        images={name: len(items[name]) for name in present},
        per_class={name: _per_class(image_set, totals[name]) for name in present},
        sites={name: dict(sorted(Counter(item.site or "unknown" for item in items[name]).items())) for name in present},
        patients={name: _patients(items[name]) for name in present},
        shapes=dict(shapes.most_common()),
        dtypes=dict(dtypes.most_common()),
        intensity={name: _pooled(by_split[name]) for name in present},
        intensity_by_site={name: _pooled(by_site[name]) for name in sorted(by_site)},
    )


def _per_class(image_set: ImageSet, total: Tensor) -> dict[str, float]:
    if image_set.kind == "segmentation":
        total = total.double() / total.sum()
    return dict(zip(image_set.classes, total.tolist(), strict=True))


def _patients(items: Iterable[Item]) -> int | None:
    patients = {item.patient for item in items}
    return None if None in patients else len(patients)


def _pooled(moments: list[Moments]) -> Intensity:
    """Pool channel by channel, over the images that have it."""
    channels = max(len(each.mean) for each in moments)
    pooled = [
        Moments.pool(_channel(each, channel) for each in moments if len(each.mean) > channel)
        for channel in range(channels)
    ]

    def numbers(name: str) -> tuple[Any, ...]:
        return tuple(getattr(each, name).item() for each in pooled)

    return Intensity(*(numbers(name) for name in ("count", "mean", "std", "minimum", "maximum", "range")))


def _channel(moments: Moments, channel: int) -> Moments:
    return Moments(*(field[channel : channel + 1] for field in moments.fields()))
