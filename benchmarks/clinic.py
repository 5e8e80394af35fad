"""A network that works in training and fails in the clinic: a hospital left out, its scanner at another gain.

Trains the brain task without one hospital, on images scaled by the training's mean and spread, then judges it on that
hospital's images as they are and at another gain and offset; examines it there; adapts it to half of the hospital's
patients, without their labels; and judges it on the other half. Writes benchmarks/results/clinic.json.

    python benchmarks/clinic.py --data brain            # three seeds; a folder with a manifest.csv that names sites
    python benchmarks/clinic.py --data brain --smoke    # one seed, small images, to see that it runs
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mednorm import __version__
from mednorm.cli.app import run
from mednorm.training.evaluation import evaluate_run
from mednorm.training.treatment import treat_run

HOSPITAL, GAIN, OFFSET = "HT", 0.4, 20.0
RESULTS = Path(__file__).parent / "results" / "clinic.json"


def scanner(source: Path, out: Path, site: str, gain: float, offset: float) -> Path:
    """Write a manifest in which one site's images have another gain and offset.

    Half of its patients are split "train", the other half "test"; the other sites are "val", where they lie.

    Returns:
        The manifest.

    """
    with (source / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    patients = sorted({row["patient"] for row in rows if row["site"] == site})
    for row in rows:
        image = source / row["image"]
        row["mask"] = str((source / row["mask"]).resolve())
        if row["site"] != site:
            row["image"], row["split"] = str(image.resolve()), "val"
            continue
        row["split"] = "train" if row["patient"] in patients[::2] else "test"
        pixels = np.asarray(Image.open(image), np.float64) * gain + offset
        (out / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(out / row["image"])
    manifest = out / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def measure(seed: int, data: Path, same: Path, other: Path, folder: Path, options: list[str]) -> dict[str, object]:
    """Train, judge, examine, treat and judge again with one seed."""
    trained, treated = folder / f"seed{seed}", folder / f"seed{seed}-treated"
    told = ["--holdout-site", HOSPITAL, "--scaling", "training", "--seed", str(seed), *options]
    assert run(["train", "brain", "--data", str(data), "--out", str(trained), *told]) == 0
    done = treat_run(trained, str(other), "all", folder / f"seed{seed}-all")
    first = done.before.findings[0]
    treat_run(trained, str(other), "train", treated, fix=["MN004"], site=HOSPITAL)
    dice = {
        "as it was": evaluate_run(trained, str(same), "test").metrics["dice"],
        "other scanner": evaluate_run(trained, str(other), "test").metrics["dice"],
        "treated": evaluate_run(treated, str(other), "test").metrics["dice"],
    }
    was, now, then = dice.values()
    assert was is not None
    assert now is not None
    assert then is not None
    return {
        "seed": seed,
        "code": first.code,
        "site": done.site,
        "distance": first.evidence[0].value,
        "dice": dice,
        "recovered": (then - now) / (was - now),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the brain task's manifest.csv")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="folder of the runs, with which this goes on where it was")
    parser.add_argument("--smoke", action="store_true", help="one seed, small images, one epoch")
    told = parser.parse_args()
    seeds, options = (range(3), ["--epochs", "5"]) if not told.smoke else (range(1), ["--epochs", "1"])
    options += ["--image-size", "32,32"] if told.smoke else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = told.work or Path(scratch)
        same = scanner(told.data, folder / "same", HOSPITAL, 1.0, 0.0)
        other = scanner(told.data, folder / "other", HOSPITAL, GAIN, OFFSET)
        runs = [measure(seed, told.data, same, other, folder, options) for seed in seeds]
    about = {"mednorm": __version__, "hospital": HOSPITAL, "gain": GAIN, "offset": OFFSET, "options": options}
    told.out.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
