"""What a study is told, and the runs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mednorm.errors import ConfigError
from mednorm.study.arms import Arm
from mednorm.tasks import Prepared, find_task
from mednorm.tasks.networks import find_network
from mednorm.training.settings import (
    BatchSize,
    CommonSettings,
    Norm,
    Regularizer,
    RunSettings,
    Seed,
    Share,
    validated,
)


class StudySettings(CommonSettings):
    """One study: the arms, and what all its runs share.

    With the grid "star" the arms vary one thing at a time around the base batch size: every norm without a
    regularizer; every regularizer, every share of the training images and the deeper network with no norm and with
    batch normalization (with all norms, if neither is among them); every batch size with every norm. "full" is every
    combination of norm, regularizer and batch size besides.
    """

    preset: str = "default"
    norms: list[Norm] = Field(min_length=1)
    regularizers: list[Regularizer] = Field(min_length=1)
    batch_sizes: list[BatchSize] = Field(min_length=1)
    base_batch_size: BatchSize
    batch_size_norms: list[Norm] | None = Field(
        default=None, min_length=1, description="norms trained at the other batch sizes; None: all"
    )
    scale_learning_rate: Literal["none", "sqrt", "linear"] = Field(
        default="none", description="how the learning rate grows with the batch size, from the base batch size on"
    )
    train_shares: list[Share] = Field(
        default=[1.0],
        min_length=1,
        description="shares of the training patients (or images), trained on for as many steps",
    )
    deeper: bool = Field(default=False, description="train the deeper variant of the network as well")
    seeds: list[Seed] = Field(min_length=1)
    grid: Literal["star", "full"] = "star"
    target: float | None = Field(
        default=None, description="validation metric to be reached; None: chosen from the runs"
    )

    @field_validator("norms", "regularizers", "batch_sizes", "batch_size_norms", "train_shares", "seeds")
    @classmethod
    def _no_value_twice(cls, values: list[Any] | None) -> list[Any] | None:
        twice = [value for value in values or [] if (values or []).count(value) > 1]
        if twice:
            raise ValueError(f"expected each value once, got {twice[0]!r} twice")
        return values

    @model_validator(mode="after")
    def _base_is_studied(self) -> StudySettings:
        if self.base_batch_size not in self.batch_sizes:
            sizes = ", ".join(map(str, self.batch_sizes))
            raise ValueError(f"expected base_batch_size to be one of batch_sizes {sizes}, got {self.base_batch_size}")
        if 1.0 not in self.train_shares:
            raise ValueError(f"expected train_shares to hold 1.0, the whole training split, got {self.train_shares}")
        if self.folds == 1:
            raise ValueError("expected folds to be 0 (the data's own splits) or at least 2, got 1")
        if self.folds and self.holdout_site is not None:
            raise ValueError(f"expected either folds or holdout_site, got {self.folds} and {self.holdout_site!r}")
        volumes = find_task(self.task).volumes
        if volumes != (self.patch_size is not None):
            needed = (
                "a patch_size, as its images are volumes" if volumes else "no patch_size, as it trains on whole images"
            )
            raise ValueError(f"expected {needed}, got {self.patch_size}")
        if self.patch_size is not None and (len(self.patch_size) != 3 or min(self.patch_size) < 1):
            raise ValueError(f"expected patch_size to be three numbers of at least 1, got {self.patch_size}")
        return self

    def networks(self) -> list[str]:
        """Return the name of the network and, where asked for and there is one, that of its deeper variant."""
        deeper = find_network(self.network, find_task(self.task).kind).deeper if self.deeper else None
        return [self.network, *([deeper] if deeper else [])]

    def runs(self, prepared: Prepared, left_out: Mapping[Arm, str]) -> list[RunSettings]:
        """Return every run: one seed of every arm in every fold, then the next seed, so that drift meets all arms."""
        images = prepared.images
        volumes = find_task(self.task).volumes
        shared = self.model_dump(include=set(CommonSettings.model_fields)) | {
            "classes": list(images.classes),
            "image_size": self.image_size if volumes else list(prepared.shape.size),
            "digest": prepared.digest,
            "spacing": list(prepared.grid[0]) if prepared.grid else None,
            "orientation": prepared.grid[1] if prepared.grid else None,
        }
        return [
            RunSettings(
                **shared
                | arm._asdict()
                | {"learning_rate": self._rate(arm.batch_size), "deeper": arm.network != self.network}
                | {"sites": list(prepared.shape.sites) if arm.norm == "domain" else None},
                fold=fold.name,
                seed=seed,
            )
            for seed in self.seeds
            for fold in prepared.folds
            for arm in self.arms()
            if arm not in left_out
        ]

    def arms(self) -> list[Arm]:
        """Return every arm once."""
        base, net = self.base_batch_size, self.network
        first = self.regularizers[0] if "none" not in self.regularizers else "none"
        pair = [norm for norm in self.norms if norm in ("none", "batch")] or self.norms
        sizes = [size for size in self.batch_sizes if size != base]
        arms = [Arm(norm, first, base, net) for norm in self.norms]
        arms += [Arm(norm, regularizer, base, net) for regularizer in self.regularizers for norm in pair]
        arms += [Arm(norm, first, size, net) for size in sizes for norm in self.batch_size_norms or self.norms]
        arms += [Arm(norm, first, base, net, share) for share in self.train_shares for norm in pair]
        arms += [Arm(norm, first, base, network) for network in self.networks() for norm in pair]
        if self.grid == "full":
            arms += [Arm(n, r, b, net) for b in self.batch_sizes for r in self.regularizers for n in self.norms]
        return list(dict.fromkeys(arms))

    def _rate(self, batch_size: int) -> float:
        exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.scale_learning_rate]
        return float(self.learning_rate * (batch_size / self.base_batch_size) ** exponent)


def resolve(
    task: str | None,
    preset: str | None,
    file: Mapping[str, Any],
    flags: Mapping[str, Any],
    file_name: str = "study.toml",
) -> StudySettings:
    """Lay settings over each other: the task's preset, then a TOML file, then flags.

    Task and preset, where None, are the file's, or else "tissue" and "default". Batch sizes that leave out the base
    bring their own, the middle one, unless a base is given with them.

    Raises:
        ConfigError: an unknown task, preset or key, or a value out of range; one line that names its source.

    """
    task = str(file.get("task", "tissue")) if task is None else task
    chosen = find_task(task)
    preset = str(file.get("preset", "default")) if preset is None else preset
    if preset not in chosen.presets:
        raise ConfigError(f"preset: expected one of {', '.join(chosen.presets)} for {task}, got {preset!r}.")
    if file.get("task", task) != task:
        raise ConfigError(f"{file_name}: task: expected {task!r}, as on the command line, got {file['task']!r}.")
    start = {"task": task, "preset": preset, "network": chosen.network, **chosen.presets[preset]}
    over_file = start | _over(start, file) | {"preset": preset}
    validated(StudySettings, over_file, file_name)  # so that what is wrong in the file is said of it
    given = {key: value for key, value in flags.items() if value is not None}
    return validated(StudySettings, over_file | _over(over_file, given), "options")


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Let what is laid over bring what it implies, unless that is given with it.

    New norms leave out those at other batch sizes that are not among them; new batch sizes that leave out the old base
    bring their own, the middle one; a site to hold out ends the folds of a
    preset, and folds end a site held out.
    """
    implied: dict[str, Any] = {}
    norms, sized = over.get("norms"), under.get("batch_size_norms")
    if isinstance(norms, list) and sized:
        implied["batch_size_norms"] = [norm for norm in sized if norm in norms] or None
    sizes = over.get("batch_sizes")
    if isinstance(sizes, list) and sizes and under["base_batch_size"] not in sizes:
        implied["base_batch_size"] = sorted(sizes)[(len(sizes) - 1) // 2]
    if over.get("holdout_site") is not None:
        implied["folds"] = 0
    if over.get("folds"):
        implied["holdout_site"] = None
    return implied | dict(over)
