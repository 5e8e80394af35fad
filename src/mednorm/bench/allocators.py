"""What each allocator takes of time and memory: a layer's step and a network's."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch

from mednorm.bench import layers
from mednorm.bench.cases import Case, with_allocators
from mednorm.bench.networks import NETWORKS
from mednorm.bench.steps import TrainingStep
from mednorm.memory import PeakMemory

PEERS = with_allocators(("torch", "mednorm"))


class LayerStep:
    """A layer's step with its pages and its memory."""

    def __init__(self, of: dict[str, Any], peer: str) -> None:
        layers.build(of | {"shape": [2, *of["shape"][1:2], *[4] * len(of["shape"][2:])]}, peer)  # imports, compiles
        self._memory = PeakMemory(torch.device("cpu"))
        self._step = layers.build(of, peer)

    def round(self, seconds: float) -> dict[str, float]:
        """Time the step and the floor; count the pages that the system cleared in all of that."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = self._step.round(seconds)
        return found | {"page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Return peak memory."""
        return {"peak_memory_mb": self._memory.read()}


class NetworkStep:
    """A network's step, of which time, pages and memory count here."""

    def __init__(self, of: dict[str, Any], peer: str) -> None:
        self._step = TrainingStep(of["network"], of["shape"], peer)

    def round(self, seconds: float) -> dict[str, float]:
        """Time the step."""
        return self._step.round(seconds)

    def facts(self, shared: Path) -> dict[str, Any]:
        """Return peak memory."""
        return {"peak_memory_mb": self._step.peak_memory_mb()}


def cases(smoke: bool) -> list[Case]:
    """Return the layer and the network."""
    shape = (4, 8, 14, 14) if smoke else (2, 32, 64, 64, 64)
    layer = {"shape": list(shape), "channels_last": False}
    unet = NETWORKS["BasicUNet 3-D"]
    network = {"network": "BasicUNet 3-D", "shape": list(unet.small if smoke else unet.shape)}
    return [
        Case("allocators", "×".join(map(str, shape)), PEERS, layer, fresh=True),
        Case("allocators", "BasicUNet 3-D", PEERS, network, fresh=True),
    ]


def build(of: dict[str, Any], peer: str) -> LayerStep | NetworkStep:
    """Build the step of a peer."""
    return NetworkStep(of, peer) if "network" in of else LayerStep(of, peer)
