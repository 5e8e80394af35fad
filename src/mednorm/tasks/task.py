"""What a task is, and the tasks there are."""

from __future__ import annotations

import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from mednorm.data import SPLITS, Arrays, ImageSet, Kind, read, tissue
from mednorm.errors import ConfigError, DataError
from mednorm.tasks.judge import ClassificationJudge, Judge, SegmentationJudge, SegmentationLoss, classification_loss
from mednorm.tasks.networks import Shape, StandardizeByTraining, StandardizeEach, article_cnn, unet


@dataclass(frozen=True)
class Prepared:
    """A task's images, all splits read and checked, and what a network for them must fit."""

    images: ImageSet
    arrays: Mapping[str, Arrays]
    digest: str

    @property
    def shape(self) -> Shape:
        """Channels and size of the images, and the number of classes."""
        channels, *size = self.arrays["train"].images.shape[1:]
        return Shape(channels, tuple(size), len(self.images.classes))


@dataclass(frozen=True)
class Task:
    """Images, network, loss and metrics that belong together.

    Attributes:
        name: what the command line calls it.
        kind: "classification" or "segmentation".
        main_metric: which metric chooses the epoch and is compared.
        network: name of the network, for people.
        build: (shape, norm, dropout) to the network.
        standardize_each: scale each image by itself (MR) rather than all by the training images (X-ray).
        embedded: makes the images that come with the package, from a seed; None where data must be given.
        default_classes: class names used when the data has that many classes and only numbers them.
        presets: settings of a study by preset; "default" is always there.

    """

    name: str
    kind: Kind
    main_metric: str
    network: str
    build: Callable[[Shape, str, float], nn.Module]
    standardize_each: bool
    presets: Mapping[str, Mapping[str, Any]]
    embedded: Callable[[int], ImageSet] | None = None
    default_classes: tuple[str, ...] = field(default=())

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
                f"Only {', '.join(task.name for task in TASKS.values() if task.embedded)} brings its own images."
            )
        return self.embedded(split_seed)

    def prepare(
        self,
        data: str | None,
        classes: Sequence[str] | None = None,
        split_seed: int = 0,
        image_size: Sequence[int] | None = None,
    ) -> Prepared:
        """Read and check every image of every split before any training starts.

        Args:
            data: file or folder; None for the embedded images.
            classes: class names, in the order of their numbers.
            split_seed: seed of the split by patient, where the data names none.
            image_size: resample every image to this size in voxels.

        Raises:
            ConfigError: the task has no embedded images and none were given.
            DataError: the data cannot be used.

        """
        images = self.image_set(data, classes, split_seed)
        numbers = tuple(str(number) for number in range(len(self.default_classes)))
        if numbers and images.classes == numbers:  # the file has numbers alone
            images = replace(images, class_names=self.default_classes)
        arrays: dict[str, Arrays] = {split: images.load(split, size=image_size) for split in SPLITS}
        _check_classes(images, arrays)
        return Prepared(images, arrays, _digest(arrays))

    def network_for(self, shape: Shape, norm: str, dropout: float) -> nn.Module:
        """Build the network, its input scaling in front (to be fitted to the training images, or loaded)."""
        scaling = StandardizeEach() if self.standardize_each else StandardizeByTraining(shape.channels)
        return nn.Sequential(OrderedDict(scaling=scaling, net=self.build(shape, norm, dropout)))

    def judge(self, classes: tuple[str, ...]) -> Judge:
        """Make the metrics."""
        return ClassificationJudge(len(classes)) if self.kind == "classification" else SegmentationJudge(classes)

    def loss(self) -> nn.Module:
        """Make the loss."""
        return classification_loss() if self.kind == "classification" else SegmentationLoss()


def find_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        ConfigError: there is none of that name; the nearest is named.

    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {name!r}. {hint}".rstrip())


def _digest(arrays: Mapping[str, Arrays]) -> str:
    """Fingerprint what is trained and tested on, wherever it came from."""
    digest = hashlib.sha256()
    for split in arrays.values():
        for tensor in (split.images, split.targets):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _check_classes(images: ImageSet, arrays: Mapping[str, Arrays]) -> None:
    """Pass if every split holds every class, without which its metrics are not defined.

    Raises:
        DataError: one does not; for segmentation, one holds background alone.

    """
    for split, held in arrays.items():
        present = set(held.targets.unique().tolist())
        missing = [name for number, name in enumerate(images.classes) if number not in present]
        if images.kind == "segmentation" and present <= {0}:
            raise DataError(
                f"{images.source}: expected masks in split {split!r} to hold a structure, got background alone. "
                "Add images that show one, or try another --split-seed."
            )
        if images.kind == "classification" and missing:
            raise DataError(
                f"{images.source}: expected every class in split {split!r}, got no image of {', '.join(missing)}. "
                "Name the splits in a column `split`, or try another --split-seed."
            )


_ALL_NORMS = ["none", "batch", "group", "instance"]
_EVERYTHING = {
    "norms": _ALL_NORMS,
    "regularizers": ["none", "dropout", "l1", "l2", "dropout+l2"],
    "batch_sizes": [2, 4, 8, 16, 32],
    "seeds": [0, 1, 2, 3, 4],
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="tissue",
            kind="segmentation",
            main_metric="dice",
            network="monai.networks.nets.UNet(channels=(8, 16, 32, 64))",
            build=unet,
            standardize_each=True,
            embedded=tissue,
            presets={
                "quick": {
                    "norms": _ALL_NORMS,
                    "regularizers": ["none", "dropout", "l1", "l2"],
                    "batch_sizes": [2, 8, 32],
                    "base_batch_size": 8,
                    "seeds": [0, 1, 2],
                    "epochs": 8,
                    "learning_rate": 3e-3,
                },
                "default": {**_EVERYTHING, "base_batch_size": 8, "epochs": 15, "learning_rate": 3e-3},
            },
        ),
        Task(
            name="lung",
            kind="classification",
            main_metric="auc",
            network="article_cnn",
            build=article_cnn,
            standardize_each=False,
            default_classes=("normal", "pneumonia"),
            presets={
                "quick": {
                    "norms": ["none", "batch"],
                    "regularizers": ["none"],
                    "batch_sizes": [32],
                    "base_batch_size": 32,
                    "seeds": [0, 1, 2],
                    "epochs": 3,
                },
                "default": {
                    "norms": _ALL_NORMS,
                    "regularizers": ["none"],
                    "batch_sizes": [32],
                    "base_batch_size": 32,
                    "seeds": [0, 1, 2],
                    "epochs": 5,
                },
                "full": {**_EVERYTHING, "base_batch_size": 32, "epochs": 8},
            },
        ),
    )
}
