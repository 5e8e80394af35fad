"""`mednorm.examine`: a pass over data, and what the rules say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn, optim

from mednorm.errors import ConfigError
from mednorm.examine.examination import Examination
from mednorm.examine.gap import attribute
from mednorm.examine.order import chosen, ordered
from mednorm.examine.probe import probe
from mednorm.examine.rules import RULES
from mednorm.population.batches import Batches, Prepare, device_of
from mednorm.population.judge import Metric, check_metric
from mednorm.population.layers import bare

GAP = "MN001"


def examine(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    optimizer: optim.Optimizer | None = None,
    metric: Metric | None = None,
    batch_size: int | None = None,
    devices: int | None = None,
    image: str = "image",
    label: str | None = "label",
    site: str = "site",
    patient: str | None = "patient",
    prepare: Prepare | None = None,
    limit: int | None = None,
    select: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    try_step: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Examination:
    """Say what is wrong with the normalization of a network, layer by layer, how it shows, and what mends it.

    The network sees the images in evaluation mode, and some of them again with the statistics of the batch in place of
    the running ones. It is bit-identical afterwards, also when the loader raises. Memory grows with nothing but the
    patients' names. It takes about two evaluations; where MN001 finds something, up to 32 batches more, by which that
    is attributed to layers: leave it out with ``ignore="MN001"`` where time is short.

    Args:
        model: any network; its layers of batch normalization are found by their type.
        loader: gives batches, as often as it is iterated: tensors, tuples of images and labels, dictionaries, or lists
            of dictionaries, as MONAI's patches come. In a random order, so that a batch is not of one patient.
        optimizer: of the training, for weight decay.
        metric: from outputs and labels of one batch, larger is better; compared between the evaluation modes.
        batch_size: of the training, on each device; by default the largest batch that the loader gives.
        devices: that a training batch is spread over; by default as many as there are processes.
        image: key of the images in a dictionary; several keys, with commas between, for several inputs, which a tuple
            cannot give.
        label: key of the labels, None for none.
        site: key of the hospitals or scanners.
        patient: key of the patients, None for none. Images of one are not independent: where they are known, what is
            said of a site rests on as many patients, and otherwise on as many images.
        prepare: turns what the loader gives into one of those forms first.
        limit: look at so many batches at most.
        select: codes or names of the rules to ask, such as ``"MN003"``; by default all.
        ignore: likewise, of those not to ask.
        try_step: also try one training step on a copy, which tells layers that update twice or never.
        progress: called with the number of batches that are done.

    Returns:
        The findings, the diagnosis first.

    Raises:
        ConfigError: a model or metric that is none, a network of TorchScript, a size below 1, a rule that does not
            exist, or a loader that cannot be read again.
        DataError: the loader gives no batch, one of an unknown form, or one without images.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> found = examine(network, [torch.randn(8, 1, 16, 16) for _ in range(4)])  # never trained
        >>> found.findings[0].code, found.ok
        ('MN002', False)

    """
    rules = chosen(RULES, select, ignore)
    bare(model, "examine")  # refuses what is none
    for name, value in (("batch_size", batch_size), ("devices", devices)):
        if value is not None and value < 1:
            raise ConfigError(f"examine: expected {name} to be at least 1 or None, got {value!r}.")
    check_metric(metric, "examine")
    batches = Batches(
        loader,
        device_of(model),
        image=image,
        label=label,
        site=site,
        patient=patient,
        prepare=prepare,
        limit=limit,
    )
    probed = probe(
        model,
        batches,
        optimizer=optimizer,
        metric=metric,
        batch_size=batch_size,
        devices=devices,
        try_step=try_step,
        progress=progress,
    )
    findings = [finding for rule in rules for finding in rule.check(probed)]
    if any(finding.code == GAP for finding in findings):  # which layers it is from takes passes of its own
        probed = attribute(model, batches, probed)
        findings = [finding for rule in rules for finding in rule.check(probed)]
    return Examination(probed, ordered(findings, probed, rules))
