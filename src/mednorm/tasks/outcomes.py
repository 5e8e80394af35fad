"""What a network said about each image, its metrics, and the table that keeps it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mednorm.errors import DataError, RunError
from mednorm.tasks.bootstrap import (
    Array,
    ratio,
    weighted_auc,
    weighted_calibration_error,
    weighted_confusion,
    weighted_mean,
)
from mednorm.tasks.rows import Metrics as Metrics
from mednorm.tasks.rows import Rows, summed
from mednorm.tasks.rows import Unit as Unit
from mednorm.tasks.rows import join as join

_COUNTS = ("hits", "false_alarms", "misses")


@dataclass(frozen=True, eq=False)
class ClassificationOutcomes(Rows):
    """Probabilities and true class of each image.

    Metrics: ``auc``, one against rest, mean over classes; ``accuracy``; ``balanced_accuracy``, the mean recall of the
    classes; ``sensitivity`` and ``specificity``, of class 1 where there are two classes, else one against rest and
    mean over classes; ``calibration_error``, expected over 15 bins. A mean over classes is not defined where the
    targets lack one. The probabilities of a patient are the mean over the patient's images.

    Attributes:
        targets: class numbers, int64 ``(N,)``.
        probabilities: float64 ``(N, K)``; NaN where the output was not finite.

    """

    targets: Array
    probabilities: Array

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` returns, in that order."""
        return ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "calibration_error")

    @property
    def _finite(self) -> bool:
        return bool(np.isfinite(self.probabilities).all())

    def _columns(self) -> Mapping[str, Sequence[object]]:
        chances = {f"p_{name}": self.probabilities[:, number].tolist() for number, name in enumerate(self.classes)}
        return {"target": self.targets.tolist(), **chances}

    def _pooled(self, owner: Array, patients: tuple[str, ...]) -> Mapping[str, Array | None]:
        held = summed(np.eye(len(self.classes))[self.targets], owner, len(patients))
        for number in np.flatnonzero((held > 0).sum(1) > 1):
            labels = " and ".join(name for name, images in zip(self.classes, held[number], strict=True) if images)
            raise DataError(
                f"patient {patients[number]!r}: expected all images of a patient to be of one class, got {labels}. "
                "Correct the labels, or judge by image."
            )
        images = held.sum(1, keepdims=True)
        chances = summed(self.probabilities, owner, len(patients)) / images
        return {"targets": held.argmax(1), "probabilities": chances}

    def _estimates(self) -> Mapping[str, float]:
        import torch
        from torchmetrics.functional.classification import multiclass_auroc, multiclass_confusion_matrix

        count, targets = len(self.classes), torch.from_numpy(self.targets)
        predicted = torch.from_numpy(self.probabilities.argmax(1))
        confusion = multiclass_confusion_matrix(predicted, targets, count).numpy()[np.newaxis]
        complete = len(set(self.targets.tolist())) == count  # else there is nothing to rank
        auc = float(multiclass_auroc(torch.from_numpy(self.probabilities), targets, count)) if complete else np.nan
        gap = self._calibration_error(np.ones((1, len(self.names))))
        return {"auc": auc, "calibration_error": gap[0]} | {name: value[0] for name, value in _rates(confusion).items()}

    def _weighted(self, weights: Array) -> Mapping[str, Array]:
        count = len(self.classes)
        ranks = [weighted_auc(self.probabilities[:, k], self.targets == k, weights) for k in range(count)]
        confusion = weighted_confusion(self.targets, self.probabilities.argmax(1), count, weights)
        gap = self._calibration_error(weights)
        return {"auc": np.mean(ranks, axis=0), "calibration_error": gap} | _rates(confusion)

    def _calibration_error(self, weights: Array) -> Array:
        correct = self.probabilities.argmax(1) == self.targets
        return weighted_calibration_error(self.probabilities.max(1), correct, weights)


@dataclass(frozen=True, eq=False)
class SegmentationOutcomes(Rows):
    """Voxels of each image that were right, wrong and missed, for each class but the background.

    Metrics: ``dice`` = 2·TP/(2·TP + FP + FN) of an entry, mean over the entries whose truth holds the class, mean over
    the classes; where there are several, ``dice_CLASS`` of each; the same of ``hd95`` where distances were taken. By
    image an entry is an image. By patient the voxels of the patient's images are counted together, which is the Dice
    of the volume they are slices of, and the distance is the mean of the images that have one.

    Attributes:
        hits: true positives, float64 ``(N, K - 1)``.
        false_alarms: false positives.
        misses: false negatives.
        distances: 95 % Hausdorff distance; NaN where the truth lacks the class. None where it was not taken.
        finite: whether the outputs were numbers, bool ``(N,)``.

    """

    hits: Array
    false_alarms: Array
    misses: Array
    distances: Array | None
    finite: Array

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` returns, in that order."""
        kinds = ("dice",) if self.distances is None else ("dice", "hd95")
        each = self.classes[1:] if len(self.classes) > 2 else ()
        return tuple(name for kind in kinds for name in (kind, *(f"{kind}_{part}" for part in each)))

    @property
    def _finite(self) -> bool:
        return bool(self.finite.all())

    def _columns(self) -> Mapping[str, Sequence[object]]:
        columns: dict[str, Sequence[object]] = {"background": self.classes[:1] * len(self.names)}
        for number, name in enumerate(self.classes[1:]):
            columns |= {f"{kind}_{name}": getattr(self, kind)[:, number].tolist() for kind in _COUNTS}
            if self.distances is not None:
                columns[f"hd95_{name}"] = self.distances[:, number].tolist()
        return columns | {"finite": self.finite.tolist()}

    def _pooled(self, owner: Array, patients: tuple[str, ...]) -> Mapping[str, Array | None]:
        count = len(patients)
        pooled: dict[str, Array | None] = {kind: summed(getattr(self, kind), owner, count) for kind in _COUNTS}
        distances = self.distances
        if distances is not None:
            there = summed(~np.isnan(distances), owner, count)
            distances = ratio(summed(np.nan_to_num(distances), owner, count), there)
        return pooled | {"distances": distances, "finite": np.ones(count, dtype=bool)}

    def _estimates(self) -> Mapping[str, float]:
        return {name: scores[0] for name, scores in self._weighted(np.ones((1, len(self.names)))).items()}

    def _weighted(self, weights: Array) -> Mapping[str, Array]:
        dice = ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)
        tables = {"dice": np.where(self.hits + self.misses == 0, np.nan, dice)}
        if self.distances is not None:
            tables["hd95"] = self.distances
        scores = {}
        for kind, values in tables.items():
            each = weighted_mean(values, weights)
            known = ~np.isnan(values).all(0)  # the classes that the mean is of, in every resample
            scores[kind] = ratio(each[:, known].sum(1), np.full(len(weights), known.sum()))
            scores |= {f"{kind}_{name}": each[:, number] for number, name in enumerate(self.classes[1:])}
        return {name: scores[name] for name in self.metric_names}


Outcomes = ClassificationOutcomes | SegmentationOutcomes


def read_outcomes(path: Path) -> Outcomes:
    """Read what `to_csv` wrote.

    Raises:
        RunError: the file is missing or damaged.

    """
    try:
        text = path.read_bytes().decode("utf-8")
        if not text.endswith("\n"):
            raise ValueError("a last line that breaks off" if text else "an empty file")
        header, *table = csv.reader(io.StringIO(text, newline=""), strict=True)
        if len(set(header)) < len(header):
            raise ValueError(f"a column twice: {', '.join(header)}")
        for line, row in enumerate(table, 2):
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells in row {line} under {len(header)} names of columns")
        columns = {name: [row[number] for row in table] for number, name in enumerate(header)}
        for name in ("name", "patient", "site", *(("background",) if "finite" in columns else ("target",))):
            if name not in columns:
                raise ValueError(f"no column {name}")
        outcomes = _segmentation(columns) if "finite" in columns else _classification(columns)
        expected = ["name", "patient", "site", *outcomes._columns()]
        if header != expected:
            raise ValueError(f"the columns {', '.join(header)} instead of {', '.join(expected)}")
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise RunError(
            f"{path}: expected a table of outcomes, one row an image, got: {error}. Judge the network again."
        ) from None
    return outcomes


def _who(columns: Mapping[str, list[str]]) -> tuple[tuple[str, ...], tuple[str | None, ...], tuple[str | None, ...]]:
    patients, sites = (tuple(cell or None for cell in columns[name]) for name in ("patient", "site"))
    return tuple(columns["name"]), patients, sites


def _classification(columns: Mapping[str, list[str]]) -> ClassificationOutcomes:
    classes = tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))
    targets = np.array([int(cell) for cell in columns["target"]], dtype=np.int64)
    chances = _floats(columns, [f"p_{name}" for name in classes])
    if ((targets < 0) | (targets >= len(classes))).any():
        raise ValueError(f"targets from {targets.min()} to {targets.max()} for {len(classes)} classes")
    if (np.abs(chances.sum(1) - 1) > 1e-6).any() or (chances < 0).any():
        raise ValueError("probabilities that are negative or do not add up to 1")
    return ClassificationOutcomes(classes, *_who(columns), targets, chances)


def _segmentation(columns: Mapping[str, list[str]]) -> SegmentationOutcomes:
    foreground = [name.removeprefix("hits_") for name in columns if name.startswith("hits_")]
    background = sorted(set(columns["background"])) or ["background"]
    if not foreground or len(background) > 1:
        raise ValueError(f"{len(foreground)} columns of hits and {len(background)} names of the background")
    hits, false_alarms, misses = (_floats(columns, [f"{kind}_{name}" for name in foreground]) for kind in _COUNTS)
    if not (np.minimum(np.minimum(hits, false_alarms), misses) >= 0).all():
        raise ValueError("counts that are negative or no numbers")
    distances = (
        _floats(columns, [f"hd95_{name}" for name in foreground])
        if any(name.startswith("hd95_") for name in columns)
        else None
    )
    if not set(columns["finite"]) <= {"True", "False"}:
        raise ValueError(f"finite of {', '.join(sorted(set(columns['finite'])))}")
    finite = np.array([cell == "True" for cell in columns["finite"]], dtype=bool)
    classes = (*background, *foreground)
    return SegmentationOutcomes(classes, *_who(columns), hits, false_alarms, misses, distances, finite)


def _floats(columns: Mapping[str, list[str]], names: Sequence[str]) -> Array:
    rows = len(columns["name"])
    absent = [name for name in names if name not in columns]
    if absent:
        raise ValueError(f"no column {', '.join(absent)}")
    return np.array([[float(cell) for cell in columns[name]] for name in names]).reshape(len(names), rows).T.copy()


def _rates(confusion: Array) -> dict[str, Array]:
    """Return what follows from matrices of truth by prediction (R, K, K)."""
    total, right = confusion.sum((1, 2)), np.diagonal(confusion, axis1=1, axis2=2)
    truth, said = confusion.sum(2), confusion.sum(1)
    others = total[:, np.newaxis] - truth
    recall, rejection = ratio(right, truth), ratio(others - (said - right), others)
    counted = slice(1, 2) if confusion.shape[1] == 2 else slice(None)
    return {
        "accuracy": ratio(right.sum(1), total),
        "balanced_accuracy": recall.mean(1),
        "sensitivity": recall[:, counted].mean(1),
        "specificity": rejection[:, counted].mean(1),
    }
