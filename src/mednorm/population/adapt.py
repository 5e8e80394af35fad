"""`mednorm.adapt`: a trained network gets used to a site of which there are images and no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers.tracking import ProcessGroup, others_of
from mednorm.population.batches import Batches, Prepare, device_of
from mednorm.population.judge import Activation, Judged, Metric, judge
from mednorm.population.layers import Layers, bare, layers_of, learned_by
from mednorm.population.own_statistics import own_statistics
from mednorm.population.recalibrate import both, check_common, not_worse
from mednorm.population.renewal import Order, Plan, Statistics, renewed
from mednorm.population.report import AdaptReport
from mednorm.population.tent import check_precision, collapsed, minimise_entropy
from mednorm.surgery.where import Where

Method = Literal["statistics", "mix", "tent"]


def adapt(
    model: nn.Module,
    loader: Iterable[Any],
    method: Method = "statistics",
    *,
    prior: float = 16.0,
    epochs: int = 1,
    lr: float = 1e-3,
    activation: Activation | None = None,
    drift_limit: float | None = 10.0,
    held_out: Iterable[Any] | None = None,
    metric: Metric | None = None,
    order: Order = "sequential",
    where: Where | None = None,
    image: str = "image",
    label: str | None = "label",
    site: str = "site",
    prepare: Prepare | None = None,
    limit: int | None = None,
    device: torch.device | str | None = None,
    process_group: ProcessGroup = None,
    progress: Callable[[int], None] | None = None,
) -> AdaptReport:
    r"""Adapt batch normalization to a new hospital or scanner, from images without labels.

    - ``"statistics"``: the running statistics become those of the site's images (`mednorm.recalibrate`). It takes out
      what a scanner does to gain, offset and contrast. Some tens of images, or a few volumes, will do.
    - ``"mix"``: with :math:`N` = `prior` and n images of the site, the running statistics (s) are mixed with the site's
      (t):

      .. math:: \mu = \frac{N}{N+n}\,\mu_s + \frac{n}{N+n}\,\mu_t, \qquad
                \sigma^2 = \frac{N}{N+n}\,\sigma^2_s + \frac{n}{N+n}\,\sigma^2_t

      For few images, whose own statistics are noisy. As in the paper variances are averaged: the pooled variance would
      count the distance between the sites, and so shrink the images of both.
    - ``"tent"``: first γ and β learn to make the predictions certain, by Adam on the entropy of each image's, or each
      voxel's, prediction, every layer normalizing with the statistics of the batch and dropout off; then the running
      statistics become those of the site. Nothing else moves. It wants batches of many images, and can go wrong where
      classes are unbalanced or the first predictions are poor.

    As `mednorm.recalibrate` it leaves frozen layers alone, and everything bit-identical after an exception.

    Args:
        model: the network, trained elsewhere.
        loader: as in `mednorm.recalibrate`; labels are not used.
        method: see above.
        prior: N, how many images the old statistics count for, at least 0.
        epochs: of "tent" over the images, at least 1.
        lr: learning rate of "tent", above 0.
        activation: of the logits, for entropies: ``"softmax"``, or ``"sigmoid"`` where each channel is a question of
            its own; None for sigmoid of one channel, softmax of several.
        drift_limit: refuse images whose statistics are farther than this from a layer's, in its standard deviations
            (`population.distance`, median over channels): they are not scaled as the network expects. None for no
            limit. A gain of 3 makes about 2.
        held_out: images of the site, not used to adapt: entropy before and after.
        metric: with labels in `held_out`: from outputs and labels of one batch, larger is better. The change is undone
            where it got worse.
        order: as the method of `mednorm.recalibrate`.
        where: which layers, as there; likewise the other arguments.
        image: key of the images.
        label: key of the labels.
        site: key of the sites.
        prepare: turns what the loader gives into a form that is known.
        limit: look at so many batches at most.
        device: that images are moved to.
        process_group: pool the images of these processes; not for "tent".
        progress: called with the number of batches that are done.

    Returns:
        How far each layer was from the site before and is after; `rollback()` undoes it.

    Raises:
        ConfigError: an argument is out of its range or contradicts another; with "tent" γ and β are in half precision,
            the outputs are no logits, or one class has swallowed the others.
        DataError: as `mednorm.recalibrate`; or the images are beyond `drift_limit`, with the layer that says so.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> elsewhere = 3 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> report = adapt(network, elsewhere.split(8), "mix", prior=8)
        >>> report.images, report.kept, report.layers[0].after < report.layers[0].before
        (24, True, True)

    Note:
        Statistics of a site also hold its patients. Where it sends other cases than the training sites did, part of
        what is taken out is disease: hold labelled images out, and look at the metric.

    Reference:
        Schneider et al. (2020), "Improving robustness against common corruptions by covariate shift adaptation", eq. 4;
        Wang et al. (2021), "Tent: Fully Test-Time Adaptation by Entropy Minimization".

    """
    _check(method, prior, epochs, lr, activation, drift_limit)
    check_common("adapt", held_out, metric, process_group, "held_out")
    tent = method == "tent"
    if tent and others_of(process_group) is not None:
        raise ConfigError(
            "adapt: expected process_group=None with method='tent', got one: γ and β learn in one process."
        )
    network = bare(model, "adapt")
    if tent:
        check_precision(layers_of(network, where, "adapt")[0], "adapt")
    read = partial(Batches, device=device or device_of(network), image=image, label=label, site=site, prepare=prepare)
    batches = read(loader, limit=limit)
    seen = batches if held_out is None else read(held_out)
    judging = partial(
        judge, network, seen, "adapt", metric=metric, classes=True, activation=activation, group=process_group
    )
    learned: list[str] = []
    unlearned: list[Judged] = []

    def learn(layers: Layers) -> None:
        with own_statistics(layers, "adapt"):
            unlearned.append(judging())
        learned.extend(f"{name}.{key}" for name, layer in layers.items() for key in learned_by(layer))
        minimise_entropy(network, batches, layers, epochs=epochs, lr=lr, activation=activation, who="adapt")

    def keep(before: Judged, after: Judged) -> bool:
        if tent and not_worse(before, after):
            _refuse_collapse(unlearned[0], after)
        return not_worse(before, after)

    plan = Plan(
        "adapt",
        order,
        where,
        renew=partial(_mixed, prior) if method == "mix" else Plan.renew,
        drift_limit=drift_limit,
        learn=learn if tent else None,
        judge=judging if tent or held_out is not None else None,
        keep=keep,
        group=process_group,
        progress=progress,
    )
    done = renewed(network, batches, plan)
    return AdaptReport(
        method,
        done.layers,
        done.left,
        done.images,
        done.batches,
        both(done.judged, "metric"),
        done.change,
        both(done.judged, "entropy"),
        both(done.judged, "majority"),
        tuple(learned),
    )


def _mixed(prior: float, old: Statistics, new: Statistics, images: int) -> Statistics:
    share = images / (prior + images)
    return Statistics(*((1 - share) * source + share * target for source, target in zip(old, new, strict=True)))


def _refuse_collapse(before: Judged, after: Judged) -> None:
    """Refuse predictions of one class; `before`: those with the site's statistics, ahead of learning."""
    if before.majority is not None and after.majority is not None and collapsed(before.majority, after.majority):
        raise ConfigError(
            f"adapt: expected predictions of several classes after 'tent', got {100 * after.majority:.1f} % of one "
            f"class ({100 * before.majority:.1f} % with the site's statistics alone). The network is as it was. Use "
            "method='statistics', a smaller lr, or larger batches."
        )


def _check(
    method: str, prior: float, epochs: int, lr: float, activation: str | None, drift_limit: float | None
) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"adapt: expected method to be 'statistics', 'mix' or 'tent', got {method!r}.")
    if not 0 <= prior < math.inf:
        raise ConfigError(f"adapt: expected prior to be a number of images of at least 0, got {prior!r}.")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ConfigError(f"adapt: expected epochs to be a whole number of at least 1, got {epochs!r}.")
    if not 0 < lr < math.inf:
        raise ConfigError(f"adapt: expected lr above 0, got {lr!r}.")
    if activation not in (None, *get_args(Activation)):
        raise ConfigError(f"adapt: expected activation to be 'softmax', 'sigmoid' or None, got {activation!r}.")
    if drift_limit is not None and not drift_limit > 0:
        raise ConfigError(f"adapt: expected drift_limit above 0 or None, got {drift_limit!r}.")
