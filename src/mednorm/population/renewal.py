"""New statistics for a network's layers: measured and written layer after layer or all at once, then kept or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.errors import ConfigError, DataError
from mednorm.guards import untouched
from mednorm.layers import BatchNorm, DomainBatchNorm
from mednorm.layers.tracking import ProcessGroup
from mednorm.moments import Moments
from mednorm.population.batches import Batch
from mednorm.population.change import Change
from mednorm.population.distance import distance
from mednorm.population.judge import Judged
from mednorm.population.layers import Layers, layers_of, learned_by
from mednorm.population.measure import Seen, observe
from mednorm.population.own_statistics import own_statistics
from mednorm.population.report import RenewedLayer
from mednorm.surgery.conversion import LeftLayer
from mednorm.surgery.where import Where

Order = Literal["sequential", "batch"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "domain_mean", "domain_var", "domain_batches")


class Statistics(NamedTuple):
    """A running mean and a running variance, ``(C,)``."""

    mean: Tensor
    variance: Tensor


# What old statistics become, given the population's and how many images these are of.
Renew = Callable[[Statistics, Statistics, int], Statistics]


@dataclass(frozen=True)
class Plan:
    """How statistics are to be renewed.

    Attributes:
        who: the caller, for messages.
        order: each layer with the layers before it renewed already, or all at once.
        where: which layers.
        renew: what becomes of their statistics.
        drift_limit: how far a population may be from the old statistics of a layer, median over channels, in σ.
        learn: moves γ and β of the layers first.
        judge: measures the network, before and after.
        keep: whether the change stays, given both.
        group: processes whose images are pooled.
        progress: told how many batches were read.

    """

    who: str
    order: Order
    where: Where | None = None
    renew: Renew = lambda old, new, images: new
    drift_limit: float | None = None
    learn: Callable[[Layers], None] | None = None
    judge: Callable[[], Judged] | None = None
    keep: Callable[[Judged, Judged], bool] = lambda before, after: True
    group: ProcessGroup = None
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Renewal:
    """What came of it; `change` is None where there was nothing to renew."""

    layers: tuple[RenewedLayer, ...] = ()
    left: tuple[LeftLayer, ...] = ()
    change: Change | None = None
    judged: tuple[Judged, Judged] | None = None
    images: int = 0
    batches: int = 0


def renewed(network: nn.Module, batches: Iterable[Batch], plan: Plan) -> Renewal:
    """Renew the statistics of a network; an exception leaves it bit-identical."""
    if plan.order not in get_args(Order):
        raise ConfigError(f"{plan.who}: expected 'sequential' or 'batch', got {plan.order!r}.")
    found, left = layers_of(network, plan.where, plan.who)
    if not found:
        return Renewal(left=left)
    learned = [(name, layer, key) for name, layer in found.items() for key in learned_by(layer)] if plan.learn else []
    with untouched(network, [getattr(layer, key) for _, layer, key in learned]):
        look = _looking(network, batches, plan)
        before = look(found, None)
        layers = {name: found[name] for name, seen in before.items() if seen.moments is not None}
        unreached = [name for name in found if name not in layers]
        left = (*left, *(LeftLayer(name, type(found[name]).__name__, "no batch reached it") for name in unreached))
        if not layers:
            return Renewal(left=left)
        judged = [] if plan.judge is None else [plan.judge()]
        old = {name: _current(layer) for name, layer in layers.items()}
        buffers = [(name, layer, key) for name, layer in layers.items() for key in _STATISTICS if _has(layer, key)]
        change = Change([*((name, layer, key) for name, layer, key in learned if name in layers), *buffers])
        far = {name: _apart(layer, before[name], old[name]) for name, layer in layers.items()}
        if plan.learn is not None:
            plan.learn(layers)
        seen = (_in_sequence if plan.order == "sequential" else _at_once)(look, layers, before, plan)
        drift = {name: _apart(layer, seen[name], old[name]) for name, layer in layers.items()}
        change.settle()
        after = look(layers, None)
        near = {name: _apart(layer, after[name], _current(layer)) for name, layer in layers.items()}
        judged += [] if plan.judge is None else [plan.judge()]
    rows = tuple(
        RenewedLayer(
            name,
            type(layers[name]).__name__,
            far[name],
            near[name],
            drift[name],
            each.images,
            0 if each.moments is None else int(each.moments.count.max()),
        )
        for name, each in seen.items()
    )
    if len(judged) < 2 or plan.keep(judged[0], judged[1]):
        change.make()
    images, number = max((each.images, each.batches) for each in before.values())
    return Renewal(rows, left, change, (judged[0], judged[1]) if judged else None, images, number)


_Look = Callable[[Layers, int | None], dict[str, Seen]]


def _looking(network: nn.Module, batches: Iterable[Batch], plan: Plan) -> _Look:
    """Return what runs the network over all batches once, looking at some layers."""
    numbers = count(1)

    def read() -> None:
        if plan.progress is not None:
            plan.progress(next(numbers))

    return lambda layers, calls: observe(network, batches, layers, calls=calls, group=plan.group, progress=read)


def _in_sequence(look: _Look, layers: Layers, before: dict[str, Seen], plan: Plan) -> dict[str, Seen]:
    """Renew one layer after the other, each from what reaches it behind those that are renewed."""
    seen: dict[str, Seen] = {}
    for name, layer in layers.items():
        # What reaches the first one no other layer's statistics have a part in, and it is known already.
        known = not seen and plan.learn is None
        seen[name] = before[name] if known else look({name: layer}, before[name].calls)[name]
        _write(name, layer, seen[name], plan)
    return seen


def _at_once(look: _Look, layers: Layers, before: dict[str, Seen], plan: Plan) -> dict[str, Seen]:
    """Renew all layers from one pass in which each normalizes with the statistics of the batch."""
    with own_statistics(layers, plan.who):
        seen = look(layers, None)
    for name, layer in layers.items():
        _write(name, layer, seen[name], plan)
    return seen


def _write(name: str, layer: _BatchNorm, seen: Seen, plan: Plan) -> None:
    """Write what becomes of a layer's statistics, or say why they cannot be used."""
    mean, variance, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert variance is not None
    if seen.moments is None:
        raise DataError(f"{plan.who}: expected every pass to reach layer {name!r}, got one that did not.")
    _check_drift(_apart(layer, seen, _current(layer)), name, plan)
    _replace(name, mean, variance, _population(layer, seen.moments), seen.images, plan)
    if tracked is not None:
        # With momentum=None later batches weigh as one among those seen. Otherwise it is a count of training, whose
        # schedules must not start again.
        tracked.fill_(seen.batches if layer.momentum is None else max(int(tracked), seen.batches))
    if isinstance(layer, DomainBatchNorm):
        for site, (moments, images) in seen.sites.items():
            new = Statistics(moments.mean, moments.unbiased_variance)
            place = f"{name}, site {layer.domains[site]}"
            _replace(place, layer.domain_mean[site], layer.domain_var[site], new, images, plan)
            layer.domain_batches[site].clamp_(min=1)  # from then on it is used


def _replace(name: str, mean: Tensor, variance: Tensor, new: Statistics, images: int, plan: Plan) -> None:
    if not all(bool(each.isfinite().all()) for each in new):
        raise DataError(
            f"{plan.who}: expected at least 2 finite values per channel to reach layer {name!r}, got statistics that "
            "are not finite. Are there NaN or infinite voxels in the images, or does half precision overflow?"
        )
    old = Statistics(mean.double(), variance.double())
    for buffer, value in zip((mean, variance), plan.renew(old, new, images), strict=True):
        cast = value.to(buffer.dtype)
        if not bool(cast.isfinite().all()):
            raise DataError(
                f"{plan.who}: expected statistics of layer {name!r} that {buffer.dtype} holds, got "
                f"{float(value.abs().max()):.3g}. Keep its running statistics in float32."
            )
        buffer.copy_(cast)


def _population(layer: _BatchNorm, moments: Moments) -> Statistics:
    """Return what the layer would keep of one batch that holds all images."""
    if isinstance(layer, BatchNorm):
        return Statistics(layer._centre(moments), layer._spread(moments))
    return Statistics(moments.mean, moments.unbiased_variance)


def _check_drift(drift: float, name: str, plan: Plan) -> None:
    if plan.drift_limit is not None and drift > plan.drift_limit:
        also = "" if plan.learn is None else " Or did γ and β learn too far? Then lower lr."
        raise DataError(
            f"{plan.who}: expected images within drift_limit={plan.drift_limit:g} σ of what the network was trained "
            f"on, got {drift:.3g} σ at layer {name!r}. Are they scaled as in training?{also} drift_limit=None adapts "
            "anyway."
        )


def _current(layer: _BatchNorm) -> Statistics:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return Statistics(layer.running_mean.double(), layer.running_var.double())


def _apart(layer: _BatchNorm, seen: Seen, statistics: Statistics) -> float:
    """Return how far a population is from some statistics: the median over the channels where it is a number."""
    if seen.moments is None:
        return float("nan")
    population = Moments.given(*_population(layer, seen.moments.to(statistics.mean.device)))
    each = distance(population, *statistics, layer.eps)
    return float(each[each.isfinite()].median()) if each.isfinite().any() else float("nan")


def _has(layer: nn.Module, key: str) -> bool:
    return isinstance(getattr(layer, key, None), torch.Tensor)
