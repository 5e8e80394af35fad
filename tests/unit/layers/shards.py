"""What each of several processes does with its share of the images, and one process with all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mednorm import BatchNorm, MovingBatchNorm
from tests.harness import CHANNELS, images
from tests.unit.layers.kinds import KINDS, at_sites

# How many of seven images each process of a group has: two processes, and three of which one has none.
SHARES = {"pair": [5, 2], "world": [4, 0, 3]}
GHOSTS = {"pair": [4, 3], "world": [4, 0, 3]}  # where a whole number of ghosts ends
SITES = [0, 0, 1, -1, 0, 1, 1]
STEPS = 5


@dataclass(frozen=True)
class Case:
    """A layer, and batches on which to train it for some steps."""

    name: str
    make: Callable[..., BatchNorm]
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (7, CHANNELS, 5, 6)
    dtype: torch.dtype = torch.float64
    shares: Mapping[str, Sequence[int]] = field(default_factory=lambda: SHARES)
    mask_keeps: float = 1
    mask_ends: int | None = None  # it keeps nothing of the images from here on
    two_values: bool = False  # so that every process has the largest and the smallest
    channels_last: bool = False
    sites: Sequence[int] | None = None
    last_is_silent: bool = False  # the last process does not say its sites
    repeated: bool = False  # activation checkpointing runs the forward pass again, with all it says to the others

    def __str__(self) -> str:
        return self.name

    def but(self, name: str, **changes: Any) -> Case:
        return replace(self, name=f"{self.name}, {name}", **changes)


MOVING = partial(MovingBatchNorm, window=3, refresh_every=2)
BATCH = Case("batch", BatchNorm)
DOMAIN = Case("domain", KINDS["domain"], sites=SITES)
LAYERS = [
    BATCH,
    DOMAIN,
    Case("renorm", KINDS["renorm"]),
    Case("range", KINDS["range"]),
    Case("moving", MOVING),
    Case("moving by weights", MOVING, {"centering": "weights"}),
    Case("ghost", KINDS["ghost"], shares=GHOSTS),
]
TIED = Case("range, the extremes in every process", KINDS["range"], two_values=True)
LEAKY = {"activation": "leaky_relu"}
CASES = [
    *LAYERS,
    *(case.but("float32", dtype=torch.float32) for case in LAYERS),
    *(case.but("masked, relu", mask_keeps=0.7, options={**case.options, "activation": "relu"}) for case in LAYERS),
    *(case.but("a mask that keeps nothing of one process", mask_keeps=0.7, mask_ends=5) for case in LAYERS[:-1]),
    *(case.but("channels last, leaky relu", channels_last=True, options=LEAKY) for case in LAYERS),
    *(
        case.but("one value a process", shape=(2, CHANNELS), shares={"pair": [1, 1], "world": [1, 0, 1]}, sites=None)
        for case in LAYERS[:-1]
    ),
    *(case.but("checkpointed", repeated=True) for case in LAYERS),
    TIED,
    BATCH.but("cumulative, without parameters", options={"momentum": None, "affine": False}),
    BATCH.but("volumes", shape=(7, CHANNELS, 3, 2, 4)),
    DOMAIN.but("no sites", sites=None),
    DOMAIN.but("a process without sites", last_is_silent=True),
    DOMAIN.but("each process a site of its own", sites=[0] * 5 + [2] * 2, shares={"pair": [5, 2], "world": [5, 2, 0]}),
]
TWICE = [
    *(case for case in LAYERS if "moving" not in case.name),  # whose gradient is no derivative
    TIED,
    BATCH.but("masked, leaky relu", mask_keeps=0.7, options=LEAKY),
]


@dataclass(frozen=True)
class Share:
    """One process's part of what is joined."""

    sizes: Sequence[int]
    number: int

    def __call__(self, joined: Tensor) -> Tensor:
        return joined.split(list(self.sizes))[self.number]

    def sites(self, case: Case, sizes: Sequence[int]) -> list[int] | None:
        """Return those of the images of this share; `sizes` are those of the processes."""
        if case.sites is None or (case.last_is_silent and len(self.sizes) > 1 and self.number == len(sizes) - 1):
            return None
        said = list(case.sites)
        if case.last_is_silent:
            said[-sizes[-1] :] = [-1] * sizes[-1]
        return self(torch.tensor(said)).tolist()


def filled(layer: nn.Module) -> nn.Module:
    """Give the parameters values away from 1 and 0, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return layer


def batch_of(case: Case, step: int, share: Share) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return images, the gradient of the output, and the mask."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = images(case.shape, case.dtype, seed=step) * (1 + step) + step
    grad = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(case.dtype)
    kept = torch.rand((case.shape[0], *case.shape[2:]), generator=generator) < case.mask_keeps
    if case.mask_ends is not None:
        kept[case.mask_ends :] = False
    x = share(x.sign() if case.two_values else x)
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), share(grad), share(kept) if case.mask_keeps < 1 else None


def train(case: Case, shares: Sequence[int], share: Share, process_group: Any = None) -> dict[str, Any]:
    """Train for some steps, then evaluate; return all that can be seen."""
    layer = filled(case.make(CHANNELS, **case.options, process_group=process_group, dtype=case.dtype))
    sites = share.sites(case, shares)
    context = nullcontext() if sites is None else at_sites(layer, sites)
    outputs, gradients = [], []
    with context:
        for step in range(STEPS):
            x, grad, mask = batch_of(case, step, share)
            y = checkpoint(layer, x, mask, use_reentrant=False) if case.repeated else layer(x, mask)
            y.backward(grad)
            outputs.append(y.detach())
            gradients.append(x.grad)
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        evaluated = layer.eval()(batch_of(case, 99, share)[0]).detach()
    return {
        "outputs": torch.stack(outputs, 1),
        "gradients": torch.stack(gradients, 1),
        "evaluated": evaluated,
        "parameters": gradients_of(layer),
        "buffers": buffers,
    }


def penalize(case: Case, shares: Sequence[int], share: Share, process_group: Any = None) -> dict[str, Tensor]:
    """Differentiate the squared gradient of a function of the output, as a gradient penalty does."""
    layer = filled(case.make(CHANNELS, **case.options, process_group=process_group, dtype=case.dtype))
    sites = share.sites(case, shares)
    with nullcontext() if sites is None else at_sites(layer, sites):
        for step in range(2):
            x, weights, mask = batch_of(case, step, share)
            y = layer(x, mask=mask)
    (gradient,) = torch.autograd.grad((y**3 * weights).sum(), x, create_graph=True)
    (gradient.square().sum() + y.square().sum()).backward()
    assert x.grad is not None
    return {"x": x.grad, **gradients_of(layer)}


def gradients_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return zeros for parameters that took no part."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in layer.named_parameters()}
