"""Time BatchNorm against torch.nn.BatchNorm, forward and backward, side by side in one process.

Rounds alternate between the two, so that a machine that slows down slows both. Writes benchmarks/results/layer.json.

    python benchmarks/layer.py            # five rounds of every case
    python benchmarks/layer.py --smoke    # one short round, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from measured import quartiles
from torch import nn
from torch.utils.benchmark import Timer

from mednorm import BatchNorm, __version__

CASES = ((2, 32, 64, 64, 64), (8, 64, 32, 32, 32), (32, 64, 56, 56), (128, 32, 28, 28), (256, 64, 14, 14))
RESULTS = Path(__file__).parent / "results" / "layer.json"


def peers(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return what is compared: normalization followed by ReLU, in the ways a user would write it."""
    plain = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    return {
        "torch": nn.Sequential(plain(shape[1]), nn.ReLU()),
        "mednorm": nn.Sequential(BatchNorm(shape[1]), nn.ReLU()),
        "mednorm fused": BatchNorm(shape[1], activation="relu"),
    }


def measure(shape: tuple[int, ...], rounds: int, seconds: float) -> dict[str, object]:
    """Return the median and quartiles of milliseconds a step, over rounds that alternate between the peers."""
    x = torch.randn(shape, requires_grad=True)
    grad = torch.randn(shape)
    timers = {
        name: Timer("layer(x).backward(grad)", globals={"layer": layer, "x": x, "grad": grad}, num_threads=threads())
        for name, layer in peers(shape).items()
    }
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            found[name].append(timer.blocked_autorange(min_run_time=seconds).median * 1e3)
    return {"shape": list(shape), "milliseconds": {name: quartiles(times) for name, times in found.items()}}


def threads() -> int:
    """Return as many threads as PyTorch would use."""
    return torch.get_num_threads()


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round, of the two smallest cases")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.01) if arguments.smoke else (5, 0.5)
    cases = []
    for shape in CASES[3:] if arguments.smoke else CASES:
        cases.append(measure(shape, rounds, seconds))
        print(json.dumps(cases[-1]))
    machine = {"processor": platform.processor() or platform.machine(), "threads": threads(), "allocator": "default"}
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
