"""Measure what a probe costs, in evaluation passes over the same data.

Networks of MONAI with PyTorch's batch normalization, in single precision. Rounds alternate between an evaluation pass
and a probe without its training step; ratios are within a round. The time is that of the processor, of one
thread, so that what else runs on the machine does not count. glibc keeps freed memory (`mednorm.tune_allocator`) in all
of them. Writes benchmarks/results/probe.json.

    python benchmarks/probe_cost.py            # five rounds of every network
    python benchmarks/probe_cost.py --smoke    # one round of a small network, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet, DenseNet121, SegResNet, resnet18
from torch import nn

from mednorm import __version__
from mednorm.allocator import tune_allocator
from mednorm.bench.machine import cpu_model
from mednorm.bench.timing import quartiles
from mednorm.examine.probe import probe
from mednorm.guards import evaluation_mode
from mednorm.population.batches import Batches, call

Build = Callable[[], nn.Module]
# The network, the shape of a batch, and that of the smoke run.
CASES: dict[str, tuple[Build, tuple[int, ...], tuple[int, ...]]] = {
    "BasicUNet 3-D": (partial(BasicUNet, 3, 1, 2, norm="batch"), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "SegResNet 3-D": (partial(SegResNet, 3, 16, 1, 2, norm="batch"), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "BasicUNet 2-D": (partial(BasicUNet, 2, 1, 2, norm="batch"), (4, 1, 96, 96), (2, 1, 32, 32)),
    "DenseNet121 2-D": (partial(DenseNet121, 2, 1, 2), (8, 1, 128, 128), (2, 1, 32, 32)),
    "ResNet-18 2-D": (
        partial(resnet18, spatial_dims=2, n_input_channels=1, num_classes=2),
        (4, 1, 96, 96),
        (2, 1, 32, 32),
    ),
}
BATCHES = 12
PEERS = ("evaluation", "probe")
RESULTS = Path(__file__).parent / "results" / "probe.json"


def evaluate(network: nn.Module, batches: Batches) -> None:
    """Run a network over the data as an evaluation does, without keeping the outputs."""
    with evaluation_mode(network):
        for batch in batches:
            call(network, batch)


def measure(name: str, rounds: int, smoke: bool) -> dict[str, object]:
    """Return seconds of each, round by round after one that does not count, and a probe's in evaluation passes."""
    build, *shapes = CASES[name]
    torch.manual_seed(0)
    network = build()
    batches = Batches([{"image": torch.randn(shapes[smoke]), "site": ["A", "B"] * (shapes[smoke][0] // 2)}] * BATCHES)
    runs: dict[str, Callable[[], object]] = {
        "evaluation": partial(evaluate, network, batches),
        "probe": partial(probe, network, batches, try_step=False),
    }
    seconds: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for count in range(rounds + 1):
        for peer in PEERS:
            started = time.process_time()
            runs[peer]()
            seconds[peer] += [time.process_time() - started] * (count > 0)
    passes = [one / whole for one, whole in zip(seconds["probe"], seconds["evaluation"], strict=True)]
    return {
        "network": name,
        "layers": len(probe(network, Batches([torch.randn(shapes[True])]), try_step=False).layers),
        "shape": list(shapes[smoke]),
        "batches": BATCHES,
        "rounds": rounds,
        "seconds": {peer: quartiles(values) for peer, values in seconds.items()},
        "passes": quartiles(passes),
    }


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one round of a small network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
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
