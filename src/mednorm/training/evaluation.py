"""Judging a trained network, with running statistics and with those of the batch, for all images and for each site."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mednorm.data import Arrays, ImageSet, Split, check_uniform, share_of
from mednorm.errors import ConfigError, DataError, RunError
from mednorm.guards import batch_statistics, evaluation_mode, norms_with_running_statistics
from mednorm.tasks import Task, find_task
from mednorm.tasks.bootstrap import interval
from mednorm.tasks.judge import Judge, Metrics
from mednorm.tasks.networks import Shape
from mednorm.tasks.outcomes import Outcomes
from mednorm.training.batches import evaluation_loader
from mednorm.training.disk import load_settings, load_weights
from mednorm.training.inference import logits_of
from mednorm.training.settings import Device, RunSettings, prepare

SAMPLES = 6


def judging_device(wanted: str) -> torch.device:
    """Return the GPU, unless there is none or the CPU is wanted."""
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def shared(settings: RunSettings, train: Arrays) -> Arrays:
    """Choose the share of the training patients (or images) that a run is trained on."""
    if settings.train_share == 1:
        return train
    units = [patient or name for patient, name in zip(train.patients, train.names, strict=True)]
    labels = [int(target) if target.dim() == 0 else None for target in train.targets]
    return train.take(share_of(units, labels, settings.train_share, settings.seed))


def evaluate(
    network: nn.Module, arrays: Arrays, judge: Judge, patch_size: list[int] | None = None, window_batch: int = 1
) -> Metrics:
    """Judge a network on every image, in evaluation mode."""
    _look(network, arrays, judge, 64, patch_size, window_batch)
    return judge.compute()


def outcomes_in_both_modes(
    network: nn.Module, task: Task, classes: tuple[str, ...], arrays: Arrays, settings: RunSettings
) -> tuple[Outcomes, Outcomes | None]:
    """Judge every image with running statistics, then with those of batches of the training batch size.

    The batches of the second mode are drawn in a fixed random order, as neighbours in a file are often of one patient
    and training mixes them. Of volumes, a batch is that many neighbouring windows of one. Distances between
    contours are measured in the first mode alone, as they take their time.

    Returns:
        One row an image for each mode; None for the second where no layer keeps running statistics, or where a batch
        of that size has no statistics.

    """
    running = task.judge(classes, arrays, distances=True)
    _look(network, arrays, running, 64, settings.patch_size, settings.batch_size)
    if not norms_with_running_statistics(network):
        return running.outcomes(), None
    count, size = len(arrays.names), settings.batch_size
    order = np.arange(count) if task.volumes else np.random.default_rng(0).permutation(count)
    filled = count if task.volumes else -(-count // size) * size  # the last batch is filled from the first
    mixed = arrays.take(np.resize(order, filled).tolist())
    batch = task.judge(classes, mixed)
    with batch_statistics(network):
        try:
            _look(network, mixed, batch, size, settings.patch_size, size)
        except ValueError as error:  # a single value per channel has no variance
            if isinstance(error, DataError | ConfigError):
                raise
            return running.outcomes(), None
    return running.outcomes(), batch.outcomes().take(np.argsort(order))  # row by row the images of the first mode


@dataclass(frozen=True)
class Judgement:
    """How a run did on some images.

    Attributes:
        images: how many there were.
        resampled: what the intervals speak of, such as ("patients", 15).
        metrics: with running statistics, or of a network that keeps none.
        intervals: 95 % bootstrap intervals of the metrics; None where there are too few patients or images, empty
            where images are no separate draws.
        batch_metrics: with the statistics of the batch; empty for a network that keeps no running statistics.
        sites: metrics of each site, with running statistics.

    """

    images: int
    resampled: tuple[str, int]
    metrics: Metrics
    intervals: Mapping[str, tuple[float, float] | None]
    batch_metrics: Metrics
    sites: Mapping[str, Metrics]


def evaluate_run(folder: Path, data: str | None, split: Split | Literal["all"], device: Device = "auto") -> Judgement:
    """Judge a trained run on its own data or on other data of the same classes.

    Images of another size than those of the training are resampled to it.

    Args:
        folder: the run's folder.
        data: a .npz, a manifest.csv or its folder; None for the run's own.
        split: "train", "val", "test", or "all" for every image. Of a run's own data, its own fold's, and of "train" the
            share that it was trained on.
        device: "auto" for a GPU where there is one, "cpu" or "cuda".

    Raises:
        RunError: not a run, one without usable weights, one whose network takes other channels than these, or volumes
            of another spacing or orientation than those of the training.
        DataError: the data cannot be used.

    """
    settings = load_settings(folder)
    task = find_task(settings.task)
    images, arrays = images_to_judge(settings, task, data, split)
    network = load_network(folder, settings, task, arrays, len(images.classes)).to(judging_device(device))
    running, batch = outcomes_in_both_modes(network, task, images.classes, arrays, settings)
    draws = running.replicates(task.unit) if images.independent else {}
    return Judgement(
        images=len(arrays.names),
        resampled=running.clusters,
        metrics=running.metrics(task.unit),
        intervals={name: interval(values) for name, values in draws.items()},
        batch_metrics={} if batch is None else batch.metrics(task.unit),
        sites={site: rows.metrics(task.unit) for site, rows in running.by_site().items()},
    )


def load_network(folder: Path, settings: RunSettings, task: Task, arrays: Arrays, classes: int) -> nn.Module:
    """Build a run's network for some images and load its best epoch."""
    channels, *size = arrays.images[0].shape
    shape = Shape(channels, tuple(settings.patch_size or size), classes, tuple(settings.sites or ()))
    network = task.network_for(
        shape, settings.network, settings.norm, settings.dropout_rate, settings.placement, settings.scaling
    )
    load_weights(network, folder / "best.ckpt")
    return network


def images_to_judge(
    settings: RunSettings, task: Task, data: str | None, split: Split | Literal["all"]
) -> tuple[ImageSet, Arrays]:
    """Read the images of a split: of a run's own data, or of other data of the same classes; see `evaluate_run`."""
    if split != "all" and data is None and settings.fold:
        prepared = prepare(settings)
        parts = prepared.splits(settings.fold)
        if split not in parts:
            raise RunError(f"fold {settings.fold}: expected images in split {split!r}, got none. Use --split test.")
        return prepared.images, shared(settings, parts[split]) if split == "train" else parts[split]
    divide = split != "all"
    images = task.named(task.image_set(data or settings.data, settings.classes, settings.split_seed, divide=divide))
    items = images.split(split) if split != "all" else images.items
    if task.volumes:
        _check_grid(settings, images)
    arrays = task.load(images, items, settings.image_size)
    return images, shared(settings, arrays) if split == "train" and data is None else arrays


def _check_grid(settings: RunSettings, images: ImageSet) -> None:
    """Pass if volumes lie as those of the training did, or either does not say how."""
    grid = check_uniform(images)
    if grid is None or settings.spacing is None:
        return
    spacing, orientation = grid
    if orientation != settings.orientation or not np.allclose(spacing, settings.spacing, rtol=0.01, atol=0):
        raise RunError(
            f"{images.source}: expected volumes of spacing {tuple(settings.spacing)} mm in {settings.orientation}, as "
            f"the run was trained on, got {spacing} in {orientation}. Resample them; mednorm predict does so by itself."
        )


def samples(network: nn.Module, task: Task, arrays: Arrays, patch_size: list[int] | None) -> bytes:
    """Return some images, evenly spaced, with truth and prediction, as the bytes of an npz file for the page."""
    count = len(arrays.names)
    rows = sorted({step * count // SAMPLES for step in range(SAMPLES)})
    images, truths, predictions, probabilities = [], [], [], []
    with evaluation_mode(network):
        device = next(network.parameters()).device
        for row in rows:
            image = arrays.images[row]
            logits = logits_of(network, image[None].to(device), patch_size, sites=[arrays.sites[row]])
            probability = logits.softmax(1).cpu()
            images.append(_picture(image[None]))
            truths.append(_middle(arrays.targets[row][None], 1))
            predictions.append(_middle(probability.argmax(1), 1))
            if task.kind == "classification":
                probabilities.append(probability)
    content: dict[str, Any] = {
        "image": _same_size(images).numpy(),
        "truth": _same_size(truths).numpy(),
        "prediction": _same_size(predictions).numpy(),
        "name": np.array([arrays.names[row] for row in rows]),
        "site": np.array([arrays.sites[row] or "" for row in rows]),
    }
    if task.kind == "classification":
        content["probability"] = torch.cat(probabilities).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def _look(
    network: nn.Module, arrays: Arrays, judge: Judge, batch_size: int, patch_size: list[int] | None, window_batch: int
) -> None:
    device = next(network.parameters()).device
    with evaluation_mode(network):
        for images, targets, rows in evaluation_loader(arrays, batch_size):
            sites = [arrays.sites[row] for row in rows.tolist()]
            judge.update(logits_of(network, images.to(device), patch_size, window_batch, sites), targets)


def _picture(images: Tensor) -> Tensor:
    """Make (N, C, *) what a page can show: one channel or three, in the plane."""
    return _middle(images if images.shape[1] in (1, 3) else images[:, :1], 2)


def _middle(values: Tensor, axes_before: int) -> Tensor:
    """Take the middle slice along the last axis of volumes; leave what is plane already."""
    return values[..., values.shape[-1] // 2] if values.dim() == axes_before + 3 else values


def _same_size(pictures: list[Tensor]) -> Tensor:
    """Join pictures, each cut or padded with 0 to the size of the first; labels as they are."""
    if pictures[0].dim() > 2:
        height, width = pictures[0].shape[-2:]
        fits = [(0, width - picture.shape[-1], 0, height - picture.shape[-2]) for picture in pictures]
        pictures = [nn.functional.pad(picture, fit) for picture, fit in zip(pictures, fits, strict=True)]
    return torch.cat(pictures)
