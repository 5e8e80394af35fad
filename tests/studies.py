"""Small real images and small real studies for the tests of tasks, training, study and command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mednorm.tasks import find_task
from mednorm.training.settings import RunSettings

# Of every one of these a run of the same settings has another value each time.
MEASURED = {"seconds", "seconds_per_step", "seconds_to_target", "peak_memory_mb"}


def write_npz(path: Path, *, train: int = 48, val: int = 16, test: int = 20, size: int = 12, seed: int = 0) -> Path:
    """Write noise in the layout of MedMNIST; the second of two classes is a little brighter in the middle."""
    rng = np.random.default_rng(seed)
    content = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 160, (count, size, size))
        middle = slice(size // 3, size - size // 3)
        images[:, middle, middle] += 25 * labels[:, None, None]
        content |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(path, **content)
    return path


def run_settings(data: Path | None = None, **changed: Any) -> RunSettings:
    """Make the settings of one small run on the lung task."""
    values = {"task": "lung", "epochs": 3, "norm": "batch", "regularizer": "none", "batch_size": 16, "seed": 0}
    return RunSettings.model_validate(values | {"data": None if data is None else str(data)} | changed)


def prepared_lung(data: Path):
    """Read the images of a small lung set."""
    return find_task("lung").prepare(str(data))


def figures(value: Any) -> Any:
    """Leave out of a results.json what no two studies share: times, memory, the machine, and sentences on time."""
    if isinstance(value, list):
        return [figures(each) for each in value if not (isinstance(each, dict) and _on_time(each))]
    if isinstance(value, dict):
        return {key: figures(inner) for key, inner in value.items() if key not in MEASURED | {"environment"}}
    return value


def _on_time(record: dict[str, Any]) -> bool:
    """Whether a statement speaks of seconds."""
    return record.get("topic") == "cost" or (record.get("topic") == "speed" and ": seconds " in record["text"])


def read_figures(folder: Path) -> Any:
    """Read the figures of a study that must not change from one time to the next."""
    return figures(json.loads((folder / "results.json").read_text(encoding="utf-8")))
