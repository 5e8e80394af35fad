"""The schema of an examination's JSON, version 1: docs/reference/examination.md. Plain dataclasses; no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1

# JSON has no infinity and no NaN: they are null, and the message of the finding that is about them says which.
Number = float | None
Vector = list[Number] | None
Level = Literal["error", "warning", "info"]


class _Strict:
    """What pydantic is told of the dataclasses below, where it is there."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012


@dataclass(frozen=True)
class Spread(_Strict):
    """How a number is spread over the channels of a layer; those where it is not finite are counted apart."""

    low: Number
    """5 % of the channels are below"""
    median: Number
    high: Number
    """5 % of the channels are above"""
    largest: Number
    not_finite: int


@dataclass(frozen=True)
class NoiseAt(_Strict):
    """How far the statistics of a batch of so many images scatter from batch to batch: medians over the channels."""

    batch_size: int
    mean: Number
    """standard deviation of a batch's mean, in standard deviations of the values"""
    variance: Number
    """standard deviation of a batch's variance, as a share of the variance"""
    effective_samples: Number
    """as how many independent values a batch's values count for its mean"""


@dataclass(frozen=True)
class SiteAt(_Strict):
    """What one site's images look like to a layer."""

    images: int
    distance: Spread | None
    """from the running statistics, in running standard deviations; null for a layer without"""


@dataclass(frozen=True)
class Around(_Strict):
    """What precedes and follows a layer, where that is certain."""

    before: str | None
    before_has_bias: bool
    before_learns: bool | None
    dropout_before: str | None
    dropout_rate: Number
    activation: str | None
    decay: Number
    decay_before: Number
    calls: int
    updates_a_step: int | None


@dataclass(frozen=True)
class LayerSeen(_Strict):
    """One normalization layer. Vectors have one number a channel, to four significant digits."""

    name: str
    kind: str
    """name of its class"""
    place: int
    """in the order of the first calls, from 0"""
    channels: int
    dtype: str | None
    severity: Level | None
    """the gravest of its findings"""
    codes: list[str]
    """the rules that found something here"""
    share: Number
    """of the train/eval gap that it explains; null where that was not asked"""
    images: int
    """that reached it"""
    eps: Number
    momentum: Number
    updates: int | None
    skipped: int
    initial_share: Number
    """of the initial 0 and 1 that is left in the running statistics"""
    training: bool
    frozen: bool
    synchronized: bool
    learns: bool
    around: Around
    mean: Vector
    """of all values that reached it; null where none did"""
    variance: Vector
    """biased, of the same"""
    running_mean: Vector
    running_var: Vector
    weight: Vector
    bias: Vector
    distance: Spread | None
    """of all images from the running statistics, in running standard deviations"""
    noise: list[NoiseAt]
    sites: dict[str, SiteAt]
    batches_not_finite: int


@dataclass(frozen=True)
class Measured(_Strict):
    """One number behind a finding, and the threshold it crossed; a number without one only explains."""

    name: str
    value: Number
    threshold: Number
    unit: str


@dataclass(frozen=True)
class Found(_Strict):
    """One thing that is wrong with one layer, or with the network where `layer` is empty."""

    code: str
    rule: str
    """its name"""
    title: str
    severity: Level
    layer: str
    site: str | None
    message: str
    evidence: list[Measured]
    """the decisive number first"""
    remedy: str
    share: Number
    """of the train/eval gap that this layer explains"""


@dataclass(frozen=True)
class GapSeen(_Strict):
    """How outputs on the same images differ between running statistics and the batch's own."""

    batches: int
    divergence: Number
    """root mean square difference over the outputs' standard deviation; null where one is not finite"""
    metric_running: Number
    metric_batch: Number


@dataclass(frozen=True)
class Document(_Strict):
    """An examination."""

    schema: Literal[1]
    mednorm: str
    """its version"""
    network: str
    images: int
    batch_size: int
    """of the training on each device, as far as known"""
    devices: int
    sites: dict[str, int]
    """images of each"""
    patients: dict[str, int]
    """of each site where some are named; an image of none counts as a patient of its own"""
    ok: bool
    """no finding is an error"""
    worst: Level | None
    diagnosis: str
    """in one sentence or a few"""
    gap: GapSeen | None
    findings: list[Found]
    """the diagnosis first"""
    layers: list[LayerSeen]
    """in the order of their first calls"""


def json_schema() -> str:
    """Return the JSON Schema, as docs/reference/examination.schema.json keeps it; needs pydantic."""
    from pydantic import TypeAdapter

    made: dict[str, Any] = TypeAdapter(Document).json_schema()
    return json.dumps(made, indent=1) + "\n"
