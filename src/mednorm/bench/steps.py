"""Whole training steps: forward, loss, backward, and the optimizer's step."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mednorm.bench.cases import Case, Peer
from mednorm.bench.networks import NETWORKS, batch, build_network, given, loss_of
from mednorm.bench.saved import live_bytes, saved_bytes
from mednorm.bench.timing import milliseconds
from mednorm.memory import PeakMemory

PEERS = (
    Peer("torch"),
    Peer("torch", "tuned"),
    Peer("torch", "tcmalloc"),
    Peer("mednorm", "tuned"),
    Peer("mednorm lean", "tuned"),
)
REFERENCE = "reference.pt"


class TrainingStep:
    """A network that is trained on one batch.

    Args:
        name: of the network.
        shape: of the batch.
        peer: what is made of the network.

    """

    def __init__(self, name: str, shape: list[int], peer: str) -> None:
        self._build = (name, shape, peer)
        _gradients(
            name, list(NETWORKS[name].small), peer, torch.float32
        )  # what is imported and compiled is no activation
        self._memory = PeakMemory(torch.device("cpu"))
        self._network, self._context, *self._batch = _built(name, shape, peer)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-3)
        self._steps = 0
        for _ in range(2):
            self._step()

    def round(self, seconds: float) -> dict[str, float]:
        """Time steps; count the pages that the system had to clear in each of them."""
        steps, faults = self._steps, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = milliseconds(self._step, seconds)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return {"milliseconds": found, "page_faults": faults / (self._steps - steps)}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Return peak memory, what the graph keeps, the loss, and how far gradients are from the first peer's.

        The first peer is PyTorch as installed. Differences are of all gradients together, relative to their norm:
        of float32 gradients, of float64 gradients, and of float32 gradients to float64 ones of the first peer, where
        what is found is the rounding of float32 itself. Volumes are halved where float64 is, as its convolutions take
        several times the memory.
        """
        found: dict[str, Any] = {"peak_memory_mb": self.peak_memory_mb()}
        with self._context():
            found["live_bytes"] = live_bytes(self._network, self._batch[0])
        if "lean" not in self._build[2]:  # its own hooks decide what is saved there
            found["saved_bytes"] = saved_bytes(self._network, self._batch[0])
        del self._network, self._optimizer
        name, shape, peer = self._build
        single = _gradients(name, shape, peer, torch.float32)
        small, double = (_gradients(name, _halved(shape), peer, dtype) for dtype in (torch.float32, torch.float64))
        found["loss"] = single.pop("loss").item()
        found["loss_float64"] = double.pop("loss").item()
        del small["loss"]
        if not (shared / REFERENCE).exists():
            torch.save({"single": single, "double": double}, shared / REFERENCE)
        reference = torch.load(shared / REFERENCE, weights_only=True)
        return found | {
            "gradient_difference": _apart(single, reference["single"]),
            "gradient_difference_float64": _apart(double, reference["double"]),
            "gradient_error": _apart(small, reference["double"]),
        }

    def peak_memory_mb(self) -> float | None:
        """Return by how much memory rose since nothing of the network was there, in MB (2²⁰ bytes)."""
        return self._memory.read()

    def _step(self) -> None:
        self._steps += 1
        self._optimizer.zero_grad()
        with self._context():
            loss_of(self._network, *self._batch).backward()
        self._optimizer.step()


def cases(smoke: bool) -> list[Case]:
    """Return a case for each network."""
    return [
        Case(
            "steps",
            name,
            PEERS,
            {"network": name, "shape": list(network.small if smoke else network.shape)},
            fresh=True,
        )
        for name, network in NETWORKS.items()
        if not smoke or name == "BasicUNet 3-D"
    ]


def build(of: dict[str, Any], peer: str) -> TrainingStep:
    """Build the network of a peer."""
    return TrainingStep(of["network"], of["shape"], peer)


def _built(
    name: str, shape: list[int], peer: str
) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]], Tensor, Tensor]:
    network = build_network(name, shape)
    context = given(network, peer)
    return network, context, *batch(shape, classes=name in ("DenseNet121 2-D", "article's CNN"))


def _gradients(name: str, shape: list[int], peer: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return loss and gradients of the first step."""
    network, context, images, targets = _built(name, shape, peer)
    network.to(dtype)
    with context():
        loss = loss_of(network, images.to(dtype), targets)
        loss.backward()
    gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **gradients}


def _halved(shape: list[int]) -> list[int]:
    """Return the shape of a batch of smaller volumes; images stay as they are."""
    return shape if len(shape) < 5 or shape[-1] < 64 else [*shape[:2], *(side // 2 for side in shape[2:])]


def _apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the norm of the difference relative to the norm; networks with other names are no twins."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"gradients of {sorted(ours.keys() ^ theirs.keys())[:3]} are in one network alone.")
    square = sum((ours[name].double() - each.double()).square().sum().item() for name, each in theirs.items())
    norm = sum(each.double().square().sum().item() for each in theirs.values())
    return float((square / norm) ** 0.5)
