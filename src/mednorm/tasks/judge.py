"""How outputs are judged: a loss to train with and metrics to report, for each kind of task."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mednorm.data import Arrays
from mednorm.errors import DataError
from mednorm.tasks.outcomes import ClassificationOutcomes, Outcomes, SegmentationOutcomes, Unit
from mednorm.tasks.outcomes import Metrics as Metrics

_Who = tuple[tuple[str, ...], tuple[str | None, ...], tuple[str | None, ...]]


class Judge(Protocol):
    """Collects batches of network outputs and says how good they were."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch: logits (N, K, *) and targets (N, *)."""

    def compute(self) -> Metrics:
        """Return every metric over all batches since the last reset; None where it is not defined."""

    def reset(self) -> None:
        """Forget all batches."""

    def outcomes(self) -> Outcomes:
        """Return what was said about each image since the last reset."""


class ClassificationJudge:
    """The metrics of `ClassificationOutcomes`, from logits.

    All are None where an output is NaN or infinite: argmax would call that class 0, and a network that diverged would
    look as good as chance.

    Args:
        classes: name of every class, in the order of the numbers.
        rows: names, patients and sites of the images, in the order in which they will come; without it they are
            numbered, and nothing more is known of them.
        unit: "patient" to pool the images of each patient in `compute`; images, where a patient is unknown.

    Example:
        >>> judge = ClassificationJudge(("normal", "pneumonia"))
        >>> judge.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> judge.compute()["auc"]
        1.0

    """

    def __init__(self, classes: tuple[str, ...], rows: Arrays | None = None, unit: Unit = "image") -> None:
        self._classes = classes
        self._rows = rows
        self._unit = unit
        self._probabilities: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits (N, K) and labels (N,)."""
        logits = outputs.detach().cpu().double()  # in float32 confident probabilities tie, and the AUC sees no order
        finite = logits.isfinite().all(1, keepdim=True)
        self._probabilities.append(logits.softmax(1).masked_fill(~finite, torch.nan))
        self._targets.append(targets.cpu())

    def compute(self) -> Metrics:
        """Return every metric."""
        return self.outcomes().metrics(self._unit)

    def reset(self) -> None:
        """Forget all batches."""
        self._probabilities.clear()
        self._targets.clear()

    def outcomes(self) -> ClassificationOutcomes:
        """Return the probabilities and the true class of each image.

        Raises:
            DataError: more images came than `rows` names.

        """
        probabilities = torch.cat([torch.empty(0, len(self._classes), dtype=torch.float64), *self._probabilities])
        targets = torch.cat([torch.empty(0, dtype=torch.int64), *self._targets])
        who = _who(self._rows, len(targets))
        return ClassificationOutcomes(self._classes, *who, targets.numpy(), probabilities.numpy())


class SegmentationJudge:
    """The metrics of `SegmentationOutcomes`, from logits.

    An image without a class in its truth says nothing about that class and is left out of its mean. All metrics are
    None where an output is NaN or infinite, as in `ClassificationJudge`.

    Args:
        classes: name of every class, the background first.
        rows: names, patients, sites and, where there are some, spacings of the images, as in `ClassificationJudge`.
        unit: "patient" to pool the images of each patient in `compute`; images, where a patient is unknown.
        distances: also take the 95 % Hausdorff distance of each image and class, in mm where the spacing is known and
            in voxels where not. It takes many times as long as the Dice. A class that is missed altogether has the
            largest distance there can be, from one corner of the image to the opposite one.

    """

    def __init__(
        self, classes: tuple[str, ...], rows: Arrays | None = None, unit: Unit = "image", distances: bool = False
    ) -> None:
        self._classes = classes
        self._rows = rows
        self._unit = unit
        self._measured = distances
        self.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits (N, K, *) and masks (N, *)."""
        from monai.metrics import get_confusion_matrix
        from monai.networks.utils import one_hot

        chosen = outputs.detach().max(1).indices  # on a CPU ten times faster than argmax
        predicted, truth = (
            one_hot(numbers.unsqueeze(1), len(self._classes)) for numbers in (chosen, targets.to(chosen.device))
        )
        # Counts of all images at once; MONAI's DiceMetric gives the same and walks over images and classes for it.
        counts = get_confusion_matrix(predicted, truth, include_background=False).cpu()
        if self._measured:
            self._distances.extend(
                _distances(self._spacing(len(self._finite) + row), *pair)
                for row, pair in enumerate(zip(predicted[:, 1:].cpu(), truth[:, 1:].cpu(), strict=True))
            )
        self._counts.append(counts.double())
        self._finite.extend(outputs.detach().flatten(1).isfinite().all(1).tolist())

    def compute(self) -> Metrics:
        """Return every metric."""
        return self.outcomes().metrics(self._unit)

    def reset(self) -> None:
        """Forget all batches."""
        self._counts: list[Tensor] = []
        self._finite: list[bool] = []
        self._distances: list[list[float]] = []

    def outcomes(self) -> SegmentationOutcomes:
        """Return the counts, and the distances if they were asked for, of each image.

        Raises:
            DataError: more images came than `rows` names.

        """
        foreground = len(self._classes) - 1
        counts = torch.cat([torch.empty(0, foreground, 4, dtype=torch.float64), *self._counts]).numpy()
        measured = np.array(self._distances, dtype=float).reshape(-1, foreground) if self._measured else None
        hits, false_alarms, _, misses = np.moveaxis(counts, -1, 0)
        who = _who(self._rows, len(counts))
        finite = np.array(self._finite, dtype=bool)
        return SegmentationOutcomes(self._classes, *who, hits, false_alarms, misses, measured, finite)

    def _spacing(self, row: int) -> tuple[float, ...] | None:
        spacings = getattr(self._rows, "spacings", None)
        return spacings[row] if spacings is not None and row < len(spacings) else None


def classification_loss() -> nn.Module:
    """Cross-entropy of logits (N, K) and labels (N,)."""
    return nn.CrossEntropyLoss()


class SegmentationLoss(nn.Module):
    """Dice plus cross-entropy of logits (N, K, *) and masks (N, *), as MONAI defines them."""

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceCELoss

        self.loss = DiceCELoss(softmax=True, to_onehot_y=True)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the batch."""
        loss: Tensor = self.loss(outputs, targets.unsqueeze(1))
        return loss


def _who(rows: Arrays | None, count: int) -> _Who:
    """Return names, patients and sites of the first images."""
    if rows is None:
        return tuple(map(str, range(count))), (None,) * count, (None,) * count
    if count > len(rows.names):
        raise DataError(f"judge: expected the {len(rows.names)} images that rows names, got {count}. Reset it between.")
    return rows.names[:count], rows.patients[:count], rows.sites[:count]


def _distances(spacing: tuple[float, ...] | None, predicted: Tensor, truth: Tensor) -> list[float]:
    """Return the 95 % Hausdorff distance of each class of one image (K, *); NaN where the truth lacks it."""
    from monai.metrics import compute_hausdorff_distance

    steps = spacing or (1.0,) * (truth.dim() - 1)
    farthest = float(np.linalg.norm([(size - 1) * step for size, step in zip(truth.shape[1:], steps, strict=True)]))
    distances = []
    for said, true in zip(predicted, truth, strict=True):
        distance = farthest if true.any() else np.nan
        if true.any() and said.any():
            pair = said[np.newaxis, np.newaxis], true[np.newaxis, np.newaxis]
            with warnings.catch_warnings():
                # MONAI 1.5 and 1.6 call a function of their own with an argument that they deprecate.
                warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
                distance = float(compute_hausdorff_distance(*pair, True, percentile=95, spacing=steps))
        distances.append(distance)
    return distances
