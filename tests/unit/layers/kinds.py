"""Every kind of layer, made and called alike, for the tests of what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

import mednorm
from mednorm import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    RangeBatchNorm,
)

# The clips of renormalization open at once, and the window of the moving statistics is shorter than the runs.
KINDS: dict[str, Callable[..., BatchNorm]] = {
    "batch": BatchNorm,
    "renorm": partial(BatchRenorm, schedule=0),
    "ghost": partial(GhostBatchNorm, ghost_size=2),
    "moving": partial(MovingBatchNorm, window=3),
    "moving by weights": partial(MovingBatchNorm, window=3, centering="weights"),
    "range": RangeBatchNorm,
    "domain": partial(DomainBatchNorm, domains=["Basel", "Lund", "Porto"], domain_affine=True),
    "frozen": FrozenBatchNorm,
}


IMAGES = (8, 2, 8, 8)  # what the network takes


def network(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Sequential:
    """Two convolutions, each with the layer behind it, and a head that gives one number an image."""
    layer = partial(KINDS[kind], activation="relu", dtype=dtype, **options)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, dtype=dtype),
        layer(4),
        nn.Conv2d(4, 3, 3, dtype=dtype),
        layer(3),
        nn.Flatten(),
        nn.Linear(48, 1, dtype=dtype),
    )


def at_sites(module: nn.Module, ids: Any) -> AbstractContextManager[None]:
    """Say where samples come from, to a network that has layers for it."""
    has_sites = any(isinstance(layer, DomainBatchNorm) for layer in module.modules())
    return mednorm.domain(module, ids) if has_sites else nullcontext()
