"""Measure what `mednorm.NormMonitor` costs: the time of a training step that it looks at beside one that it does not.

Networks of MONAI are trained by Lightning with a look at every other step, so that both kinds of steps take turns in
one training, and their medians are compared. At the default interval one step in 50 is looked at: the share of a
training's time is a fiftieth of what a look adds to a step. Writes benchmarks/results/monitor.json.

    python benchmarks/monitor_cost.py            # thirty looks at every network
    python benchmarks/monitor_cost.py --smoke    # two looks at small inputs, to see that it runs
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from monai.networks.nets import BasicUNet, DenseNet121, SegResNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mednorm import NormMonitor, __version__
from mednorm.allocator import tune_allocator
from mednorm.bench.machine import cpu_model
from mednorm.bench.timing import quartiles

# The network, the shape of a batch, and that of the smoke run.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "BasicUNet 3-D": (partial(BasicUNet, 3, 1, 2, norm="batch"), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "SegResNet 3-D": (partial(SegResNet, 3, 16, 1, 2, norm="batch"), (2, 1, 32, 32, 32), (2, 1, 16, 16, 16)),
    "DenseNet121 2-D": (partial(DenseNet121, 2, 1, 2), (8, 1, 96, 96), (2, 1, 32, 32)),
}
EVERY = 2
INTERVAL: int = inspect.signature(NormMonitor).parameters["every_n_steps"].default
RESULTS = Path(__file__).parent / "results" / "monitor.json"


class Module(pl.LightningModule):
    """A network whose loss is the mean square of its output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Run it."""
        loss: Tensor = self.network(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Choose small steps."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Takes the time at which steps begin, where it is first of the callbacks, and end, where it is last."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Take the time."""
        self.begun.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the time."""
        self.ended.append(time.perf_counter())


def measure(name: str, looks: int, smoke: bool) -> dict[str, object]:
    """Return the milliseconds of steps with and without a look, and the share of the time at the default interval."""
    build, *shapes = CASES[name]
    torch.manual_seed(0)
    shape = shapes[smoke]
    steps = EVERY * (looks + 1)
    images = TensorDataset(torch.randn(steps * shape[0], *shape[1:]))
    first, last = Clock(), Clock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's about workers, and of findings
        trainer = pl.Trainer(
            max_steps=steps,
            callbacks=[first, NormMonitor(EVERY, budget=None), last],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Module(build()), DataLoader(images, batch_size=shape[0]))
    taken = [1e3 * (end - begin) for begin, end in zip(first.begun, last.ended, strict=True)][EVERY:]
    without, looked = taken[::EVERY], taken[EVERY - 1 :: EVERY]
    added = [with_look / plain - 1 for with_look, plain in zip(looked, without, strict=True)]
    return {
        "network": name,
        "shape": list(shape),
        "looks": looks,
        "milliseconds": {"ordinary": quartiles(without), "looked at": quartiles(looked)},
        "added": quartiles(added),
        "share": quartiles(added)["median"] / INTERVAL,
    }


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two looks at small inputs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    allocator = "tuned" if tune_allocator().applied else "default"
    cases = []
    for name in list(CASES)[:1] if arguments.smoke else CASES:
        cases.append(measure(name, 2 if arguments.smoke else 30, arguments.smoke))
        print(json.dumps(cases[-1]))
    machine = {"model": cpu_model(), "threads": torch.get_num_threads(), "allocator": allocator}
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine, "versions": versions, "interval": INTERVAL, "cases": cases}
    arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
