"""A network that works in training and fails in the clinic: a hospital left out, its scanner at another gain.

Trains the brain task without one hospital, on images scaled by the training's mean and spread, then judges it on that
hospital's images as they are and as three other scanners would give them; examines it there; adapts it to half of the
hospital's patients, without their labels; and judges it on the other half. Writes benchmarks/results/clinic.json.

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

HOSPITAL = "HT"
SCANNERS = ((0.4, 0.0), (0.4, 20.0), (0.5, 60.0))  # gain, and offset in grey values of 255
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


def measure(trained: Path, same: Path, other: Path) -> dict[str, object]:
    """Examine a run at another scanner, treat it, and judge it before and after."""
    everything, treated = (trained.with_name(f"{trained.name}-{other.parent.name}-{what}") for what in ("all", "half"))
    done = treat_run(trained, str(other), "all", everything)
    first = done.before.findings[0]
    treat_run(trained, str(other), "train", treated, fix=["MN004"], site=HOSPITAL)
    was, now, then = (
        evaluate_run(run, str(data), "test").metrics["dice"]
        for run, data in ((trained, same), (trained, other), (treated, other))
    )
    assert was is not None
    assert now is not None
    assert then is not None
    return {
        "code": first.code,
        "site": done.site,
        "distance": first.evidence[0].value,
        "dice": {"as it was": was, "other scanner": now, "treated": then},
        "recovered": (then - now) / (was - now),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the brain task's manifest.csv")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="folder of the runs; those that are trained are not trained again")
    parser.add_argument("--smoke", action="store_true", help="one seed, small images, one epoch")
    told = parser.parse_args()
    seeds, options = (range(3), ["--epochs", "5"]) if not told.smoke else (range(1), ["--epochs", "1"])
    options += ["--image-size", "32,32"] if told.smoke else []
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = told.work or Path(scratch)
        same = scanner(told.data, folder / "same", HOSPITAL, 1.0, 0.0)
        for seed in seeds:
            trained = folder / f"seed{seed}"
            asked = ["--holdout-site", HOSPITAL, "--scaling", "training", "--seed", str(seed), *options]
            assert run(["train", "brain", "--data", str(told.data), "--out", str(trained), *asked]) == 0
            for gain, offset in SCANNERS:
                other = scanner(told.data, folder / f"gain{gain}-offset{offset}", HOSPITAL, gain, offset)
                runs.append({"gain": gain, "offset": offset, "seed": seed} | measure(trained, same, other))
                print(json.dumps(runs[-1]), flush=True)
    about = {"mednorm": __version__, "hospital": HOSPITAL, "options": options}
    told.out.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
