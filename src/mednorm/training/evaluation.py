"""Judging a trained network."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mednorm.data import Arrays, Split
from mednorm.tasks import Task, find_task
from mednorm.tasks.judge import Judge, Metrics
from mednorm.tasks.networks import Shape
from mednorm.training.batches import evaluation_loader
from mednorm.training.disk import load_settings, load_weights

SAMPLES = 6


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode without gradients, and give every module its own mode back whatever happens."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(network: nn.Module, arrays: Arrays, judge: Judge) -> Metrics:
    """Judge a network on every image of a split, in evaluation mode."""
    device = next(network.parameters()).device
    with evaluation_mode(network):
        for images, targets in evaluation_loader(arrays):
            judge.update(network(images.to(device)), targets)
    return judge.compute()


def evaluate_run(folder: Path, data: str | None, split: Split | Literal["all"]) -> tuple[int, Metrics]:
    """Judge a trained run on its own data or on other data of the same classes.

    Images of another size than those of the training are resampled to it.

    Args:
        folder: the run's folder.
        data: a .npz, a manifest.csv or its folder; None for the run's own.
        split: "train", "val", "test", or "all" for every image.

    Returns:
        How many images there were, and the metrics.

    Raises:
        RunError: not a run, one without usable weights, or one whose network takes other channels than these.
        DataError: the data cannot be used.

    """
    settings = load_settings(folder)
    task = find_task(settings.task)
    images = task.image_set(data or settings.data, settings.classes, settings.split_seed, divide=split != "all")
    if split == "all":
        images = replace(images, items=tuple(replace(item, split="test") for item in images.items))
    arrays = images.load("test" if split == "all" else split, size=settings.image_size)
    channels, *size = arrays.images.shape[1:]
    network = task.network_for(Shape(channels, tuple(size), len(images.classes)), settings.norm, settings.dropout_rate)
    load_weights(network, folder / "best.ckpt")
    return len(arrays.names), evaluate(network, arrays, task.judge(images.classes))


def samples(network: nn.Module, task: Task, arrays: Arrays) -> bytes:
    """Return some images, evenly spaced, with truth and prediction, as the bytes of an npz file for the page."""
    count = len(arrays.names)
    rows = sorted({step * count // SAMPLES for step in range(SAMPLES)})
    images = arrays.images[rows]
    with evaluation_mode(network):
        probability = network(images.to(next(network.parameters()).device)).softmax(1).cpu()
    content: dict[str, Any] = {
        "image": _picture(images).numpy(),
        "truth": _middle(arrays.targets[rows], 1).numpy(),
        "prediction": _middle(probability.argmax(1), 1).numpy(),
        "name": np.array([arrays.names[row] for row in rows]),
        "site": np.array([arrays.sites[row] or "" for row in rows]),
    }
    if task.kind == "classification":
        content["probability"] = probability.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def _picture(images: Tensor) -> Tensor:
    """Make (N, C, *) what a page can show: one channel or three, in the plane."""
    return _middle(images if images.shape[1] in (1, 3) else images[:, :1], 2)


def _middle(values: Tensor, axes_before: int) -> Tensor:
    """Take the middle slice along the last axis of volumes; leave what is plane already."""
    return values[..., values.shape[-1] // 2] if values.dim() == axes_before + 3 else values
