"""A trained run and its images, ready to be examined: batches as in training, and what the run knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn, optim

from mednorm.data import Arrays, Split
from mednorm.errors import DataError
from mednorm.tasks import Task, find_task
from mednorm.training.batches import Loader
from mednorm.training.disk import load_settings
from mednorm.training.evaluation import images_to_judge, judging_device, load_network
from mednorm.training.patches import patch_loader
from mednorm.training.settings import Device, RunSettings


class ImageBatches:
    """Every image once, in a fixed random order, so that no batch is of one patient's neighbouring slices.

    Args:
        arrays: images of one size.
        batch_size: of the training; the last batch may be shorter, and takes in one image that would be alone.

    """

    def __init__(self, arrays: Arrays, batch_size: int) -> None:
        self._arrays = arrays
        order = np.random.default_rng(0).permutation(len(arrays.names)).tolist()
        self._rows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if batch_size > 1 and len(self._rows) > 1 and len(self._rows[-1]) == 1:
            self._rows[-2:] = [self._rows[-2] + self._rows[-1]]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        images, targets = self._arrays.images, self._arrays.targets
        assert isinstance(images, Tensor)
        assert isinstance(targets, Tensor)
        for rows in self._rows:
            sites, patients = ([names[row] for row in rows] for names in (self._arrays.sites, self._arrays.patients))
            yield {"image": images[rows], "label": targets[rows], "site": sites, "patient": patients}


class PatchBatches:
    """Patches of volumes as the run was trained on, the same in every pass.

    A volume of no patient that is named is a patient: its patches are as little independent as those of one.

    Args:
        loader: gives images, targets and rows of the arrays.
        arrays: whose the images are.

    """

    def __init__(self, loader: Loader, arrays: Arrays) -> None:
        self._loader, self._sites = loader, arrays.sites
        self._patients = [patient or name for patient, name in zip(arrays.patients, arrays.names, strict=True)]

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for images, targets, rows in self._loader:
            sites, patients = ([names[row] for row in rows.tolist()] for names in (self._sites, self._patients))
            yield {"image": images, "label": targets, "site": sites, "patient": patients}


@dataclass(frozen=True)
class RunFacts:
    """What a run knows of itself beside its weights.

    Attributes:
        settings: what was trained.
        task: with which images and metrics.
        whole: the network that the weights are of, input scaling and all; the one that is examined is part of it.
        images: how many images (or volumes) the batches are made from.
        metric: the task's, of the outputs and labels of one batch.
        decay: an optimizer that shrinks what the run's L2 penalty shrinks, by as much; it tells `mednorm.examine`.

    """

    settings: RunSettings
    task: Task
    whole: nn.Module
    images: int
    metric: Callable[[Any, Any], float]
    decay: optim.Optimizer


def loader_of_run(
    folder: Path,
    data: str | None = None,
    split: Split | Literal["all"] = "test",
    *,
    site: str | None = None,
    batch_size: int | None = None,
    device: Device = "auto",
) -> tuple[nn.Module, ImageBatches | PatchBatches, RunFacts]:
    """Return a run's network, batches of images as it was trained on, and what the run knows of itself.

    Slices come whole, every one once. Of volumes come patches of the training's size, as many of each as in an epoch,
    half of them centred in a structure as in training; the network is then the part behind the input scaling, as the
    patches are cut from scaled volumes.

    Args:
        folder: the run's folder.
        data: a .npz, a manifest.csv or its folder; None for the run's own.
        split: "train", "val", "test", or "all" for every image.
        site: the images of this one alone.
        batch_size: by default the training's.
        device: "auto" for a GPU where there is one, "cpu" or "cuda".

    Raises:
        RunError: not a run, one without usable weights, or images that its network does not take.
        DataError: the data cannot be used, or the split holds no image.

    """
    settings = load_settings(folder)
    task = find_task(settings.task)
    images, arrays = images_to_judge(settings, task, data, split)
    if site is not None:
        arrays = arrays.take([row for row, name in enumerate(arrays.sites) if name == site])
    if not arrays.names:
        where = f"split {split!r}" if site is None else f"split {split!r} of site {site!r}"
        raise DataError(f"{images.source}: expected images in {where}, got none. Choose another --split.")
    whole = load_network(folder, settings, task, arrays, len(images.classes)).to(judging_device(device))
    size = batch_size or settings.batch_size
    metric, decay = metric_of(task, images.classes), _decay(whole, settings)
    facts = RunFacts(settings, task, whole, len(arrays.names), metric, decay)
    if settings.patch_size is None:
        return whole, ImageBatches(arrays, size), facts
    steps = -(-len(arrays.names) * settings.patches_per_volume // size)
    patches = patch_loader(arrays, whole.get_submodule("scaling"), settings.patch_size, size, 0, steps)
    return whole.get_submodule("net"), PatchBatches(patches, arrays), facts


def metric_of(task: Task, classes: tuple[str, ...]) -> Callable[[Any, Any], float]:
    """Return the accuracy, or the Dice, of one batch; an AUC is not defined in a batch that lacks a class."""
    name = "accuracy" if task.kind == "classification" else "dice"

    def metric(outputs: Tensor, targets: Tensor) -> float:
        judge = task.judge(classes)
        judge.update(outputs, targets)
        value = judge.compute()[name]
        return torch.nan if value is None else value

    return metric


def _decay(network: nn.Module, settings: RunSettings) -> optim.Optimizer:
    """Return the penalty of `TrainingModule.penalty` as weight decay: the gradient of l2/2·Σw² is l2·w."""
    l2 = settings.l2 if "l2" in settings.regularizer.split("+") else 0.0
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": l2}, {"params": others, "weight_decay": 0.0}]
    return optim.SGD([group for group in groups if group["params"]])
