"""Measure what lean activations save, and what they cost: bytes kept, peak memory, time of a step.

Each network of MONAI as it comes, of PyTorch's batch normalization and ReLU in place, and converted to ours with the
activation fused; each ordinarily and lean. Rounds alternate between the four, and glibc keeps freed memory
(`mednorm.tune_allocator`). A peak is the most that a step has from PyTorch's allocator at once: what the process holds
beyond that is up to the C library. Writes benchmarks/results/lean.json.

    python benchmarks/lean_memory.py            # five rounds of every case
    python benchmarks/lean_memory.py --smoke    # one round of small inputs, to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet, DenseNet121, SegResNet
from torch import Tensor, nn

from mednorm import __version__, activation_memory, convert, lean_activations
from mednorm.allocator import tune_allocator
from mednorm.bench.machine import cpu_model
from mednorm.bench.timing import quartiles

RELU = ("relu", {"inplace": True})
Build = Callable[[], nn.Module]
# The network, the shape of its input, and that of the smoke run.
CASES: dict[str, tuple[Build, tuple[int, ...], tuple[int, ...]]] = {
    "BasicUNet 3-D": (partial(BasicUNet, 3, 1, 2, norm="batch", act=RELU), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "SegResNet 3-D": (partial(SegResNet, 3, 16, 1, 2, norm="batch", act=RELU), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "BasicUNet 2-D": (partial(BasicUNet, 2, 1, 2, norm="batch", act=RELU), (4, 1, 128, 128), (2, 1, 32, 32)),
    "DenseNet121 2-D": (partial(DenseNet121, 2, 1, 2), (4, 1, 96, 96), (2, 1, 32, 32)),
}
PEERS = ("torch", "torch lean", "mednorm", "mednorm lean")
RESULTS = Path(__file__).parent / "results" / "lean.json"


def networks(build: Build, x: Tensor) -> dict[str, nn.Module]:
    """Return the network of PyTorch and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = build()
    ours = copy.deepcopy(theirs)
    convert(ours, "batch", fuse_activation=True, example=[x])
    return {"torch": theirs, "mednorm": ours}


def step(network: nn.Module, x: Tensor, lean: bool) -> float:
    """Run forward and backward; return the seconds they took."""
    for parameter in network.parameters():
        parameter.grad = None
    started = time.perf_counter()
    with lean_activations(network) if lean else nullcontext():
        loss = network(x).square().mean()
    loss.backward()
    return time.perf_counter() - started


def same_bits(network: nn.Module, x: Tensor) -> bool:
    """Tell whether an ordinary and a lean step of a network give the same gradients, bit for bit."""
    gradients = []
    for lean in (False, True):
        twin = copy.deepcopy(network)
        torch.manual_seed(0)
        step(twin, x, lean)
        gradients.append([parameter.grad for parameter in twin.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


def times(made: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of a step by peer, round by round, after one that is not counted."""
    taken: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for count in range(rounds + 1):
        for peer in PEERS:
            seconds = step(made[peer.split()[0]], x, "lean" in peer)
            taken[peer] += [seconds * 1e3] * (count > 0)
    return taken


def peak(network: nn.Module, x: Tensor, lean: bool) -> int:
    """Return the most bytes that a step has from PyTorch's allocator at once, beyond what it began with."""
    network.zero_grad(set_to_none=True)  # or the gradients of the step before would be given back first
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        step(network, x, lean)
    events = seen.profiler.kineto_results.events() if seen.profiler else []
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(max(accumulate(change for _, change in memory)))


def measure(name: str, rounds: int, smoke: bool) -> dict[str, object]:
    """Return bytes, times and peaks of a case, and whether lean gradients were the ordinary ones."""
    build, *shapes = CASES[name]
    x = torch.randn(shapes[smoke])
    made = networks(build, x)
    kept = {peer: activation_memory(network, x) for peer, network in made.items()}
    taken = times(made, x, rounds)
    ratios = [lean / ours for lean, ours in zip(taken["mednorm lean"], taken["mednorm"], strict=True)]
    return {
        "network": name,
        "shape": list(shapes[smoke]),
        "rounds": rounds,
        "bytes": {peer: kept[peer.split()[0]].to_dict()["lean" if "lean" in peer else "ordinary"] for peer in PEERS},
        "milliseconds": {peer: quartiles(values) for peer, values in taken.items()},
        "ratio": quartiles(ratios),
        "peak": {peer: peak(made[peer.split()[0]], x, "lean" in peer) for peer in PEERS},
        "same_bits": {peer: same_bits(network, x) for peer, network in made.items()},
    }


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one round of small inputs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    allocator = "tuned" if tune_allocator().applied else "default"
    cases = []
    for name in list(CASES)[:1] if arguments.smoke else CASES:
        cases.append(measure(name, 1 if arguments.smoke else 5, arguments.smoke))
        print(json.dumps(cases[-1]))
    machine = {"model": cpu_model(), "threads": torch.get_num_threads(), "allocator": allocator}
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
