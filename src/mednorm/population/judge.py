"""How well a network does on some images: by a metric where there are labels, and by its own certainty."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError, DataError
from mednorm.guards import random_state_kept
from mednorm.layers.tracking import ProcessGroup
from mednorm.population.batches import Batch, call, device_of
from mednorm.population.processes import summed, together

Metric = Callable[[Any, Any], float]
Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Judged:
    """What some images show of a network.

    Attributes:
        metric: mean over the images; None without one.
        entropy: mean over images, and voxels where each is classified, in nats; None where it was not asked for.
        majority: share of the most frequent class among those predicted; likewise.

    """

    metric: float | None = None
    entropy: float | None = None
    majority: float | None = None


def judge(
    network: nn.Module,
    batches: Iterable[Batch],
    who: str,
    *,
    metric: Metric | None = None,
    classes: bool = False,
    activation: Activation | None = None,
    group: ProcessGroup = None,
) -> Judged:
    """Judge a network in the mode that it is in.

    Args:
        network: the network.
        batches: the images, with labels where there is a metric.
        who: the caller, for messages.
        metric: from outputs and labels of one batch; batches weigh by their images.
        classes: also look at entropy and majority of what is predicted.
        activation: as `entropy_of`.
        group: processes over whose images all of it is.

    Raises:
        ConfigError: the outputs are no logits, where `classes` are asked for; or the metric returns no number.
        DataError: a batch is without labels, or the metric of one is NaN.

    """
    device = device_of(network)
    sums = torch.zeros(3, dtype=torch.float64)  # images, metric, entropy
    votes = torch.zeros(0, dtype=torch.float64)

    def run() -> None:
        nonlocal votes
        with random_state_kept(network):
            for number, batch in enumerate(batches, start=1):
                outputs = call(network, batch)
                value = 0.0 if metric is None else _measured(metric, outputs, batch.labels, number, who)
                sums.add_(torch.tensor([batch.size, batch.size * value, 0], dtype=torch.float64))
                if classes:
                    sums[2] += batch.size * float(entropy_of(outputs, activation, who).double().mean())
                    new = _votes(outputs, activation)
                    votes = new if len(votes) == 0 else votes + new

    together(run, group, device)
    images, total, entropy, *counts = summed([*sums.tolist(), *votes.tolist()], group, device)
    return Judged(
        None if metric is None else total / images,
        entropy / images if classes else None,
        max(counts) / sum(counts) if classes else None,
    )


def entropy_of(outputs: Any, activation: Activation | None, who: str) -> Tensor:
    r"""Return the entropy of each prediction, in nats: of each image, or each voxel.

    .. math:: H = -\sum_k p_k \ln p_k

    Args:
        outputs: logits ``(N, K, *)``.
        activation: that makes probabilities of them: ``"softmax"``, or ``"sigmoid"`` where each channel is a question
            of its own, whose entropies are averaged; None for sigmoid of one channel, softmax of several.
        who: the caller, for messages.

    Raises:
        ConfigError: they are no such tensor.

    Example:
        >>> entropy_of(torch.zeros(1, 2), None, "adapt")  # ln 2
        tensor([0.6931])

    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or not outputs.is_floating_point():
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            f"{who}: expected the network to give logits (N, classes, *), got {got}. Wrap it in a module that returns "
            "them alone."
        )
    logits = outputs if outputs.dtype == torch.float64 else outputs.float()
    if _is_softmax(outputs, activation):
        logs = logits.log_softmax(1)
        return -(logs.exp() * logs).sum(1)
    each = nn.functional.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none")
    return each.mean(1)


def check_metric(metric: Metric | None, who: str) -> None:
    """Refuse a metric that is no function."""
    if metric is not None and not callable(metric):
        raise ConfigError(f"{who}: expected metric to be a function of outputs and labels, got {metric!r}.")


def number_of(metric: Metric, outputs: Any, labels: Any, who: str) -> float:
    """Return what a metric says of one batch, NaN included.

    Raises:
        ConfigError: it returned something else than one number.

    """
    value = metric(outputs, labels)
    shape = tuple(getattr(value, "shape", ()))
    if isinstance(value, SupportsFloat) and math.prod(shape) == 1:
        return float(value)
    got = f"a {type(value).__name__} of shape {shape}" if shape else reprlib.repr(value)
    raise ConfigError(f"{who}: expected metric to return one number for a batch, got {got}. Make it a float.")


def _is_softmax(outputs: Tensor, activation: Activation | None) -> bool:
    return activation == "softmax" or (activation is None and outputs.shape[1] > 1)


def _votes(outputs: Tensor, activation: Activation | None) -> Tensor:
    """Count the predictions of each class."""
    if _is_softmax(outputs, activation):
        return outputs.argmax(1).flatten().bincount(minlength=outputs.shape[1]).double().cpu()
    yes = (outputs > 0).sum()
    return torch.stack([yes, outputs.numel() - yes]).double().cpu()


def _measured(metric: Metric, outputs: Any, labels: Any, number: int, who: str) -> float:
    if labels is None:
        raise DataError(f"{who}: expected labels to compute the metric with, got none in batch {number}.")
    if isinstance(labels, Tensor) and isinstance(outputs, Tensor):
        labels = labels.as_subclass(Tensor).to(outputs.device)
    value = number_of(metric, outputs, labels, who)
    if value != value:
        raise DataError(f"{who}: expected the metric to give a number, got {value!r} of batch {number}.")
    return value
