"""Fine-tune a pretrained network on four images of a scanner it never saw, with moving and with frozen statistics.

A U-Net with batch normalization learns grey and white matter from three of the four simulated scanners of the images
that come along, then is trained on with batches of one or two images of the fourth. Writes
benchmarks/results/fine_tuning.json: Dice on test images of the new scanner and of the old ones, for every seed.

    python benchmarks/fine_tuning.py            # three seeds
    python benchmarks/fine_tuning.py --smoke    # one seed, a few steps, to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import nn

from mednorm import __version__, freeze
from mednorm.data import Arrays
from mednorm.tasks import Prepared, Task, find_task
from mednorm.tasks.scaling import fit_input_scaling
from mednorm.training.batches import training_loader
from mednorm.training.evaluation import evaluate

NEW, IMAGES = "lowfield", 4
ARMS = {
    "not fine-tuned": None,
    "moving statistics": {},
    "frozen statistics": {"statistics": True},
    "frozen statistics, γ and β": {"statistics": True, "affine": True},
}
RESULTS = Path(__file__).parent / "results" / "fine_tuning.json"


def at(arrays: Arrays, new: bool) -> Arrays:
    """Take the images of the new scanner, or of the others."""
    return arrays.take([row for row, site in enumerate(arrays.sites) if (site == NEW) == new])


def fit(network: nn.Module, task: Task, arrays: Arrays, batch_size: int, steps: int, rate: float, seed: int) -> None:
    """Train for some steps with Adam."""
    loss, optimizer = task.loss(), torch.optim.Adam(network.parameters(), lr=rate)
    for images, targets, _ in training_loader(arrays, batch_size, seed, steps):
        optimizer.zero_grad()
        loss(network.train()(images), targets).backward()
        optimizer.step()


def dice(network: nn.Module, task: Task, prepared: Prepared, new: bool) -> float:
    """Judge the test images of the new scanner, or of the others, in evaluation mode."""
    arrays = at(prepared.splits()["test"], new)
    score = evaluate(network, arrays, task.judge(prepared.images.classes, arrays))["dice"]
    assert score is not None
    return score


def measure(seed: int, task: Task, prepared: Prepared, steps: int, more: int) -> list[dict[str, object]]:
    """Pretrain once, then fine-tune a copy in every way."""
    train = prepared.splits()["train"]
    torch.manual_seed(seed)
    pretrained = task.network_for(prepared.shape, task.network, "batch")
    fit_input_scaling(pretrained, at(train, False).images)
    fit(pretrained, task, at(train, False), 8, steps, 3e-3, seed)
    few = at(train, True)
    few = few.take(list(range(IMAGES)))
    found: list[dict[str, object]] = []
    for batch_size in (1, 2):
        for arm, held in ARMS.items():
            network = copy.deepcopy(pretrained)
            if held:
                freeze(network, **held)
            if held is not None:
                fit(network, task, few, batch_size, more, 3e-4, seed)
            scores = {"new": dice(network, task, prepared, True), "old": dice(network, task, prepared, False)}
            found.append({"seed": seed, "batch_size": batch_size, "arm": arm, **scores})
            print(json.dumps(found[-1], ensure_ascii=False), flush=True)
    return found


def main() -> None:
    """Run every seed and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one seed, a few steps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    task = find_task("tissue")
    prepared = task.prepare(None)
    steps, more, seeds = (4, 2, [0]) if arguments.smoke else (300, 60, [0, 1, 2])
    runs = [run for seed in seeds for run in measure(seed, task, prepared, steps, more)]
    about = {"images": IMAGES, "site": NEW, "steps": steps, "fine_tuning_steps": more, "seeds": seeds}
    versions = {"mednorm": __version__, "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "versions": versions, "runs": runs}, indent=1, ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
