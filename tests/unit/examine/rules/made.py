"""Layers as a probe would record them, made of values that are at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.examine.findings import Finding, Rule
from mednorm.examine.probe import probe
from mednorm.examine.recorder import Recorder
from mednorm.examine.records import Layer, Probed, Surroundings
from mednorm.examine.state import state_of
from mednorm.population.batches import Batches


def layer_of(
    layer: _BatchNorm, *batches: Tensor, name: str = "norm", around: dict[str, Any] | None = None, **state: Any
) -> Layer:
    """Record what reaches a layer, and say otherwise what it holds and what is around it."""
    network = nn.Sequential(layer).eval()
    with Recorder(network) as recorder:
        for batch in batches:
            network(batch)
            recorder.end(len(batch), (None,) * len(batch))
    seen = recorder.seen("0")
    return Layer(
        name=name,
        kind=type(layer).__name__,
        place=0,
        channels=layer.num_features,
        dtype=recorder.dtypes.get("0"),
        state=replace(state_of(layer), **{"updates": 1000, "training": False, **state}),
        around=Surroundings(**{"calls": int(seen is not None), **(around or {})}),
        seen=seen,
        batches=recorder.batches("0"),
    )


def probed_of(*layers: Layer, batch_size: int = 8) -> Probed:
    """Put layers together."""
    placed = tuple(replace(layer, place=place) for place, layer in enumerate(layers))
    images = max((layer.seen.images for layer in layers if layer.seen is not None), default=0)
    return Probed("Sequential", placed, images, batch_size, 1, {}, None)


def findings(rule: Rule, *layers: Layer, batch_size: int = 8) -> list[Finding]:
    """Ask a rule about layers."""
    return list(rule.check(probed_of(*layers, batch_size=batch_size)))


def said(rule: Rule, *layers: Layer, batch_size: int = 8) -> list[tuple[str, str]]:
    """Return the layer and severity of each finding."""
    return [(finding.layer, finding.severity) for finding in findings(rule, *layers, batch_size=batch_size)]


def found_in(rule: Rule, network: nn.Module, *batches: Tensor, **told: Any) -> list[Finding]:
    """Ask a rule about a network that saw some batches."""
    return list(rule.check(probe(network, Batches(list(batches)), **told)))


def run(remedy: str, **names: Any) -> dict[str, Any]:
    """Run a remedy as it stands."""
    import mednorm

    space = {"torch": torch, "mednorm": mednorm, **names}
    exec(remedy, space)
    return space
