"""`mednorm.recalibrate`: the running statistics of a network become those of a population of images, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers.tracking import ProcessGroup, is_process_group
from mednorm.population.batches import Batches, Prepare, device_of
from mednorm.population.judge import Judged, Metric, check_metric, judge
from mednorm.population.layers import bare
from mednorm.population.renewal import Order, Plan, renewed
from mednorm.population.report import RecalibrationReport
from mednorm.surgery.where import Where


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    method: Order = "sequential",
    *,
    where: Where | None = None,
    validation: Iterable[Any] | None = None,
    metric: Metric | None = None,
    image: str = "image",
    label: str | None = "label",
    site: str = "site",
    prepare: Prepare | None = None,
    limit: int | None = None,
    device: torch.device | str | None = None,
    process_group: ProcessGroup = None,
    progress: Callable[[int], None] | None = None,
) -> RecalibrationReport:
    r"""Give batch normalization the exact statistics of a population of images, in the place of its moving averages.

    .. math:: r_\mu = \mu, \qquad r_{\sigma^2} = \frac{n}{n-1}\,\sigma^2

    with :math:`\mu,\sigma^2` over all n values of a channel in all images: `Moments` pooled in float64, batches of any
    sizes, so that the variance is the *total* one. The average over batches that training and
    ``torch.optim.swa_utils.update_bn`` keep lacks the variance between batches, most of it where a batch is one volume.

    - ``"sequential"``: what reaches a layer is measured with all layers before it recalibrated already, so that the
      statistics are those that evaluation will see. One pass for each layer, which ends there, and two over the whole
      network: about half as many passes as there are layers. Keep images in memory that are slow to read.
    - ``"batch"``: three passes. In the second every layer normalizes with the statistics of the batch, as in training,
      and what reaches the others depends on the batches: it wants large ones. Precise-BN but for the total variance.

    Nothing else changes: dropout is off meanwhile, modes and the state of random generators come back, and after an
    exception, a NaN voxel or Ctrl-C the network is bit-identical to what it was. ``num_batches_tracked`` becomes the
    number of batches where momentum is None, so that training goes on as if it had averaged these; otherwise it is
    raised to that number at least, since schedules of `BatchRenorm` go by it.

    Layers are found by type, at every rank: PyTorch's, ours, ``SyncBatchNorm``. Those that `mednorm.freeze` holds and
    `FrozenBatchNorm` are left. A layer that is called several times gets the statistics of all its calls together, as
    it stood before. `DomainBatchNorm` gets those of each site that `loader` names, and the pooled ones.
    `RangeBatchNorm` gets a spread by the range of batches, as it has in training. Values outside of a layer's mask do
    not count.

    Args:
        model: the network.
        loader: gives batches, as often as it is iterated: tensors, tuples of images and labels, dictionaries, or lists
            of dictionaries, as MONAI's patches come. Without augmentation: these are the images to be right for.
        method: see above.
        where: which layers: a pattern such as ``"encoder.*"``, several, or a function of name and module.
        validation: images with labels, in the same form: the change stays only where it does not lower the metric.
        metric: from outputs and labels of one batch, larger is better; batches weigh by their images.
        image: key of the images in a dictionary; several keys, with commas between, for several inputs.
        label: key of the labels.
        site: key of the hospitals or scanners.
        prepare: turns what the loader gives into one of those forms first.
        limit: look at so many batches at most.
        device: that images are moved to; by default where the network is.
        process_group: pool the images of all these processes, "world" for all there are: each calls this with its own
            share, and all get the same statistics.
        progress: called with the number of batches of `loader` that are done, in all passes.

    Returns:
        How far each layer was from the population before and is after; `rollback()` undoes it.

    Raises:
        ConfigError: an argument is unknown or contradicts another, `where` names no module, or a metric is no number.
        DataError: no batch, an empty one, one of an unknown form, or values that are not finite, with the layer they
            reach.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> images = 5 + 2 * torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> report = recalibrate(network, images.split(16))
        >>> [round(value.item(), 2) for value in (network[0].running_mean, network[0].running_var)]
        [4.98, 4.0]
        >>> network[0].running_var.item() == images.double().var().float().item()
        True
        >>> report.rollback()
        >>> network[0].running_mean
        tensor([0.])

    Note:
        Before a network goes to where its images come from: on training images after few updates, after weights were
        averaged, or after fine-tuning with batches of one volume. For a site that it was not trained on see
        `mednorm.adapt`.

    Reference:
        Wu & Johnson (2021), "Rethinking 'Batch' in BatchNorm", section 3, with the average of variances there; Izmailov
        et al. (2018), "Averaging Weights Leads to Wider Optima and Better Generalization", for statistics after SWA.

    """
    check_common("recalibrate", validation, metric, process_group, "validation")
    network = bare(model, "recalibrate")
    read = partial(Batches, device=device or device_of(network), image=image, label=label, site=site, prepare=prepare)
    judging = None
    if validation is not None:
        judging = partial(judge, network, read(validation), "recalibrate", metric=metric, group=process_group)
    plan = Plan(
        "recalibrate",
        method,
        where,
        judge=judging,
        keep=not_worse,
        group=process_group,
        progress=progress,
    )
    done = renewed(network, read(loader, limit=limit), plan)
    metrics = both(done.judged, "metric")
    return RecalibrationReport(method, done.layers, done.left, done.images, done.batches, metrics, done.change)


def not_worse(before: Judged, after: Judged) -> bool:
    """Tell whether a change may stay."""
    return before.metric is None or after.metric is None or after.metric >= before.metric


def both(judged: tuple[Judged, Judged] | None, what: str) -> tuple[float, float] | None:
    """Return one figure before and after, where it was measured."""
    if judged is None or getattr(judged[0], what) is None:
        return None
    return getattr(judged[0], what), getattr(judged[1], what)


def check_common(
    who: str, images: Iterable[Any] | None, metric: Metric | None, process_group: ProcessGroup, name: str
) -> None:
    """Check what both functions take."""
    if metric is not None and images is None:
        raise ConfigError(f"{who}: expected {name}=… with the images to compute the metric on, got a metric alone.")
    check_metric(metric, who)
    if metric is None and images is not None and name == "validation":
        raise ConfigError(f"{who}: expected metric=… to judge the validation images by, got None.")
    if not is_process_group(process_group):
        raise ConfigError(
            f"{who}: expected process_group to be a ProcessGroup, 'world' or None, got {process_group!r}."
        )
