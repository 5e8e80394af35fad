"""What a task is: its images, prepared and divided, and the network, loss and metrics that go with them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from mednorm.data import (
    SPLITS,
    Arrays,
    Fold,
    ImageSet,
    Item,
    Kind,
    check_uniform,
    cross_validation,
    geometry_of,
    hold_out_site,
    own_splits,
    read,
)
from mednorm.data.pixels import image_of
from mednorm.errors import ConfigError, DataError
from mednorm.tasks.dropout import Placement
from mednorm.tasks.judge import ClassificationJudge, Judge, SegmentationJudge, SegmentationLoss, classification_loss
from mednorm.tasks.networks import Shape, build_network
from mednorm.tasks.outcomes import Unit
from mednorm.tasks.scaling import Scaling, StandardizeByTraining, StandardizeEach


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task's images, read and checked, the ways they are divided, and what a network for them must fit.

    Attributes:
        images: what was read.
        arrays: every image, in the order of the items.
        folds: the divisions into train, val and test; one, without a name, for the data's own splits.
        digest: SHA-256 of images, targets, patients, sites and folds.
        grid: spacing in mm and orientation of volumes, where their files give them.
    """

    images: ImageSet
    arrays: Arrays
    folds: tuple[Fold, ...]
    digest: str
    grid: tuple[tuple[float, ...], str] | None = None
    _last: dict[str, dict[str, Arrays]] = field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> Shape:
        """Channels and size of the images (of the first, where volumes differ), and the number of classes."""
        return self.shape_for(None)

    def shape_for(self, patch_size: Sequence[int] | None) -> Shape:
        """What a network must fit: the images, or patches of them."""
        channels, *size = self.arrays.images[0].shape
        sites = sorted({site for site in self.arrays.sites if site is not None})
        return Shape(channels, tuple(patch_size or size), len(self.images.classes), tuple(sites))

    def splits(self, fold: str | None = None) -> dict[str, Arrays]:
        """Return "train", "test" and, where there are any, "val" images of a fold, by default the first.

        Raises:
            DataError: no fold of that name.
        """
        name = self.folds[0].name if fold is None else fold
        if name not in self._last:  # one fold is kept: runs of a fold follow one another
            rows = {known.name: known.rows for known in self.folds}.get(name)
            if rows is None:
                known = ", ".join(each.name or "none" for each in self.folds)
                raise DataError(f"{self.images.source}: expected a fold of {known}, got {name!r}.")
            self._last.clear()
            self._last[name] = {split: self.arrays.take(chosen) for split, chosen in rows.items()}
        return self._last[name]

    @property
    def resampled(self) -> str:
        """What a bootstrap may draw from: "patients", "images", or nothing where images are no separate draws."""
        if not self.images.independent:
            return ""
        return "images" if None in self.arrays.patients else "patients"


@dataclass(frozen=True)
class Task:
    """Images, network, loss and metrics that belong together.

    Attributes:
        name: what the command line calls it.
        kind: "classification" or "segmentation".
        main_metric: which metric chooses the epoch and is compared.
        network: name of the default network.
        standardize_each: scale each image by itself (MR) rather than all by the training images (X-ray).
        unit: what a metric is the mean over: "image", or "patient", from all images of one.
        volumes: the images are volumes, which may differ in size and are trained on in patches.
        presets: settings of a study by preset; "default" is always there.
        embedded: makes the images that come with the package, from a seed; None where data must be given.
        default_classes: class names used when the data has that many classes and only numbers them.

    """

    name: str
    kind: Kind
    main_metric: str
    network: str
    standardize_each: bool
    presets: Mapping[str, Mapping[str, Any]]
    unit: Unit = "image"
    volumes: bool = False
    embedded: Callable[[int], ImageSet] | None = None
    default_classes: tuple[str, ...] = ()

    def image_set(
        self, data: str | None, classes: Sequence[str] | None, split_seed: int, *, divide: bool = True
    ) -> ImageSet:
        """Find the images; pixels are read later. Without `divide`, data that names no splits is all test.

        Raises:
            ConfigError: the task has no embedded images and none were given.
            DataError: the data cannot be used.

        """
        if data is not None:
            return read(data, kind=self.kind, classes=classes, seed=split_seed, divide=divide)
        if self.embedded is None:
            raise ConfigError(
                f"{self.name}: expected --data with a MedMNIST .npz or a manifest.csv, got none. "
                "Only tissue brings its own images."
            )
        return self.embedded(split_seed)

    def prepare(
        self,
        data: str | None,
        classes: Sequence[str] | None = None,
        split_seed: int = 0,
        image_size: Sequence[int] | None = None,
        folds: int = 0,
        holdout_site: str | None = None,
    ) -> Prepared:
        """Read and check every image before any training starts, and divide them.

        Args:
            data: file or folder; None for the embedded images.
            classes: class names, in the order of their numbers.
            split_seed: seed of the split by patient, where the data names none, and of the folds.
            image_size: resample every image to this size in voxels.
            folds: divide patients into so many folds in place of the data's own splits; 0 for those.
            holdout_site: test on this site and train on the others; "each" for one fold a site.

        Raises:
            ConfigError: the task has no embedded images and none were given.
            DataError: the data cannot be used, or cannot be divided so.

        """
        images = self.named(self.image_set(data, classes, split_seed, divide=not folds))
        if folds:
            divisions = cross_validation(images.items, folds, split_seed, images.source)
        elif holdout_site is not None:
            divisions = hold_out_site(images.items, holdout_site, images.source)
        else:
            divisions = (own_splits(images.items),)
        for fold in divisions:
            _check_split(images, fold)
        grid = self._check_axes(images)
        arrays = self.load(images, images.items, image_size)
        held = [frozenset(target.unique().tolist()) for target in arrays.targets]
        for fold in divisions:
            _check_classes(images, held, fold)
        if self.unit == "patient" and self.kind == "classification":
            _check_patients(images)
        return Prepared(images, arrays, divisions, _digest(arrays, divisions), grid)

    def _check_axes(self, images: ImageSet) -> tuple[tuple[float, ...], str] | None:
        """Return the grid of volumes; pass for slices, where the task takes slices."""
        first = images.items[0]
        axes = image_of(first.image, first.where).ndim - 1
        if self.volumes and axes != 3:
            raise DataError(f"{first.where}: expected a volume for {self.name}, got an image of {axes} axes.")
        return check_uniform(images) if self.volumes else None

    def load(self, images: ImageSet, items: Sequence[Item], size: Sequence[int] | None) -> Arrays:
        """Read some images as the task wants them: slices of one size, or volumes of any, with their spacing in mm."""
        arrays = images.load_items(items, size=size, stack=not self.volumes)
        if not self.volumes:
            return arrays
        spacings: list[tuple[float, ...] | None] = []
        for item, image in zip(items, arrays.images, strict=True):
            known = geometry_of(item)
            shrunk = known and zip(known.spacing, known.shape, image.shape[1:], strict=True)
            spacings.append(tuple(mm * before / now for mm, before, now in shrunk) if shrunk else None)
        return replace(arrays, spacings=tuple(spacings))

    def named(self, images: ImageSet) -> ImageSet:
        """Give classes that have numbers alone the task's names, where it has as many."""
        numbers = [str(number) for number in range(len(self.default_classes))]
        if numbers and list(images.classes) in (numbers, ["background", *numbers[1:]]):
            return replace(images, class_names=self.default_classes)
        return images

    def network_for(
        self,
        shape: Shape,
        network: str,
        norm: str,
        dropout: float = 0.0,
        placement: Placement | None = None,
        scaling: Scaling | None = None,
    ) -> nn.Module:
        """Build the network, its input scaling in front (to be fitted to the training images, or loaded).

        Without `scaling`, images are scaled as is usual for the task.
        """
        each = self.standardize_each if scaling is None else scaling == "image"
        scaled = StandardizeEach() if each else StandardizeByTraining(shape.channels)
        net = build_network(network, shape, norm, kind=self.kind, dropout=dropout, placement=placement)
        return nn.Sequential(OrderedDict(scaling=scaled, net=net))

    def judge(self, classes: tuple[str, ...], rows: Arrays | None = None, *, distances: bool = False) -> Judge:
        """Make the metrics; of `rows` in their order, or of images nothing is known of.

        `distances` adds the Hausdorff distance to segmentation, which takes its time.
        """
        if self.kind == "classification":
            return ClassificationJudge(classes, rows, self.unit)
        return SegmentationJudge(classes, rows, self.unit, distances=distances)

    def loss(self) -> nn.Module:
        """Make the loss."""
        return classification_loss() if self.kind == "classification" else SegmentationLoss()


def _digest(arrays: Arrays, folds: Sequence[Fold]) -> str:
    """Fingerprint what is trained and tested on, wherever it lies: pixels, targets, who, where, and the division."""
    digest = hashlib.sha256()
    digest.update(repr((arrays.patients, arrays.sites, [(f.name, sorted(f.rows.items())) for f in folds])).encode())
    for image, target in zip(arrays.images, arrays.targets, strict=True):
        for tensor in (image, target):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_split(images: ImageSet, fold: Fold) -> None:
    """Pass if there is something to train on and something to test on."""
    for split in ("train", "test"):
        if not fold.rows[split]:
            raise DataError(
                f"{images.source}: expected at least one image in split {split!r}"
                f"{f' of fold {fold.name}' if fold.name else ''}, got none ({images!r}). "
                "Add images to it, or leave out the column `split` to have them divided."
            )


def _check_classes(images: ImageSet, held: Sequence[frozenset[int]], fold: Fold) -> None:
    """Pass if every split holds every class, without which its metrics are not defined.

    Raises:
        DataError: one does not; for segmentation, one holds background alone.

    """
    for split in SPLITS:
        if split not in fold.rows:
            continue
        where = f"split {split!r}" + (f" of fold {fold.name}" if fold.name else "")
        present = frozenset[int]().union(*(held[row] for row in fold.rows[split]))
        missing = [name for number, name in enumerate(images.classes) if number not in present]
        if images.kind == "segmentation" and present <= {0}:
            raise DataError(
                f"{images.source}: expected masks in {where} to hold a structure, got background alone. "
                "Add images that show one, or try another --split-seed."
            )
        if images.kind == "classification" and missing:
            raise DataError(
                f"{images.source}: expected every class in {where}, got no image of {', '.join(missing)}. "
                "Name the splits in a column `split`, try another --split-seed, or fewer --folds."
            )


def _check_patients(images: ImageSet) -> None:
    """Pass if all images of a patient have one label, as the patient is what is judged."""
    first = {item.patient: item for item in reversed(images.items) if item.patient is not None}
    for item in images.items:
        if item.patient is not None and item.label != first[item.patient].label:
            ours, theirs = (images.classes[each.label or 0] for each in (item, first[item.patient]))
            raise DataError(
                f"{item.where}: expected the label of patient {item.patient!r} to be {theirs!r}, as in "
                f"{first[item.patient].where}, got {ours!r}. Give all images of a patient one label."
            )
