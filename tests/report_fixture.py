"""A made-up study for the tests of the page: several norms, three seeds, gaps, one diverged run, and hostile text."""

from __future__ import annotations

import math
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
_QUALITY = {"none": 0.861, "batch": 0.912, "group": 0.905, "instance": 0.897, "renorm": 0.909}
Kind = Literal["classification", "segmentation"]


def arms() -> list[tuple[str, str, int]]:
    """List the star: every norm at every batch size, and two norms with two regularizers at the base batch size."""
    star = [(norm, "none", size) for size in (8, 2, 32) for norm in NORMS]
    return star + [(norm, reg, 8) for reg in ("dropout", "weight_decay") for norm in ("none", "batch")]


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


def _run(norm: str, regularizer: str, size: int, seed: int, main: str, epochs: int, samples: bool) -> Run:
    rng = np.random.default_rng([NORMS.index(norm), len(regularizer), size, seed])
    diverged = (norm, regularizer, size, seed) == ("none", "none", 2, 1)
    drop = {"batch": 0.05, "renorm": 0.02}.get(norm, 0.0) * (size == 2)
    best = _QUALITY[norm] - drop - 0.01 * (regularizer == "dropout") + 0.004 * rng.standard_normal()
    pace = 2.5 if norm == "none" else 1.3
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
                gradient_norms={
                    layer: 0.4 * 10 ** (-slope * (len(LAYERS) - 1 - i) - 0.05 * number + 0.05 * rng.standard_normal())
                    for i, layer in enumerate(LAYERS)
                },
                layers={
                    layer: LayerSummary(
                        mean=0.05 * i * (norm == "none") + 0.03 * rng.standard_normal(),
                        variance=(0.6 + 0.05 * number) ** (i * (norm == "none"))
                        * math.exp(0.1 * rng.standard_normal()),
                        range=6.0 * (0.8 ** (i * (norm == "none"))) * math.exp(0.1 * rng.standard_normal()),
                    )
                    for i, layer in enumerate(LAYERS)
                },
                seconds=4.0,
                seconds_per_step=0.05,
                peak_memory_mb=900.0,
            )
        )
    step = size / 8 * {"none": 0.0512, "batch": 0.0561, "group": 0.0633, "instance": 0.0602, "renorm": 0.0588}[norm]
    gap = 0.03 + 0.012 * (norm == "none") - 0.015 * (regularizer != "none") + 0.002 * rng.standard_normal()
    metrics: dict[str, float | None] = {f"train_{main}": best + gap, f"val_{main}": best + 0.004, f"test_{main}": best}
    metrics["test_hausdorff_95"] = None if norm == "none" and size == 2 else 4.2 + 10 * (0.92 - best)
    return Run(
        name=f"{norm}-{regularizer}-b{size}-s{seed}",
        norm=norm,
        regularizer=regularizer,
        batch_size=size,
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
        samples=f"runs/{norm}-{regularizer}-b{size}-s{seed}/samples.npz" if samples else None,
    )


def _present(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _summary(runs: list[Run], main: str) -> list[ArmSummary]:
    by_arm = {arm: [run for run in runs if (run.norm, run.regularizer, run.batch_size) == arm] for arm in arms()}
    key = f"test_{main}"
    made = []
    for (norm, regularizer, size), mine in by_arm.items():
        pairs = list(zip(mine, by_arm.get(("none", regularizer, size), []), strict=True)) if norm != "none" else []
        differences = [
            a.metrics[key] - b.metrics[key]  # type: ignore[operator]
            for a, b in pairs
            if a.metrics[key] is not None and b.metrics[key] is not None
        ]
        gaps = [
            run.metrics[f"train_{main}"] - run.metrics[key]  # type: ignore[operator]
            for run in mine
            if run.metrics[key] is not None
        ]
        made.append(
            ArmSummary(
                norm=norm,
                regularizer=regularizer,
                batch_size=size,
                runs=[run.name for run in mine],
                metrics={name: estimate(_present([run.metrics[name] for run in mine])) for name in mine[0].metrics},
                generalization_gap=estimate(gaps),
                epochs_to_target=estimate(_present([run.epochs_to_target for run in mine])),
                seconds_to_target=Estimate(n=0, mean=None),
                gradient_ratio=estimate([0.01, 0.012]),
                seconds_per_step=estimate([run.seconds_per_step for run in mine]),
                peak_memory_mb=estimate(_present([run.peak_memory_mb for run in mine])),
                versus_none={key: estimate(differences)} if pairs else {},
            )
        )
    return made


def _statements() -> list[Statement]:
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
    return [Statement(**sentence) for sentence in said]


def make_results(kind: Kind = "segmentation", *, seeds: list[int] | None = None, epochs: int = 12) -> Results:
    """Build the study; with segmentation `test_dice` is the main metric, with classification `test_auc`."""
    seeds = SEEDS if seeds is None else seeds
    main = "dice" if kind == "segmentation" else "auc"
    runs = [
        _run(norm, reg, size, seed, main, epochs, samples=reg == "none" and size == 8 and norm != "renorm")
        for norm, reg, size in arms()
        for seed in seeds
    ]
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
                sites=["Geneva", HOSTILE], note="Contrast varies from image to image, as between scanners.",
            ),
            settings={"task": "tissue", "batch_sizes": [8, 2, 32], "learning_rate": 0.001, "clip": None,
                      "weights": {"a": 0.5}, "deterministic": True},
        ),
        runs=runs,
        summary=_summary(runs, main),
        statements=_statements(),
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
