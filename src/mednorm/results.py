"""The schema of `results.json`, version 1. It needs pydantic alone, so that results are read without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mednorm.errors import RunError

SCHEMA_VERSION = 1

# JSON has no infinity and no NaN: a quantity that does not exist is null, with its reason beside it.
Number = Annotated[float, Field(allow_inf_nan=False)]

# Lower and upper end of a 95 % interval; null where it is not defined.
Interval = tuple[Number, Number] | None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSummary(_Record):
    """Statistics of one layer's output (before normalization) on one training batch, averaged over its channels."""

    mean: Number | None
    variance: Number | None
    range: Number | None


class Epoch(_Record):
    """One pass over the training images. Losses exclude the L1/L2 penalty, which stands in `penalty`."""

    epoch: int = Field(ge=1)
    train_loss: Number | None
    val_loss: Number | None
    penalty: Number | None
    train_metrics: dict[str, Number | None]
    val_metrics: dict[str, Number | None]
    gradient_norms: dict[str, Number | None] = Field(
        description="L2 norm of each weight's gradient, mean over the steps; keys from the first layer to the last"
    )
    layers: dict[str, LayerSummary] = Field(description="keys from the first layer to the last")
    seconds: Number = Field(ge=0, description="training steps and validation of this epoch")
    seconds_per_step: Number = Field(ge=0, description="median over the epoch's training steps")
    peak_memory_mb: Number | None = Field(description="largest rise of memory since training began, in 2²⁰ bytes")


class Run(_Record):
    """One network trained once. The epoch best in validation was kept, and judged once on the test images."""

    name: str
    norm: str
    regularizer: str
    batch_size: int = Field(ge=1)
    network: str = Field(default="", description="empty in files written before networks could be chosen")
    train_share: Number = Field(default=1.0, gt=0, le=1, description="share of the training patients (or images) used")
    fold: str = Field(default="", description="which part of the data was the test; empty: the data's own splits")
    seed: int
    status: Literal["finished", "diverged"]
    best_epoch: int = Field(ge=1)
    epochs_to_target: int | None = Field(description="null: the target was not reached in the epochs given")
    seconds_to_target: Number | None
    metrics: dict[str, Number | None] = Field(
        description="train_*, val_* and test_* of the kept epoch, in evaluation mode"
    )
    intervals: dict[str, Interval] = Field(
        default={}, description="95 % bootstrap interval of each test_*, over the patients or images of the test split"
    )
    batch_metrics: dict[str, Number | None] = Field(
        default={},
        description="test_* again, with the statistics of the test batches (of the training batch size, in a fixed "
        "random order; of volumes, so many neighbouring windows of one) in place of running ones; empty where the "
        "network keeps none",
    )
    sites: dict[str, dict[str, Number | None]] = Field(default={}, description="test_* of each hospital or scanner")
    initial_gradient_norms: dict[str, Number | None] = Field(
        default={}, description="L2 norm of each weight's gradient in the very first step, first layer to last"
    )
    epochs: list[Epoch]
    seconds: Number
    seconds_per_step: Number
    peak_memory_mb: Number | None
    samples: str | None = Field(
        default=None,
        description="npz, relative to results.json: image (K, C, H, W), truth, prediction, name, site, probability",
    )
    outcomes: str | None = Field(
        default=None, description="csv, relative to results.json: one row a test image, what was true and predicted"
    )


class Estimate(_Record):
    """A mean with its interval: Student t over seeds, or bootstrap over patients or images, as its place says.

    With one value there is no spread and no interval.
    """

    n: int = Field(ge=0, description="seeds, patients or images behind the estimate")
    mean: Number | None
    std: Number | None = Field(default=None, description="sample standard deviation (n − 1)")
    low: Number | None = Field(default=None, description="lower end of the 95 % interval; null without spread")
    high: Number | None = Field(default=None, description="upper end of the 95 % interval; null without spread")

    def text(self, digits: int, *, signed: bool = False) -> str:
        """Write "mean [low, high]" with a true minus sign; "–" where there is no mean.

        >>> Estimate(n=3, mean=-0.01, std=0.1, low=-0.2, high=0.1).text(2, signed=True)
        '−0.01 [−0.20, +0.10]'
        """
        if self.mean is None:
            return "–"
        form = f"{'+' if signed else ''}.{digits}f"
        text = format(self.mean, form)
        if self.low is not None and self.high is not None:
            text += f" [{self.low:{form}}, {self.high:{form}}]"
        return text.replace("-", "−")


class ArmSummary(_Record):
    """One arm over its seeds; `versus_none` pairs each seed with the arm that differs only in its norm, none."""

    norm: str
    regularizer: str
    batch_size: int
    network: str = ""
    train_share: Number = 1.0
    runs: list[str] = Field(description="names of the runs pooled here")
    metrics: dict[str, Estimate] = Field(
        description="the same keys as a run's metrics; with folds, a seed's test metrics are those of all folds' test "
        "images together, and its other numbers are means over folds"
    )
    over_units: dict[str, Estimate] = Field(
        default={}, description="each test_*, mean over seeds, with its bootstrap interval over patients or images"
    )
    batch_metrics: dict[str, Estimate] = Field(default={}, description="the same keys as a run's batch_metrics")
    mode_gap: dict[str, Estimate] = Field(
        default={}, description="test_* with running statistics minus the same with batch statistics, paired by seed"
    )
    sites: dict[str, dict[str, Estimate]] = Field(default={}, description="test_* of each hospital or scanner")
    generalization_gap: Estimate = Field(description="train metric minus test metric, for the study's main metric")
    epochs_to_target: Estimate = Field(description="over the seeds that reached it; n says how many did")
    seconds_to_target: Estimate
    gradient_ratio: Estimate = Field(description="gradient norm of the first layer over the last, first epoch")
    initial_gradient_ratio: Estimate = Field(
        default=Estimate(n=0, mean=None), description="the same in the very first step"
    )
    gradient_decades: Estimate = Field(
        default=Estimate(n=0, mean=None),
        description="orders of magnitude from the weakest layer's gradient norm to the strongest's, first epoch",
    )
    initial_gradient_decades: Estimate = Field(
        default=Estimate(n=0, mean=None), description="the same in the very first step"
    )
    seconds_per_step: Estimate
    peak_memory_mb: Estimate
    versus_none: dict[str, Estimate] = Field(
        description="paired differences, arm minus no normalization: every test metric, generalization_gap, "
        "epochs_to_target, seconds_to_target, gradient_ratio, initial_gradient_ratio, "
        "gradient_decades, initial_gradient_decades, seconds_per_step, peak_memory_mb; empty without a partner"
    )
    versus_none_over_units: dict[str, Estimate] = Field(
        default={},
        description="the difference of each test_*, with its interval over patients or images, paired",
    )


Topic = Literal[
    "quality",
    "speed",
    "batch_size",
    "modes",
    "regularizer",
    "overfitting",
    "gradients",
    "sites",
    "cost",
    "data",
    "caution",
]
Verdict = Literal["better", "worse", "not distinguishable", "info"]


class Statement(_Record):
    """One plain sentence about the numbers, with the numbers it rests on."""

    topic: Topic
    verdict: Verdict
    text: str
    difference: Estimate | None = Field(default=None, description="over seeds")
    over_units: Estimate | None = Field(default=None, description="the same difference over patients or images")


class Target(_Record):
    """The validation metric whose reaching is timed."""

    metric: str = Field(description="val_ and the study's main metric")
    value: Number | None
    source: str = Field(description="how the value was chosen, in words")


class DataSummary(_Record):
    """What was trained and tested on."""

    source: str = Field(description="a file, or the name of the embedded images")
    kind: Literal["classification", "segmentation"]
    classes: list[str] = Field(
        description="names, in the order of the numbers; in segmentation the first is background"
    )
    shape: list[int] = Field(description="channels first, one image")
    images: dict[str, int] = Field(description="images in train, val and test")
    patients: dict[str, int] = Field(description="patients in train, val and test; empty where patients are not known")
    sites: list[str]
    note: str = ""
    unit: Literal["image", "patient"] = Field(default="image", description="what a test metric is the mean over")
    resampled: str = Field(
        default="", description="'patients' or 'images': what bootstrap intervals speak of; empty where there are none"
    )


# What is said beside a study's main metric; every other one stands in the tables.
HEADLINES = ("accuracy", "calibration_error", "hd95")


class Study(_Record):
    """What was asked for."""

    task: str
    preset: str
    main_metric: str = Field(description="without prefix: 'dice', 'auc'")
    network: str = Field(description="the base network, in words")
    networks: list[str] = Field(default=[""], description="names of the networks, the base one first")
    train_shares: list[Number] = Field(default=[1.0], description="shares of the training patients or images")
    folds: list[str] = Field(default=[""], description="names of the folds; one without name: the data's own splits")
    left_out: dict[str, str] = Field(default={}, description="arms that could not be trained, and why")
    parameters: int = Field(description="trainable parameters of the network without normalization")
    norms: list[str]
    regularizers: list[str]
    batch_sizes: list[int]
    base_batch_size: int
    seeds: list[int]
    grid: Literal["star", "full"]
    epochs: int
    optimizer: str
    learning_rate: Number
    target: Target
    data: DataSummary
    settings: dict[str, str | int | float | bool | list[str] | list[int] | list[float] | None] = Field(
        description="the whole resolved configuration, as in study.toml"
    )

    def headline_metrics(self, metrics: Iterable[str]) -> list[str]:
        """Choose the test metrics worth a sentence: the main one first, then those of few that there are."""
        known = set(metrics)
        return [f"test_{name}" for name in (self.main_metric, *HEADLINES) if f"test_{name}" in known]

    @property
    def base_regularizer(self) -> str:
        """What norms and batch sizes are compared with: no regularizer, or else the study's first."""
        return "none" if "none" in self.regularizers or not self.regularizers else self.regularizers[0]


class Environment(_Record):
    """Where and how the numbers were made."""

    command: str
    started: str
    finished: str
    mednorm: str
    python: str
    platform: str
    processor: str
    cores: int
    threads: int
    device: str
    commit: str | None
    packages: dict[str, str]


class Results(_Record):
    """A whole study: `results.json`."""

    schema_version: Literal[1] = Field(alias="schema")
    study: Study
    runs: list[Run]
    summary: list[ArmSummary]
    statements: list[Statement]
    environment: Environment

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def headline_metrics(self) -> list[str]:
        """Return the test metrics worth a column."""
        return self.study.headline_metrics(self.summary[0].metrics)


def read_results(path: Path) -> Results:
    """Read and validate a `results.json`.

    Raises:
        RunError: the file is missing, is not JSON, or breaks the schema; the message names the first bad field.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: no such file. Run `mednorm study TASK --out {path.parent}` first.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}).") from None
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise RunError(f"{path}: not results of schema {SCHEMA_VERSION}: {where}: {first['msg']}.") from None


def json_schema() -> str:
    """Return the JSON Schema of `results.json`, as docs/reference/results.schema.json keeps it."""
    return json.dumps(Results.model_json_schema(by_alias=True), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
