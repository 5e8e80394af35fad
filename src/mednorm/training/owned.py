"""A network of the user's own with its weights, and images for it: what the command line examines beside runs."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mednorm.data import Split
from mednorm.errors import ConfigError, MissingExtraError, RunError
from mednorm.population.judge import Metric
from mednorm.tasks import find_task
from mednorm.tasks.own import current_folder_searched, own_object
from mednorm.tasks.scaling import StandardizeByTraining, StandardizeEach
from mednorm.training.examined import ImageBatches, PatchBatches, metric_of
from mednorm.training.patches import patch_loader
from mednorm.training.settings import PATCHES_PER_VOLUME

_DAMAGE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError)


def own_model(name: str, weights: Path | None = None) -> nn.Module:
    """Make the network that ``package.module:name`` is, or that it returns when it is called without arguments.

    Args:
        name: what to import; the current folder is searched as well.
        weights: a state_dict to load, in a .safetensors file or one of `torch.save`, of which tensors and plain values
            alone are read; it may lie under the key ``state_dict``, and have one prefix before all names, as
            Lightning's have.

    Raises:
        ConfigError: it is not there, cannot be called so, or is no network.
        RunError: the weights are missing, damaged, or of another network.

    """
    model = _called(name, own_object(name, "model"), "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name}: expected a torch.nn.Module, got a {type(model).__name__}. Return one.")
    if weights is not None:
        _load(model, weights)
    return model


def own_model_and_loader(
    name: str,
    weights: Path | None,
    data: str | None,
    task: str | None,
    split: Split | Literal["all"] | None,
    batch_size: int | None,
    patch_size: Sequence[int] | None = None,
) -> tuple[nn.Module, Iterable[Any], Metric | None]:
    """Return a network of the user's own, batches for it, and the metric where the task is known.

    Args:
        name: of the network; see `own_model`.
        weights: to load into it.
        data: ``package.module:loader``, or images that a task reads.
        task: that reads them.
        split: which of them; "test" unless given.
        batch_size: of the training, for a task's images; 8 where it is not known.
        patch_size: of the training, for a task of volumes, in voxels.

    Raises:
        ConfigError: neither a loader nor images of a task, or both; volumes without a patch size, or slices with one.

    """
    model = own_model(name, weights)
    if data is not None and ":" in data and not Path(data).exists():
        for option, value in (("--task", task), ("--split", split), ("--patch-size", patch_size)):
            if value is not None:
                raise ConfigError(
                    f"{option}: expected images to read, got --data {data!r}, a loader. Leave {option} out."
                )
        return model, own_loader(data), None
    if task is None:
        raise ConfigError(
            f"{name}: expected --data package.module:loader, or --data PATH with --task that says how to read it, got "
            f"{'no data' if data is None else f'--data {data} alone'}."
        )
    return model, *task_loader(task, data, split or "test", batch_size or 8, patch_size)


def own_loader(name: str) -> Iterable[Any]:
    """Return the loader that ``package.module:name`` is, or that it returns when it is called without arguments.

    Raises:
        ConfigError: it is not there, cannot be called so, or gives nothing to iterate.

    """
    loader = _called(name, own_object(name, "data"), "data")
    if not isinstance(loader, Iterable):
        raise ConfigError(f"data {name}: expected a loader of batches, got a {type(loader).__name__}. Return one.")
    return loader


def task_loader(
    task_name: str,
    data: str | None,
    split: Split | Literal["all"],
    batch_size: int,
    patch_size: Sequence[int] | None = None,
) -> tuple[ImageBatches | PatchBatches, Metric]:
    """Return batches of a task's images, scaled as the task's own networks see them, and the task's metric.

    Raises:
        ConfigError: a task of volumes without the size of patches, or of slices with one.
        DataError: the data cannot be used.

    """
    task = find_task(task_name)
    if task.volumes != (patch_size is not None):
        expected, got = ("a size such as 96,96,96", "none") if task.volumes else ("none", f"{patch_size}")
        raise ConfigError(f"--patch-size: expected {expected} for --task {task_name}, got {got}.")
    images = task.named(task.image_set(data, None, 0, divide=split != "all"))
    items = images.items if split == "all" else images.split(split)
    arrays = task.load(images, items, None)
    scaling: nn.Module = StandardizeEach()
    if not task.standardize_each:
        scaling = StandardizeByTraining(arrays.images[0].shape[0])
        known = [item for item in images.items if item.split == "train"] or items
        scaling.fit(task.load(images, known, None).images)
    metric = metric_of(task, images.classes)
    if patch_size is not None:
        steps = -(-len(arrays.names) * PATCHES_PER_VOLUME // batch_size)
        return PatchBatches(patch_loader(arrays, scaling, patch_size, batch_size, 0, steps), arrays), metric
    assert isinstance(arrays.images, Tensor)
    with torch.no_grad():
        scaled = replace(arrays, images=scaling(arrays.images))
    return ImageBatches(scaled, batch_size), metric


def _called(name: str, value: Any, what: str) -> Any:
    """Call a factory; what is a network or a loader already is taken as it is."""
    if isinstance(value, nn.Module) or (isinstance(value, Iterable) and not isinstance(value, type)):
        return value
    if not callable(value):
        raise ConfigError(f"{what} {name}: expected a function, got a {type(value).__name__}. Name one.")
    try:
        with current_folder_searched():
            return value()
    except Exception as error:
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ConfigError(f"{what} {name}: calling it without arguments raised {told}.") from None


def _load(model: nn.Module, path: Path) -> None:
    weights = _read(path)
    wanted = set(model.state_dict())
    prefix = next(iter(weights), "").split(".")[0] + "."
    if not wanted & set(weights) and all(key.startswith(prefix) for key in weights):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: expected the weights of {type(model).__name__}, got: {reason}") from None


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise RunError(f"{path}: expected a file of weights, found none. Correct --weights.")
    if path.suffix == ".safetensors":
        try:
            reader = importlib.import_module("safetensors.torch")
        except ModuleNotFoundError:
            raise MissingExtraError(f"{path}: reading it needs safetensors. Run: pip install safetensors") from None
        loaded: Mapping[str, Tensor] = reader.load_file(path)
        return loaded
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{path}: expected tensors saved by torch.save(model.state_dict(), …), got: {reason}") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RunError(f"{path}: expected a state_dict, got a {type(content).__name__}. Save model.state_dict().")
    return content
