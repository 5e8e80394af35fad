"""What statistics cost: those of the batch, moving ones, and running ones that stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mednorm.bench.cases import Case, Peer
from mednorm.bench.family import NAMES, STEPS
from mednorm.bench.family import build as build_layer
from mednorm.bench.networks import batch, build_network, loss_of
from mednorm.bench.timing import milliseconds

# Behind the article's convolutions, of 32 images of 28×28; and a volume.
SHAPES = ((32, 32, 26, 26), (32, 64, 24, 24), (2, 32, 64, 64, 64))
LAYERS = tuple(Peer(name, "tuned") for name in NAMES if name.split()[0] in ("BatchNorm", "MovingBatchNorm"))
PEERS = (*LAYERS, Peer("FrozenBatchNorm", "tuned"))
# As `mednorm.convert` takes them.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "BatchNorm": ("batch", {}),
    **{f"MovingBatchNorm {k}": ("moving", {"refresh_every": k}) for k in (1, 4, 16)},
    "FrozenBatchNorm": ("frozen", {}),
}


class ArticleStep:
    """A training step of the article's network, its normalization converted."""

    def __init__(self, shape: list[int], peer: str) -> None:
        import mednorm

        self._network = build_network("article's CNN", shape)
        self._batch = batch(shape, classes=True)
        if peer == "none":
            for name, module in list(self._network.named_children()):
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    setattr(self._network, name, nn.Identity())
        else:
            kind, options = _KINDS[peer]
            mednorm.convert(self._network, kind, **options)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-3)
        for _ in range(STEPS):
            self._step()

    def round(self, seconds: float) -> dict[str, float]:
        """Time steps."""
        return {"milliseconds": milliseconds(self._step, seconds, STEPS)}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Say nothing more."""
        return {}

    def _step(self) -> None:
        self._optimizer.zero_grad()
        loss_of(self._network, *self._batch).backward()
        self._optimizer.step()


def cases(smoke: bool) -> list[Case]:
    """Return the layer alone at each shape, then the article's network."""
    shapes = ((4, 8, 14, 14),) if smoke else SHAPES
    layers = [Case("statistics", "×".join(map(str, shape)), PEERS, {"shape": list(shape)}) for shape in shapes]
    images = [4 if smoke else 32, 1, 28, 28]
    network = {"network": "article's CNN", "shape": images}
    return [*layers, Case("statistics", "article's CNN", (Peer("none", "tuned"), *PEERS), network)]


def build(of: dict[str, Any], peer: str) -> Any:
    """Build the layer, or the network with it."""
    return ArticleStep(of["shape"], peer) if "network" in of else build_layer(of, peer)
