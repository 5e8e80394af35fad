"""Predict peak memory with mednorm.advise_batch_size, and measure it at batch sizes that were not used for that.

Each network is advised on in a process of its own, which may measure small batches alone (`--seconds`). Then it is
trained for some steps at larger sizes, and at one between, each three times in a fresh process that measures its own
peak: all of its resident memory, libraries and data included; the median counts. All of it with the allocator as it
comes, and tuned as `mednorm train` has it. Writes benchmarks/results/advise.json.

    python benchmarks/advise_memory.py            # three networks
    python benchmarks/advise_memory.py --smoke    # small inputs of one network, to see that it runs
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

# MONAI imports TensorBoard, and that TensorFlow where it is installed, whose memory is not that of a training.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

import torch
from monai.networks.nets import BasicUNet, DenseNet121
from torch import nn
from torch.nn.functional import cross_entropy

from mednorm import __version__, advise_batch_size
from mednorm.allocator import SWITCH, tune_allocator
from mednorm.bench.machine import cpu_model
from mednorm.memory import PeakMemory
from mednorm.tasks.networks import Shape, build_network

Build = Callable[[], nn.Module]
Trained = dict[tuple[str, str, int], list[int]]  # peaks by network, allocator and batch size
CNN = partial(
    build_network, "article_cnn", Shape(1, (64, 64), 2), "batch", kind="classification", dropout=0.0, placement=None
)
# The network, and the shape of an image.
CASES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "BasicUNet 3-D": (partial(BasicUNet, 3, 1, 2, norm="batch"), (1, 32, 32, 32)),
    "DenseNet121 2-D": (partial(DenseNet121, 2, 1, 2), (1, 96, 96)),
    "the article's CNN": (CNN, (1, 64, 64)),
}
RESULTS = Path(__file__).parent / "results" / "advise.json"
ALLOCATORS = ("default", "tuned")
IMAGES, STEPS, TIMES = 64, 8, 3


def data(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return the network, images and labels of a case, the same in every process."""
    torch.manual_seed(0)
    build, shape = CASES[name]
    network, images = build(), torch.randn(IMAGES, *shape)
    dense = name.endswith("3-D")
    return network, images, torch.randint(2, (IMAGES, *shape[1:]) if dense else (IMAGES,))


def advise(name: str, seconds: float) -> dict[str, Any]:
    """Advise on a network; no limit stands in the way."""
    network, images, labels = data(name)
    loader = list(zip(images.split(8), labels.split(8), strict=True))
    advice = advise_batch_size(network, loader, loss=cross_entropy, seconds=seconds)
    written = advice.to_dict()
    return {"memory": written["memory"], "measured": written["measured"]}


def train(name: str, batch_size: int) -> int:
    """Train for some steps; return the peak of the process in bytes."""
    network, images, labels = data(name)
    optimizer = torch.optim.Adam(network.parameters())
    rows = torch.arange(batch_size).remainder(IMAGES)
    images, labels = images[rows], labels[rows]
    memory = PeakMemory(torch.device("cpu"))
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    return round((memory.total() or 0) * 2**20)


def apart(allocator: str, *words: object) -> Any:
    """Run this script with some words in a process of its own, with an allocator; return what it printed."""
    command, surroundings = [sys.executable, __file__, *map(str, words)], os.environ | {SWITCH: allocator}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=surroundings)
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str, allocator: str, seconds: float, known: Trained, sizes: int = 3, times: int = TIMES
) -> dict[str, Any]:
    """Return what was predicted and measured of a network, at so many sizes that the fit does not know."""
    advised = apart(allocator, "--advise", name, "--seconds", seconds)
    fitted, largest = advised["memory"], advised["measured"][-1]["batch_size"]
    rows = []
    for size in (3 * largest // 4, 3 * largest // 2, 3 * largest)[:sizes]:
        peaks = known.get((name, allocator, size)) or [apart(allocator, "--train", name, size) for _ in range(times)]
        predicted = round(max(fitted["floor"], fitted["fixed"] + fitted["per_image"] * size))
        error = predicted / median(peaks) - 1
        rows.append({"batch_size": size, "predicted": predicted, "peaks": peaks, "error": error})
    return {"network": name, "shape": list(CASES[name][1]), "allocator": allocator, **advised, "unseen": rows}


def trained(path: Path) -> Trained:
    """Return the peaks of trainings that a file has."""
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {
        (case["network"], case["allocator"], row["batch_size"]): row["peaks"]
        for case in cases
        for row in case["unseen"]
    }


def main() -> None:
    """Run every case and write the file, or one part of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one network, as little as possible")
    parser.add_argument("--seconds", type=float, default=20.0, help="that measuring may last, about")
    parser.add_argument("--keep", action="store_true", help="predict anew, with the trainings that the file has")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--advise", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    tune_allocator()
    if asked.advise:
        print(json.dumps(advise(asked.advise, asked.seconds)))
        return
    if asked.train:
        print(json.dumps(train(asked.train[0], int(asked.train[1]))))
        return
    known, cases = trained(asked.out) if asked.keep else {}, []
    for name, allocator in [(list(CASES)[-1], "tuned")] if asked.smoke else product(CASES, ALLOCATORS):
        least = {"seconds": 0.0, "sizes": 1, "times": 1} if asked.smoke else {"seconds": asked.seconds}
        cases.append(measure(name, allocator, known=known, **least))
        print(json.dumps(cases[-1]), flush=True)
    machine = {"model": cpu_model(), "threads": torch.get_num_threads()}
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
