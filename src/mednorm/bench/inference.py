"""Evaluation: normalization with running statistics beside one pass over memory, and folded into convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mednorm.bench.cases import Case, Peer
from mednorm.bench.floor import Floor, tensors
from mednorm.bench.layers import plain_norm
from mednorm.bench.networks import NETWORKS, batch, build_network
from mednorm.bench.timing import milliseconds

SHAPES = ((2, 32, 64, 64, 64), (8, 64, 32, 32, 32), (32, 64, 56, 56), (128, 32, 28, 28), (256, 64, 14, 14))
LAYERS = (Peer("torch", "tuned"), Peer("torch-inplace", "tuned"), Peer("mednorm", "tuned"))
WHOLE = (Peer("torch", "tuned"), Peer("mednorm", "tuned"), Peer("mednorm folded", "tuned"))


class Evaluation:
    """A layer or network in evaluation mode, and for a layer the time of copying what it reads."""

    def __init__(self, module: Callable[[Tensor], Tensor], x: Tensor, floor: Floor | None) -> None:
        self._module, self._x, self._floor = module, x, floor
        for _ in range(2):
            self._call()

    def round(self, seconds: float) -> dict[str, float]:
        """Time a forward pass without gradients, and the copy."""
        found = {"milliseconds": milliseconds(self._call, seconds)}
        return found if self._floor is None else found | {"floor": self._floor.copy(seconds)}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Say nothing more."""
        return {}

    def _call(self) -> Tensor:
        with torch.no_grad():
            return self._module(self._x)


def cases(smoke: bool) -> list[Case]:
    """Return layers at each shape, then networks."""
    shapes = ((4, 8, 14, 14),) if smoke else SHAPES
    layers = [Case("inference", "×".join(map(str, shape)), LAYERS, {"shape": list(shape)}) for shape in shapes]
    names = ("BasicUNet 3-D",) if smoke else ("BasicUNet 3-D", "BasicUNet 2-D", "DenseNet121 2-D")
    return layers + [
        Case(
            "inference",
            name,
            WHOLE,
            {"network": name, "shape": list(NETWORKS[name].small if smoke else NETWORKS[name].shape)},
        )
        for name in names
    ]


def build(of: dict[str, Any], peer: str) -> Evaluation:
    """Build a layer or network in evaluation mode."""
    import mednorm

    if "network" not in of:
        x, grad = tensors(of["shape"], False)
        layer: nn.Module = nn.Sequential(plain_norm(of["shape"]), nn.ReLU(inplace=peer == "torch-inplace"))
        if peer == "mednorm":
            layer = mednorm.BatchNorm(of["shape"][1], activation="relu")
        return Evaluation(layer.eval(), x, Floor(x, grad))
    network = build_network(of["network"], of["shape"]).eval()
    if peer == "mednorm folded":
        mednorm.fold(network)
    elif peer == "mednorm":
        mednorm.convert(network, "batch", fuse_activation=True)
    return Evaluation(network, batch(of["shape"], classes=False)[0], None)
