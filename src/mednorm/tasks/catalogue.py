"""The tasks there are, and their presets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mednorm.data import tissue
from mednorm.errors import ConfigError
from mednorm.tasks.task import Task

_ALL_NORMS = ["none", "batch", "group", "instance"]
_EVERYTHING = {
    "norms": _ALL_NORMS,
    "regularizers": ["none", "dropout", "l1", "l2", "dropout+l2"],
    "batch_sizes": [2, 4, 8, 16, 32],
    "seeds": [0, 1, 2, 3, 4],
}
_SIZES = {"batch_sizes": [1, 2, 4, 8, 16, 32], "batch_size_norms": ["batch", "group"], "scale_learning_rate": "sqrt"}
# What the background article claims of batch normalization, and more of each than the article asks for.
_CLAIMS = {
    **_SIZES,
    "norms": ["none", "batch", "group"],
    "regularizers": ["none", "l1", "l2", "dropout_before", "dropout_last"],
    "train_shares": [0.1, 0.3, 1.0],
    "deeper": True,
    "seeds": [0, 1, 2],
}
# The family of batch normalization, where batches are small and where they are not.
_FAMILY = {
    "norms": ["batch", "renorm", "moving", "group", "ghost", "range", "domain"],
    "batch_size_norms": ["batch", "renorm", "moving", "group"],
    "scale_learning_rate": "sqrt",
}


def _norms(*norms: str, size: int, seeds: int, **others: Any) -> dict[str, Any]:
    """Compare norms alone, at one batch size."""
    alone = {"regularizers": ["none"], "batch_sizes": [size], "base_batch_size": size, "seeds": list(range(seeds))}
    return {"norms": list(norms), **alone, **others}


def _presets(base: int, common: Mapping[str, Any], **more: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Add the presets that every clinical task has: its claims, its batch sizes alone, and the small-batch family."""
    sizes = {**_SIZES, "norms": ["batch", "group"], "regularizers": ["none"], "seeds": [0, 1, 2]}
    shared = {"base_batch_size": base, **common}
    family = {**sizes, **_FAMILY, **shared} | {"batch_sizes": sorted({1, 2, base})}
    return {**more, "claims": {**_CLAIMS, **shared}, "batch-size": {**sizes, **shared}, "small-batch": family}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="tissue",
            kind="segmentation",
            main_metric="dice",
            network="unet",
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
            standardize_each=False,
            default_classes=("normal", "pneumonia"),
            presets=_presets(
                32,
                {"epochs": 3},
                quick=_norms("none", "batch", size=32, seeds=3, epochs=3),
                default=_norms(*_ALL_NORMS, size=32, seeds=3, epochs=5),
                full={**_EVERYTHING, "base_batch_size": 32, "epochs": 8},
            ),
        ),
        Task(
            name="heart",
            kind="classification",
            main_metric="auc",
            network="article_cnn",
            standardize_each=True,
            unit="patient",
            presets=_presets(
                32,
                {"epochs": 6, "folds": 5, "image_size": [48, 48]},
                quick=_norms("none", "batch", size=32, seeds=1, epochs=4, folds=5, image_size=[48, 48]),
                default=_norms("none", "batch", "group", size=32, seeds=3, epochs=6, folds=5, image_size=[48, 48]),
            ),
        ),
        Task(
            name="heart-lv",
            kind="segmentation",
            main_metric="dice",
            network="basicunet",
            standardize_each=True,
            unit="patient",
            default_classes=("background", "endocardium"),
            presets=_presets(
                8,
                {"epochs": 3, "folds": 3, "image_size": [48, 48]},
                quick=_norms("none", "batch", size=8, seeds=1, epochs=2, folds=3, image_size=[48, 48]),
                default=_norms("none", "batch", "group", size=8, seeds=3, epochs=3, folds=3, image_size=[48, 48]),
            ),
        ),
        Task(
            name="brain",
            kind="segmentation",
            main_metric="dice",
            network="basicunet",
            standardize_each=True,
            unit="patient",
            default_classes=("background", "tumour"),
            presets=_presets(
                8,
                {"epochs": 5, "image_size": [48, 48]},
                quick=_norms("none", "batch", "group", size=8, seeds=2, epochs=3, image_size=[48, 48]),
                default=_norms(*_ALL_NORMS, size=8, seeds=3, epochs=10, image_size=[64, 64]),
            ),
        ),
        Task(
            name="brain3d",
            kind="segmentation",
            main_metric="dice",
            network="basicunet",
            standardize_each=True,
            unit="patient",
            volumes=True,
            presets=_presets(
                2,
                {"epochs": 30, "batch_sizes": [1, 2, 4], "patch_size": [96, 96, 96]},
                quick=_norms("batch", "group", size=2, seeds=1, epochs=4, patch_size=[32, 32, 32], folds=2)
                | {"image_size": [80, 80, 52], "patches_per_volume": 8},
                default=_norms(*_ALL_NORMS, size=2, seeds=3, epochs=30, patch_size=[96, 96, 96]),
            ),
        ),
    )
}


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
