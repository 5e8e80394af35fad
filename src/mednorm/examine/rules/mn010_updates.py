"""MN010: running statistics that move more than once in a training step, or never."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.noise import images_together, median, noise, taken_over_batches

# In σ, as for sites: what calls of a shared layer differ by, and the noise of statistics that forget twice as fast.
WARNING, ERROR = 0.25, 0.5


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers that update once for each of several calls, again in the backward pass, or not at all."""
    for layer in probed.layers:
        if layer.state.running_mean is None or layer.state.frozen:
            continue
        calls, updates = layer.around.calls, layer.around.updates_a_step
        if left_out(layer, probed):
            yield _left_out(layer, probed)
        elif updates == 0 and _stands_still(layer, probed):
            yield _still(layer)
        elif calls > 1 and updates != 0:
            yield _shared(layer, probed)
        if updates is not None and updates > max(calls, 1):
            yield _repeated(layer, probed, updates / max(calls, 1))


def left_out(layer: Layer, probed: Probed) -> bool:
    """Tell whether a layer still has its initial statistics, and no update, while others were updated."""
    state = layer.state
    if state.updates != 0 or layer.seen is None or state.running_mean is None or state.running_var is None:
        return False
    initial = bool((state.running_mean == 0).all() and (state.running_var == 1).all())
    return initial and not state.frozen and any(other.state.updates for other in probed.layers)


def _stands_still(layer: Layer, probed: Probed) -> bool:
    """Tell whether no update in a step is the network's own doing, not of its mode or of freezing."""
    as_handed_in = layer.state.training or not any(other.state.training for other in probed.layers)
    return as_handed_in and layer.around.before_learns is not False and layer.seen is not None


def _left_out(layer: Layer, probed: Probed) -> Finding:
    most = max(other.state.updates or 0 for other in probed.layers)
    return Finding(
        "MN010",
        "error",
        layer.name,
        f"No batch has moved its running statistics, while those of other layers moved {most} times: in evaluation it "
        "does not normalize.",
        (Evidence("updates", 0, 1, "updates"), Evidence("updates of other layers, at most", most, unit="updates")),
        f'model.get_submodule("{layer.name}").train(); mednorm.recalibrate(model, loader)',
    )


def _still(layer: Layer) -> Finding:
    return Finding(
        "MN010",
        "warning",
        layer.name,
        "In a training step of the network its running statistics do not move, while the weights before it do: they "
        "are those of other weights. If that is meant, mednorm.freeze says so.",
        (Evidence("updates a step", 0, 1, "updates"),),
        "mednorm.recalibrate(model, loader)",
    )


def _shared(layer: Layer, probed: Probed) -> Finding:
    apart, calls = _between_calls(layer), layer.around.calls
    crossed = ERROR if apart >= ERROR else WARNING if apart >= WARNING else None
    told = f"whose inputs lie {apart:.2f} σ around their common statistics" if math.isfinite(apart) else "of one step"
    return Finding(
        "MN010",
        "error" if crossed == ERROR else "warning" if crossed == WARNING else "info",
        layer.name,
        f"It is called {calls} times in a forward pass, and its running statistics mix those of the calls, {told}: "
        "evaluation normalizes each with the mixture, training with its own.",
        (
            Evidence("distance of the calls", apart, crossed, "σ"),
            Evidence("calls in a forward pass", calls, 1, "calls"),
        ),
        f'import copy; norms = torch.nn.ModuleList(copy.deepcopy(model.get_submodule("{layer.name}")) '
        f"for _ in range({calls}))  # one a call",
    )


def _between_calls(layer: Layer) -> float:
    """Return how far the calls are from what they have in common, beyond the noise of a batch; median channel, in σ.

    As if there were two kinds of calls: their means lie a standard deviation of the means on either side of the common
    one, and so do their variances.
    """
    seen, batches = layer.seen, layer.batches
    if seen is None or batches is None or seen.images < 2:
        return math.nan
    within, spread = batches.of_variances.mean, batches.of_variances.std
    kinds = torch.stack([within + spread, (within - spread).clamp(min=0)])
    offset, scale = batches.of_means.variance, (kinds.sqrt() - within.sqrt()).square().mean(0)
    size = max(1, round(seen.images * layer.around.calls / max(1, int(batches.of_means.count.max()))))
    expected = seen.noise_of_mean(size).square() + (seen.noise_of_variance(size) / 2).square()
    return median(((offset + scale) / seen.moments.variance - expected).clamp(min=0).sqrt())


def _repeated(layer: Layer, probed: Probed, times: float) -> Finding:
    momentum = layer.state.momentum
    evidence = [Evidence("updates a step", times, 1, "updates")]
    told, error = "", False
    if momentum is not None:
        effective = 1 - (1 - momentum) ** times
        told = f", so that their momentum is {effective:.2g} in effect and not {momentum:g}"
        evidence.append(Evidence("effective momentum", effective, unit=""))
        if layer.seen is not None and layer.seen.images > 1 and taken_over_batches(layer):
            left = noise(layer.seen, images_together(layer, probed)) * math.sqrt(effective / (2 - effective))
            evidence.append(Evidence("noise of the running statistics", left, WARNING, "σ"))
            error = left >= WARNING
    return Finding(
        "MN010",
        "error" if error else "warning",
        layer.name,
        f"The running statistics move {times:g} times by each batch, as where activation checkpointing runs the "
        f"forward pass again{told}.",
        tuple(evidence),
        'mednorm.convert(model, to="batch")  # whose repeated forward pass moves nothing',
    )


RULE = Rule(code="MN010", name="updates", title="Running statistics move more than once a step, or never", check=check)
