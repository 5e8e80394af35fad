"""Time every layer of the batch family against torch.nn.BatchNorm, a training step of forward and backward.

Rounds alternate between the layers, so that a machine that slows down slows all. A round is 16 steps, in which each
layer does all that it ever does. Writes benchmarks/results/family.json.

    python benchmarks/family.py            # seven rounds of every case
    python benchmarks/family.py --smoke    # one short round of the smallest case, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from measured import cpu_model, quartiles
from torch import Tensor, nn

from mednorm import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    RangeBatchNorm,
    __version__,
    domain,
)

CASES = ((2, 32, 64, 64, 64), (8, 64, 56, 56), (32, 32, 28, 28))
STEPS = 16
RESULTS = Path(__file__).parent / "results" / "family.json"


def layers(channels: int, axes: int) -> dict[str, nn.Module]:
    """Return what is compared, by the name that the tables show."""
    plain = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[axes]
    return {
        "torch": plain(channels),
        "BatchNorm": BatchNorm(channels),
        "BatchRenorm": BatchRenorm(channels, schedule=0),
        "GhostBatchNorm": GhostBatchNorm(channels, ghost_size=2),
        "MovingBatchNorm 1": MovingBatchNorm(channels),
        "MovingBatchNorm 4": MovingBatchNorm(channels, refresh_every=4),
        "MovingBatchNorm 16": MovingBatchNorm(channels, refresh_every=16),
        "RangeBatchNorm": RangeBatchNorm(channels),
        "DomainBatchNorm": DomainBatchNorm(channels, domains=2),
        "FrozenBatchNorm": FrozenBatchNorm(channels),
    }


def milliseconds(layer: nn.Module, x: Tensor, grad: Tensor) -> float:
    """Return the mean time of a step; samples of a domain layer come from two sites in turn."""
    started = time.perf_counter()
    for _ in range(STEPS):
        if isinstance(layer, DomainBatchNorm):
            with domain(layer, [number % 2 for number in range(len(x))]):
                layer(x).backward(grad)
        else:
            layer(x).backward(grad)
    return (time.perf_counter() - started) * 1e3 / STEPS


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, object]:
    """Return milliseconds a step of every layer, and its ratio to torch's in the same round."""
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    compared = layers(shape[1], len(shape))
    for layer in compared.values():  # once unmeasured
        milliseconds(layer, x, grad)
    taken: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, layer in compared.items():
            taken[name].append(milliseconds(layer, x, grad))
    ratios = {
        name: [ours / theirs for ours, theirs in zip(times, taken["torch"], strict=True)]
        for name, times in taken.items()
        if name != "torch"
    }
    return {
        "shape": list(shape),
        "rounds": rounds,
        "milliseconds": {name: quartiles(times) for name, times in taken.items()},
        "ratio": {name: quartiles(values) for name, values in ratios.items()},
    }


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round of the smallest case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cases = []
    for shape in CASES[-1:] if arguments.smoke else CASES:
        cases.append(measure(shape, 1 if arguments.smoke else 7))
        print(json.dumps(cases[-1]))
    machine = {"model": cpu_model(), "threads": torch.get_num_threads(), "allocator": "default"}
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
