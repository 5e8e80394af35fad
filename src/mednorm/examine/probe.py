"""One pass over data that shows what a network's normalization does there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch.distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from mednorm.errors import ConfigError
from mednorm.examine.gap import Comparison, moving_layers, with_own_statistics
from mednorm.examine.recorder import Recorder
from mednorm.examine.records import Layer, Probed, State, Surroundings
from mednorm.examine.state import state_of
from mednorm.examine.step import few, fits, updates_in_a_step
from mednorm.examine.surroundings import surroundings
from mednorm.guards import untouched
from mednorm.population.batches import Batch, Batches, call
from mednorm.population.judge import Metric

_EVERY = 3  # of so many batches one is run in both modes: of two, a probe would take more than two evaluations


def probe(
    network: nn.Module,
    batches: Batches,
    *,
    optimizer: Optimizer | None = None,
    metric: Metric | None = None,
    batch_size: int | None = None,
    devices: int | None = None,
    compare: int = 16,
    try_step: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Probed:
    """Run a network over data in evaluation mode, and measure what reaches each batch normalization layer.

    Layers are found by type, at every rank: each ``torch.nn.modules.batchnorm._BatchNorm``, PyTorch's and ours. Every
    third batch, from the first on, is also run with its own statistics in the place of the running ones, as in training
    but without dropout: the difference of the outputs is the train/eval gap. Layers that hold still in
    training, see `mednorm.freeze`, keep their running statistics there too.

    The network is bit-identical afterwards, also after an exception of the loader or the network, and so are the
    random states. Memory grows with nothing but the patients' names, and all of it takes at most twice the time of an
    evaluation, plus a look at the code of the network and one small training step on a copy.

    Args:
        network: any network of PyTorch.
        batches: the data.
        optimizer: of the training, for its weight decay.
        metric: of the network's outputs and the labels, as the loader gave them; higher is better.
        batch_size: of the training; None for the largest batch of the loader.
        devices: that a training batch is spread over; None for as many as there are processes.
        compare: batches to compare both modes on, at most.
        try_step: count how often running statistics move in one training step, on a copy with two images of the first
            batch; a step that fails, or is too large for the memory there is, counts nothing.
        progress: called with the number of batches read so far, after each.

    Returns:
        Plain values, which `mednorm.examine` judges.

    Raises:
        ConfigError: a layer of the network is lazy, or `compare` is negative.
        DataError: a batch of the loader is not one.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> found = probe(network, Batches([torch.randn(4, 1, 8, 8), torch.randn(3, 1, 8, 8)]))
        >>> layer = found.layers[0]
        >>> layer.name, layer.seen.images, layer.around.before, layer.around.updates_a_step
        ('1', 7, '0', 1)

    """
    _check(network, compare)
    states = {name: state_of(layer) for name, layer in Recorder(network).layers.items()}
    first: Batch | None = None
    images = largest = 0
    sites: Counter[str] = Counter()
    with untouched(network):
        comparison = Comparison(network, moving_layers(network), metric)
        with Recorder(network) as recorder:
            for number, batch in enumerate(batches, start=1):
                first = first or few(batch)
                both = bool(comparison.layers) and number % _EVERY == 1 and comparison.batches < compare
                output = with_own_statistics(network, (), batch) if both else call(network, batch)
                recorder.end(batch.size, batch.sites, batch.patients)
                if both:
                    with recorder.paused():
                        comparison.add(batch, output)
                del output  # or it would be there while the next is made
                images, largest = images + batch.size, max(largest, batch.size)
                sites.update(site for site in batch.sites if site is not None)
                if progress is not None:
                    progress(number)
        # What is watched keeps all that is computed, as in training.
        example = first if first is not None and fits(network, first, recorder.values) else None
        around = surroundings(network, example, optimizer)
    moved = updates_in_a_step(network, first, recorder.values) if try_step and first is not None else {}
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return Probed(
        network=type(network).__name__,
        layers=_layers(recorder, states, around, moved),
        images=images,
        batch_size=batch_size or largest,
        devices=devices or processes,
        sites=dict(sorted(sites.items())),
        gap=comparison.gap(),
        patients={site: whose.count for site, whose in recorder.patients().items()},
    )


def _layers(
    recorder: Recorder,
    states: Mapping[str, State],
    around: Mapping[str, Surroundings],
    moved: Mapping[str, int],
) -> tuple[Layer, ...]:
    """Put together what is known of each layer, those that were not called last."""
    return tuple(
        Layer(
            name=name,
            kind=type(recorder.layers[name]).__name__,
            place=place,
            channels=recorder.layers[name].num_features,
            dtype=recorder.dtypes.get(name),
            state=states[name],
            around=replace(around[name], calls=recorder.calls.get(name, 0), updates_a_step=moved.get(name)),
            seen=recorder.seen(name),
            sites=recorder.sites(name),
            batches=recorder.batches(name),
        )
        for place, name in enumerate(recorder.order())
    )


def _check(network: nn.Module, compare: int) -> None:
    if compare < 0:
        raise ConfigError(f"probe: expected compare to be at least 0 batches, got {compare!r}.")
    for name, module in network.named_modules():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise ConfigError(
                f"probe: expected a network with weights, got {name or 'the network'} ({type(module).__name__}) "
                "without: it is lazy. Call the network on a batch first."
            )
