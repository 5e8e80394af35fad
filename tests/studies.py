"""Small real images and small real studies for the tests of tasks, training, study and command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

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
    values = {
        "task": "lung", "network": "article_cnn", "epochs": 3, "norm": "batch", "regularizer": "none",
        "batch_size": 16, "seed": 0,
    }  # fmt: skip
    return RunSettings.model_validate(values | {"data": None if data is None else str(data)} | changed)


def write_patients(folder: Path, *, patients: int = 12, images: int = 3, size: int = 12, **left_out: bool) -> Path:
    """Write a manifest of slices with masks, labels, patients, two sites and splits; `split=False` leaves that out.

    Every second patient is ill and has the larger disc; every third is of site "south". Splits are by patient: of six
    patients one is val and one is test, of either label in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    away = np.linalg.norm(np.indices((size, size)) - (size - 1) / 2, axis=0)
    for patient in range(patients):
        split = {0: "val", 1: "val", 2: "test", 3: "test"}.get(patient % 12, "train")
        for number in range(images):
            disc = (away < size * (0.22 + 0.16 * (patient % 2))).astype(np.uint8)
            name = f"p{patient:02}-{number}"
            noise = rng.integers(0, 60, disc.shape)
            Image.fromarray((noise + 90 * disc).astype(np.uint8)).save(folder / f"{name}.png")
            Image.fromarray(disc * 255).save(folder / f"{name}-mask.png")
            cells = {"image": f"{name}.png", "mask": f"{name}-mask.png", "label": ("well", "ill")[patient % 2]}
            cells |= {"patient": f"p{patient:02}", "site": "south" if patient % 3 == 0 else "north", "split": split}
            rows.append({column: cell for column, cell in cells.items() if left_out.get(column, True)})
    return _table(folder / "manifest.csv", rows)


def write_volumes(folder: Path, splits: Sequence[str], sizes: Sequence[tuple[int, int, int]] = ((16, 16, 16),)) -> Path:
    """Write a manifest of NIfTI volumes, one a patient, with a bright ball whose mask is known."""
    rng, rows = np.random.default_rng(0), []
    for number, split in enumerate(splits):
        size = sizes[number % len(sizes)]
        away = np.linalg.norm(np.indices(size) - (np.array(size).reshape(3, 1, 1, 1) - 1) / 2, axis=0)
        ball = (away < 4 + number % 3).astype(np.uint8)
        image = (100 * ball + rng.normal(0, 10, ball.shape)).astype(np.float32)
        for name, values in (("image", image), ("mask", ball)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{name}{number}.nii.gz")
        row = {"image": f"image{number}.nii.gz", "mask": f"mask{number}.nii.gz", "patient": f"p{number}"}
        rows.append(row | ({"split": split} if split else {}))
    return _table(folder / "manifest.csv", rows)


def _table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


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
