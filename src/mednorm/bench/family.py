"""Every layer of the batch family, forward and backward, beside PyTorch's batch normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mednorm.bench.cases import Case, Peer
from mednorm.bench.floor import Floor, tensors
from mednorm.bench.layers import CHANNELS_LAST, SHAPES, Step, backward_of, name_of, plain_norm

STEPS = 16  # in which each layer does all that it ever does
NAMES = (
    "torch",
    "BatchNorm",
    "BatchRenorm",
    "GhostBatchNorm",
    "MovingBatchNorm 1",
    "MovingBatchNorm 4",
    "MovingBatchNorm 16",
    "RangeBatchNorm",
    "DomainBatchNorm",
    "FrozenBatchNorm",
)


def cases(smoke: bool) -> list[Case]:
    """Return a case for each shape that is a batch of images; what trains is served by the tuned allocator."""
    shapes = (
        ((4, 8, 14, 14),) if smoke else [shape for shape in SHAPES if len(shape) > 2 and shape not in CHANNELS_LAST]
    )
    peers = tuple(Peer(name, "tuned") for name in NAMES)
    return [Case("family", name_of(shape), peers, {"shape": list(shape)}) for shape in shapes]


def build(of: dict[str, Any], peer: str) -> Step:
    """Build a layer; samples of a domain layer come from two sites in turn."""
    x, grad = tensors(of["shape"], False)
    layer = _layer(peer, of["shape"])
    step = backward_of(layer, x, grad)
    if peer == "DomainBatchNorm":
        step = _of_two_sites(layer, step, len(x))
    return Step(step, Floor(x, grad), STEPS)


def _of_two_sites(layer: nn.Module, step: Callable[[], Any], images: int) -> Callable[[], Any]:
    from mednorm import domain

    sites = [number % 2 for number in range(images)]

    def sited() -> Any:
        with domain(layer, sites):
            return step()

    return sited


def _layer(peer: str, shape: list[int]) -> nn.Module:
    import mednorm

    name, _, every = peer.partition(" ")
    if name == "torch":
        return plain_norm(shape)
    options: dict[str, Any] = {
        "BatchRenorm": {"schedule": 0},
        "GhostBatchNorm": {"ghost_size": 2},
        "MovingBatchNorm": {"refresh_every": int(every or 1)},
        "DomainBatchNorm": {"domains": 2},
    }.get(name, {})
    layer: nn.Module = getattr(mednorm, name)(shape[1], **options)
    return layer
