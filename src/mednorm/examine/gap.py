"""The train/eval gap: how far outputs with running statistics are from those with the batch's, and by which layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from mednorm.examine.records import Gap, Layer, Probed
from mednorm.examine.state import holds_still
from mednorm.guards import batch_statistics, norms_with_running_statistics, untouched
from mednorm.moments import Moments
from mednorm.population.batches import Batch, Batches, call
from mednorm.population.distance import distance
from mednorm.population.judge import Metric, number_of
from mednorm.surgery.watch import same_random_numbers

_OFF = 0.05  # σ: statistics that are nearer explain nothing
_NEGLIGIBLE = 1e-6  # a channel's variance counts as no less than this share of the mean of all


class Comparison:
    """The outputs of a network, in evaluation mode, with running statistics and with those of each batch.

    All floating-point tensors of an output are compared, their channels side by side.

    Args:
        network: to be compared with itself.
        layers: that take the batch's statistics.
        metric: of outputs and labels, higher being better.

    """

    def __init__(self, network: nn.Module, layers: Sequence[_BatchNorm], metric: Metric | None = None) -> None:
        self.network, self.layers, self.metric = network, layers, metric
        self.batches = 0
        self._images = 0
        self._metrics: list[float] | None = None if metric is None else [0.0, 0.0]
        self._channels: dict[tuple[int, int], tuple[Moments, Moments]] = {}

    def add(self, batch: Batch, running: Any) -> None:
        """Compare a batch's output with running statistics, which is given; not where the batch has none itself."""
        try:
            own = with_own_statistics(self.network, self.layers, batch)
        except ValueError:  # a single value a channel, by PyTorch or by our ShapeError
            return
        self.batches += 1
        for place, (a, b) in enumerate(zip(channels_of(running), channels_of(own), strict=False)):
            if a.shape != b.shape:  # as many boxes as were found
                continue
            new = _moments(a - b), _moments(b)
            old = self._channels.get((place, b.shape[1]), new)
            self._channels[place, b.shape[1]] = new if old is new else (old[0].merge(new[0]), old[1].merge(new[1]))
        self._measure(batch, running, own)

    def _measure(self, batch: Batch, running: Any, own: Any) -> None:
        if self.metric is None or batch.labels is None:
            self._metrics = None
        if self.metric is None or self._metrics is None:
            return
        self._images += batch.size
        for mode, output in enumerate((running, own)):
            value = number_of(self.metric, output, _beside(batch.labels, output), "examine")
            self._metrics[mode] += (value - self._metrics[mode]) * batch.size / self._images

    def gap(self) -> Gap | None:
        """Return what all batches showed together; None where there was none to compare."""
        several = [pair for pair in self._channels.values() if int(pair[1].count.min()) > 1]  # one value has no scale
        if not several:
            return None
        apart = torch.cat([moments.variance + moments.mean.square() for moments, _ in several])
        variance = torch.cat([moments.variance for _, moments in several])
        if not bool((variance != 0).any()):  # outputs that never vary have no scale; NaN is one
            return None
        divergence = float((apart / scale_of(variance)).nan_to_num(nan=torch.inf, posinf=torch.inf).mean().sqrt())
        return Gap(self.batches, divergence, None if self._metrics is None else (self._metrics[0], self._metrics[1]))


def attribute(network: nn.Module, batches: Batches, probed: Probed, *, limit: int = 2, most: int = 16) -> Probed:
    r"""Say how much of the train/eval gap each layer explains, by replacing statistics layer by layer.

    .. math:: \text{share}_l = 1 - \frac{\lVert y_l - y_b\rVert^2}{\lVert y_r - y_b\rVert^2}

    clipped to [0, 1], with y the outputs, each channel over its standard deviation: :math:`y_r` with the running
    statistics, :math:`y_b` with the batch's in all layers, :math:`y_l` with the batch's in layer l alone. Shares need
    not sum to 1: one bad layer explains all, and of two in a row either may.

    Of a deep network this is done for some layers alone, each of which costs `limit` passes: those that are called
    first among the ones whose inputs are off, where a cause is, and those that are farthest off, where it shows most.

    Args:
        network: that was probed; left bit-identical.
        batches: of the same data.
        probed: what `probe` found.
        limit: batches to look at; each costs an evaluation pass a layer.
        most: layers to look at.

    Returns:
        The same with `Gap.by_layer` filled in, for the layers looked at; as it was where there is no gap.

    Example:
        >>> from mednorm.examine.probe import probe
        >>> batches = Batches([2 + torch.randn(4, 1, 8, 8)])
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
        >>> found = attribute(network, batches, probe(network, batches))
        >>> {name: round(share, 1) for name, share in found.gap.by_layer.items()}
        {'0': 1.0, '1': 1.0}

    """
    if probed.gap is None:
        return probed
    modules, moving = dict(network.named_modules()), {id(layer) for layer in moving_layers(network)}
    called = [layer for layer in probed.layers if layer.seen is not None and id(modules[layer.name]) in moving]
    everywhere = [module for layer in called if isinstance(module := modules[layer.name], _BatchNorm)]
    suspects = {name: module for name in _suspects(called, most) if isinstance(module := modules[name], _BatchNorm)}
    before, after = 0.0, dict.fromkeys(suspects, 0.0)
    with untouched(network):
        for batch in islice(batches, limit):
            try:
                own = with_own_statistics(network, everywhere, batch)
            except ValueError:  # as above
                continue
            before += _squared(with_own_statistics(network, (), batch), own)
            for name, layer in suspects.items():
                after[name] += _squared(with_own_statistics(network, (layer,), batch), own)
    shares = {name: _share(before, left) for name, left in after.items()}
    return replace(probed, gap=replace(probed.gap, by_layer=shares))


def moving_layers(network: nn.Module) -> list[_BatchNorm]:
    """List the layers whose statistics are the batch's in training and running ones in evaluation."""
    return [layer for layer in norms_with_running_statistics(network) if not holds_still(layer)]


def with_own_statistics(network: nn.Module, layers: Sequence[_BatchNorm], batch: Batch) -> Any:
    """Return the output of a network in evaluation mode, some of whose layers take the batch's statistics.

    It draws the same random numbers each time, if any, and may write into its inputs.
    """
    inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, batch.inputs)
    with _own_statistics(layers), same_random_numbers(network):
        return call(network, replace(batch, inputs=inputs))


def channels_of(output: Any) -> list[Tensor]:
    """Return every floating-point tensor in an output with a channel axis, ``(N, C, *)``."""
    tensors = [x.as_subclass(Tensor) for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    return [x if x.dim() > 1 else x.reshape(-1, 1) for x in tensors]


def scale_of(variance: Tensor) -> Tensor:
    """Return the variances that differences are held against: a channel that hardly varies does not decide alone."""
    floor = _NEGLIGIBLE * variance.mean()
    return variance.clamp(min=max(float(floor), torch.finfo(variance.dtype).tiny))


def _suspects(layers: Sequence[Layer], most: int) -> list[str]:
    """Name the layers that may explain the gap: half of them the first that are off, the others the farthest off."""
    off = {layer.name: _off(layer) for layer in layers}
    first = [name for name, far in off.items() if far >= _OFF][: most // 2]
    ranked = sorted(off, key=lambda name: (name not in first, -off[name]))
    return [name for name in off if name in ranked[:most]]


def _off(layer: Layer) -> float:
    """Return how far what reached a layer is from what it normalizes with, in σ: median channel."""
    mean, variance = layer.state.running_mean, layer.state.running_var
    assert layer.seen is not None
    assert mean is not None
    assert variance is not None
    return float(distance(layer.seen.moments, mean, variance, layer.state.eps).nan_to_num(nan=math.inf).median())


@contextmanager
def _own_statistics(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(batch_statistics(layer))
        yield


def _moments(x: Tensor) -> Moments:
    return Moments.of(x.detach().to("cpu"), dtype=torch.float64)


def _squared(output: Any, own: Any) -> float:
    """Return the squared difference of two outputs, each channel over its variance."""
    total = 0.0
    for a, b in zip(channels_of(output), channels_of(own), strict=False):
        if a.shape == b.shape:
            apart = _moments(a - b)
            square = apart.m2 + apart.count * apart.mean.square()
            total += float((square / scale_of(_moments(b).variance)).nan_to_num(nan=torch.inf, posinf=torch.inf).sum())
    return total


def _share(before: float, after: float) -> float:
    if before == 0 or after >= before:
        return 0.0
    return 1 - after / before


def _beside(labels: Any, output: Any) -> Any:
    """Move labels to where the output is."""
    found = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
    return tree_map(lambda x: x.to(found[0].device) if isinstance(x, Tensor) and found else x, labels)
