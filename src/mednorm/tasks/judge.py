"""How outputs are judged: a loss to train with and metrics to report, for each kind of task."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Metrics = dict[str, float | None]


class Judge(Protocol):
    """Collects batches of network outputs and says how good they were."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch: logits (N, K, *) and targets (N, *)."""

    def compute(self) -> Metrics:
        """Return every metric over all batches since the last reset; None where it is not defined."""

    def reset(self) -> None:
        """Forget all batches."""


class ClassificationJudge:
    """AUC (one against rest, mean over classes) and accuracy.

    AUC is None where the targets lack a class: there is nothing to rank. Both are None where an output is NaN or
    infinite: argmax would call that class 0, and a network that diverged would look as good as chance.
    """

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

        self._accuracy = MulticlassAccuracy(classes, average="micro")
        self._auc = MulticlassAUROC(classes)
        self._seen: set[int] = set()
        self._finite = True

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits (N, K) and labels (N,)."""
        self._finite = self._finite and bool(outputs.isfinite().all())
        probabilities = outputs.detach().float().softmax(1).cpu()
        targets = targets.cpu()
        self._accuracy.update(probabilities, targets)
        self._auc.update(probabilities, targets)
        self._seen.update(targets.unique().tolist())

    def compute(self) -> Metrics:
        """Return auc and accuracy."""
        if not self._seen or not self._finite:
            return {"auc": None, "accuracy": None}
        auc = _number(self._auc.compute()) if len(self._seen) == self._auc.num_classes else None
        return {"auc": auc, "accuracy": _number(self._accuracy.compute())}

    def reset(self) -> None:
        """Forget all batches."""
        self._accuracy.reset()
        self._auc.reset()
        self._seen.clear()
        self._finite = True


class SegmentationJudge:
    """Dice of each class but the background, mean over the images that contain it, and their mean.

    Dice is 2·TP/(2·TP + FP + FN) of an image's voxels. An image without a class in its truth says nothing about that
    class's Dice and is left out of its mean. All are None where an output is NaN or infinite, as in
    `ClassificationJudge`.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._dice: list[Tensor] = []
        self._finite = True

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits (N, K, *) and masks (N, *)."""
        from monai.metrics import get_confusion_matrix
        from monai.networks.utils import one_hot

        self._finite = self._finite and bool(outputs.isfinite().all())
        chosen = outputs.detach().max(1).indices  # on a CPU ten times faster than argmax
        predicted, truth = (one_hot(numbers.unsqueeze(1), len(self._classes)) for numbers in (chosen, targets))
        # Counts of all images at once; MONAI's DiceMetric gives the same and walks over images and classes for it.
        counts = get_confusion_matrix(predicted, truth, include_background=False).cpu()
        hits, false_alarms, _, misses = counts.unbind(-1)
        dice = 2 * hits / (2 * hits + false_alarms + misses)
        self._dice.append(dice.masked_fill(hits + misses == 0, torch.nan))

    def compute(self) -> Metrics:
        """Return dice_CLASS for each class in the foreground, and dice, their mean."""
        names = [f"dice_{name}" for name in self._classes[1:]]
        each: list[float | None] = [None] * len(names)
        if self._finite and self._dice:
            each = [_number(mean) for mean in torch.cat(self._dice).double().nanmean(0)]
        defined = [value for value in each if value is not None]
        mean = sum(defined) / len(defined) if defined else None
        return {"dice": mean} | (dict(zip(names, each, strict=True)) if len(names) > 1 else {})

    def reset(self) -> None:
        """Forget all batches."""
        self._dice.clear()
        self._finite = True


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


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
