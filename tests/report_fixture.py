"""A made-up study for the tests of the page: several norms, three seeds, gaps, one diverged run, and hostile text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from mednorm.results import (
    ArmSummary,
    DataSummary,
    Environment,
    Epoch,
    Estimate,
    LayerSummary,
    Results,
    Run,
    Statement,
    Study,
    Target,
)

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u2028"
NORMS = ["none", "batch", "group", "instance", "renorm"]
SEEDS = [0, 1, 2]
LAYERS = [
    f"model.{part}.conv.weight" for part in ("down1", "down2", "down3", "<b>bottom</b>", "up3", "up2", "up1", "head")
]
DEEPER = [*LAYERS[:3], "model.down4.conv.weight", *LAYERS[3:4], "model.up4.conv.weight", *LAYERS[4:]]
SITES = ["Geneva", "<b>Bern</b>", HOSTILE]
UNITS = 12
_QUALITY = {"none": 0.861, "batch": 0.912, "group": 0.905, "instance": 0.897, "renorm": 0.909}
Kind = Literal["classification", "segmentation"]


Arm = tuple[str, str, int, str, float]


def arms(*, more: bool = False) -> list[Arm]:
    """List the star: every norm at every batch size, and two norms with two regularizers at the base batch size.

    With `more`, these two norms with less training data and in a deeper network as well.
    """
    net = "unet" if more else ""
    star = [(norm, "none", size, net, 1.0) for size in (8, 2, 32) for norm in NORMS]
    star += [(norm, reg, 8, net, 1.0) for reg in ("dropout", "weight_decay") for norm in ("none", "batch")]
    if more:
        star += [(norm, "none", 8, net, share) for share in (0.5, 0.125) for norm in ("none", "batch")]
        star += [(norm, "none", 8, "deeper_unet", 1.0) for norm in ("none", "batch")]
    return star


def estimate(values: list[float]) -> Estimate:
    """Pool values as a study does."""
    n = len(values)
    if n == 0:
        return Estimate(n=0, mean=None)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(n=1, mean=mean)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Estimate(n=n, mean=mean, std=std, low=mean - half, high=mean + half)


def _gradients(layers: list[str], slope: float, shift: float, rng: np.random.Generator) -> dict[str, float]:
    depth = len(layers) - 1
    return {
        layer: 0.4 * 10 ** (-slope * (depth - i) - shift + 0.05 * rng.standard_normal())
        for i, layer in enumerate(layers)
    }


def _more(norm: str, size: int, layers: list[str], main: str, best: float, rng: np.random.Generator) -> dict[str, Any]:
    """Everything of a run that only studies of more axes have, as numbers that belong together."""
    key, slope = f"test_{main}", 0.65 if norm == "none" else 0.12
    stale = {2: 0.09, 8: 0.01, 32: 0.002}[size]
    sites = {site: best + 0.03 - 0.07 * place for place, site in enumerate(SITES)}
    return {
        "intervals": {key: (best - 0.03, best + 0.025)},
        "batch_metrics": {key: best + stale + 0.002 * rng.standard_normal()} if norm in ("batch", "renorm") else {},
        "sites": {site: {key: value + 0.01 * rng.standard_normal()} for site, value in sites.items()},
        "initial_gradient_norms": _gradients(layers, slope, 0.0, rng),
    }


def _run(arm: Arm, seed: int, fold: str, main: str, epochs: int, more: bool) -> Run:
    norm, regularizer, size, network, share = arm
    extra = [len(network), int(1000 * share), len(fold) and int(fold[0])] if more else []
    rng = np.random.default_rng([NORMS.index(norm), len(regularizer), size, seed, *extra])
    diverged = (norm, regularizer, size, seed) == ("none", "none", 2, 1)
    drop = {"batch": 0.05, "renorm": 0.02}.get(norm, 0.0) * (size == 2)
    less = (1 - share) * (1.6 if norm == "none" else 1.0)
    best = _QUALITY[norm] - drop - 0.01 * (regularizer == "dropout") - 0.05 * less + 0.004 * rng.standard_normal()
    pace = 2.5 if norm == "none" else 1.3
    deeper = network.startswith("deeper")
    layers = DEEPER if deeper else LAYERS
    records = []
    for number in range(1, (3 if diverged else epochs) + 1):
        done = 1 - math.exp(-number / pace)
        loss = 1.1 - 0.95 * best * done + 0.01 * rng.standard_normal()
        lost = diverged and number == 3
        slope = 0.55 if norm == "none" else 0.08
        records.append(
            Epoch(
                epoch=number,
                train_loss=None if lost else loss,
                val_loss=None if lost else loss + 0.02 + 0.004 * number,
                penalty=0.001 if regularizer == "weight_decay" else None,
                train_metrics={main: None if lost else best * done + 0.02},
                val_metrics={main: None if lost else best * done + 0.006 * rng.standard_normal()},
                gradient_norms=_gradients(layers, slope, 0.05 * number, rng),
                layers={
                    layer: LayerSummary(
                        mean=0.05 * i * (norm == "none") + 0.03 * rng.standard_normal(),
                        variance=(0.6 + 0.05 * number) ** (i * (norm == "none"))
                        * math.exp(0.1 * rng.standard_normal()),
                        range=6.0 * (0.8 ** (i * (norm == "none"))) * math.exp(0.1 * rng.standard_normal()),
                    )
                    for i, layer in enumerate(layers)
                },
                seconds=4.0,
                seconds_per_step=0.05,
                peak_memory_mb=900.0,
            )
        )
    step = size / 8 * {"none": 0.0512, "batch": 0.0561, "group": 0.0633, "instance": 0.0602, "renorm": 0.0588}[norm]
    gap = 0.03 + 0.012 * (norm == "none") - 0.015 * (regularizer != "none") + 0.002 * rng.standard_normal()
    metrics: dict[str, float | None] = {f"train_{main}": best + gap, f"val_{main}": best + 0.004, f"test_{main}": best}
    gap += 0.06 * less
    metrics[f"train_{main}"] = best + gap
    if more:
        metrics[f"test_{main}_<i>fluid</i>"] = best - 0.08
    metrics["test_hd95"] = None if norm == "none" and size == 2 else 4.2 + 10 * (0.92 - best)
    name = f"{norm}-{regularizer}-b{size}-s{seed}"
    name += f"-{network}-{share:g}" * ((network, share) not in (("", 1.0), ("unet", 1.0))) + (fold and f"-f{fold}")
    shown = regularizer == "none" and size == 8 and norm != "renorm" and not deeper and share == 1
    return Run(
        name=name,
        norm=norm,
        regularizer=regularizer,
        batch_size=size,
        network=network,
        train_share=share,
        fold=fold,
        seed=seed,
        status="diverged" if diverged else "finished",
        best_epoch=2 if diverged else epochs,
        epochs_to_target=None if diverged or (norm == "none" and seed) else round(pace * 2.4) + seed,
        seconds_to_target=None,
        metrics=dict.fromkeys(metrics) if diverged else metrics,
        epochs=records,
        seconds=48.0,
        seconds_per_step=step * (1 + 0.02 * rng.standard_normal()),
        peak_memory_mb=None if norm == "renorm" else 620.0 + 40 * size + 8 * NORMS.index(norm) + seed,
        samples=f"runs/{name}/samples.npz" if shown else None,
        **(_more(norm, size, layers, main, best, rng) if more and not diverged else {}),
    )


def _over_units(given: Estimate, wide: float = 0.03) -> Estimate:
    if given.mean is None:
        return Estimate(n=UNITS, mean=None)
    return Estimate(n=UNITS, mean=given.mean, low=given.mean - wide, high=given.mean + wide / 2)


def _summary(runs: list[Run], main: str, more: bool) -> list[ArmSummary]:
    by_arm = {
        arm: [run for run in runs if (run.norm, run.regularizer, run.batch_size, run.network, run.train_share) == arm]
        for arm in arms(more=more)
    }
    key = f"test_{main}"
    made = []
    for arm, mine in by_arm.items():
        norm, regularizer, size, network, share = arm
        pairs = list(zip(mine, by_arm.get(("none", *arm[1:]), []), strict=True)) if norm != "none" else []
        partners = {run.name: other for run, other in pairs}
        metrics = {name: _by_seed(mine, lambda run, name=name: run.metrics[name]) for name in mine[0].metrics}
        versus = {key: _by_seed(mine, lambda run, of=partners: _minus(run, key, of[run.name], key))} if pairs else {}
        judged_twice = [run for run in mine if run.batch_metrics]
        new: dict[str, Any] = {}
        if more:
            new = {
                "over_units": {name: _over_units(given) for name, given in metrics.items() if name.startswith("test_")},
                "versus_none_over_units": {name: _over_units(given, 0.05) for name, given in versus.items()},
                "batch_metrics": {key: _by_seed(judged_twice, lambda run: run.batch_metrics[key])}
                if judged_twice
                else {},
                "mode_gap": {key: _by_seed(judged_twice, lambda run: run.metrics[key] - run.batch_metrics[key])}
                if judged_twice
                else {},
                "sites": {
                    site: {key: _by_seed(mine, lambda run, site=site: run.sites.get(site, {}).get(key))}
                    for site in SITES
                },
                "initial_gradient_decades": estimate([2.1, 2.4, 2.2][: len(mine)]),
            }
        made.append(
            ArmSummary(
                norm=norm,
                regularizer=regularizer,
                batch_size=size,
                network=network,
                train_share=share,
                runs=[run.name for run in mine],
                metrics=metrics,
                generalization_gap=_by_seed(mine, lambda run: _minus(run, f"train_{main}", run, key)),
                epochs_to_target=_by_seed(mine, lambda run: run.epochs_to_target),
                seconds_to_target=Estimate(n=0, mean=None),
                gradient_ratio=estimate([0.01, 0.012]),
                seconds_per_step=_by_seed(mine, lambda run: run.seconds_per_step),
                peak_memory_mb=_by_seed(mine, lambda run: run.peak_memory_mb),
                versus_none=versus,
                **new,
            )
        )
    return made


def _minus(left: Run, ours: str, right: Run, theirs: str) -> float | None:
    a, b = left.metrics[ours], right.metrics[theirs]
    return None if a is None or b is None else a - b


def _by_seed(runs: list[Run], read: Callable[[Run], float | None]) -> Estimate:
    """Pool one number a seed: with folds, the mean of the seed's runs."""
    seeds = dict.fromkeys(run.seed for run in runs)
    found = [[value for run in runs if run.seed == seed and (value := read(run)) is not None] for seed in seeds]
    return estimate([float(np.mean(values)) for values in found if values])


def _statements(more: bool) -> list[Statement]:
    difference = Estimate(n=3, mean=0.051, std=0.004, low=0.041, high=0.061)
    said: list[dict[str, Any]] = [
        {
            "topic": "caution",
            "verdict": "info",
            "text": "Three seeds: intervals are wide, and say nothing of other hospitals.",
        },
        {
            "topic": "quality",
            "verdict": "better",
            "difference": difference,
            "text": "With batch normalization the test Dice was higher than without normalization, at batch size 8.",
        },
        {
            "topic": "quality",
            "verdict": "not distinguishable",
            "difference": Estimate(n=3, mean=-0.007, low=-0.02, high=0.006),
            "text": "Group and batch normalization could not be told apart at batch size 8.",
        },
        {
            "topic": "speed",
            "verdict": "better",
            "text": "Batch normalization reached the target in 3 epochs, no normalization in 6.",
        },
        {"topic": "batch_size", "verdict": "worse", "text": "At batch size 2, batch normalization lost 0.05 of Dice."},
        {"topic": "cost", "verdict": "worse", "text": "A training step took 10 % longer with batch normalization."},
        {"topic": "data", "verdict": "info", "text": f"Site {HOSTILE} gave most of the images."},
    ]
    if more:
        over = Estimate(n=UNITS, mean=0.051, low=0.01, high=0.09)
        said = [
            {
                "topic": "quality",
                "verdict": "better",
                "difference": difference,
                "over_units": over,
                "text": "Batch normalization against none: difference +0.051 [+0.041, +0.061] over 3 paired seeds, "
                "[+0.010, +0.090] over 12 patients: better.",
            },
            {"topic": "modes", "verdict": "worse", "text": "Running statistics lost 0.09 of Dice at batch size 2."},
            {"topic": "sites", "verdict": "not distinguishable", "text": f"At site {SITES[1]}, nothing could be told."},
            *said,
        ]
    return [Statement(**sentence) for sentence in said]


def make_results(
    kind: Kind = "segmentation",
    *,
    seeds: list[int] | None = None,
    epochs: int = 12,
    more: bool = False,
    folds: int = 1,
) -> Results:
    """Build the study; with segmentation `test_dice` is the main metric, with classification `test_auc`.

    Without `more` it holds what files held before networks, shares, sites, evaluation modes and intervals over
    patients came in; with it all of these, and as many folds as asked for.
    """
    seeds = SEEDS if seeds is None else seeds
    main = "dice" if kind == "segmentation" else "auc"
    names = [f"{i + 1}of{folds}" for i in range(folds)] if folds > 1 else [""]
    runs = [_run(arm, seed, fold, main, epochs, more) for arm in arms(more=more) for seed in seeds for fold in names]
    axes: dict[str, Any] = {}
    if more:
        axes = {
            "networks": ["unet", "deeper_unet"],
            "train_shares": [1.0, 0.5, 0.125],
            "folds": names,
            "left_out": {"instance, batch size 1": "a single value per channel has no variance"},
        }
    extra = {"unit": "patient", "resampled": "patients"} if more else {}
    classes = (
        ["background", "grey matter", "white matter", "fluid"] if kind == "segmentation" else ["healthy", "pneumonia"]
    )
    return Results(
        schema_version=1,
        study=Study(
            task="tissue", preset="demo", main_metric=main, network="BasicUNet", parameters=123_456, norms=NORMS,
            regularizers=["none", "dropout", "weight_decay"], batch_sizes=[8, 2, 32], base_batch_size=8, seeds=seeds,
            grid="star", epochs=epochs, optimizer="AdamW", learning_rate=0.001,
            target=Target(metric=f"val_{main}", value=0.8, source="95 % of what the arm without normalization reached"),
            data=DataSummary(
                source=f"ICBM152 {HOSTILE}", kind=kind, classes=classes, shape=[1, 64, 64],
                images={"train": 600, "val": 120, "test": 120}, patients={"train": 60, "val": 12, "test": 12},
                sites=["Geneva", HOSTILE], note="Contrast varies from image to image, as between scanners.", **extra,
            ),
            settings={"task": "tissue", "batch_sizes": [8, 2, 32], "learning_rate": 0.001, "clip": None,
                      "deterministic": True},
            **axes,
        ),
        runs=runs,
        summary=_summary(runs, main, more),
        statements=_statements(more),
        environment=Environment(
            command="mednorm study tissue --out results --seeds 0,1,2 && echo '<done>'",
            started="2026-01-05T09:00:00+00:00", finished="2026-01-05T09:42:10+00:00", mednorm="0.1.0", python="3.11.9",
            platform="Linux-6.1-x86_64", processor="Example CPU", cores=2, threads=2, device="cpu", commit=None,
            packages={"torch": "2.13.0", "monai": "1.6.0"},
        ),
    )  # fmt: skip


def sample_arrays(
    kind: Kind = "segmentation", count: int = 7, channels: int = 1, size: int = 48
) -> dict[str, np.ndarray]:
    """Make images of a bright ring in a grey disc, with a truth and a slightly shifted prediction."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images, truths, predictions = [], [], []
    for i in range(count):
        radius = np.hypot(x, y * 1.2)
        truth = np.digitize(radius, [0.25, 0.55, 0.8]).astype(np.int64)
        truth = np.array([3, 2, 1, 0], dtype=np.int64)[truth]
        image = np.array([5.0, 420.0, 700.0, 160.0])[truth] + 60 * rng.standard_normal(truth.shape)
        images.append(np.stack([image + 20 * channel for channel in range(channels)]))
        truths.append(truth)
        predictions.append(np.roll(truth, 1 + i % 3, axis=1))
    common = {
        "image": np.stack(images).astype(np.float32),
        "name": np.array([f"patient-{i:02d}" for i in range(count)]),
        "site": np.array(["Geneva"] * (count - 1) + [HOSTILE]),
    }
    common["site"][min(1, count - 1)] = HOSTILE[: common["site"].dtype.itemsize // 4]
    if kind == "segmentation":
        return {**common, "truth": np.stack(truths), "prediction": np.stack(predictions)}
    truth = np.arange(count) % 2
    prediction = truth.copy()
    prediction[2] = 1 - prediction[2]
    probability = np.where(np.arange(2)[None] == prediction[:, None], 0.875, 0.125).astype(np.float32)
    return {
        **common,
        "truth": truth.astype(np.int64),
        "prediction": prediction.astype(np.int64),
        "probability": probability,
    }


def write_samples(results: Results, folder: Path, **options: Any) -> list[Path]:
    """Write the npz of every run that names one."""
    written = []
    for run in results.runs:
        if run.samples is not None:
            path = folder / run.samples
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **sample_arrays(results.study.data.kind, **options))
            written.append(path)
    return written
