"""What a study is told, and the runs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mednorm.errors import ConfigError
from mednorm.tasks import find_task
from mednorm.training.settings import BatchSize, CommonSettings, Norm, Regularizer, RunSettings, Seed, validated


class StudySettings(CommonSettings):
    """One study: the arms, and what all its runs share.

    With the grid "star" the arms vary one thing at a time around the base batch size: every norm without a
    regularizer; every regularizer with no norm and with batch normalization (with all norms, if neither is among
    them); every batch size with every norm. "full" is every combination.
    """

    preset: str = "default"
    norms: list[Norm] = Field(min_length=1)
    regularizers: list[Regularizer] = Field(min_length=1)
    batch_sizes: list[BatchSize] = Field(min_length=1)
    base_batch_size: BatchSize
    seeds: list[Seed] = Field(min_length=1)
    grid: Literal["star", "full"] = "star"
    target: float | None = Field(
        default=None, description="validation metric to be reached; None: chosen from the runs"
    )

    @field_validator("norms", "regularizers", "batch_sizes", "seeds")
    @classmethod
    def _no_value_twice(cls, values: list[Any]) -> list[Any]:
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"expected each value once, got {twice[0]!r} twice")
        return values

    @model_validator(mode="after")
    def _base_is_studied(self) -> StudySettings:
        if self.base_batch_size not in self.batch_sizes:
            sizes = ", ".join(map(str, self.batch_sizes))
            raise ValueError(f"expected base_batch_size to be one of batch_sizes {sizes}, got {self.base_batch_size}")
        return self

    def runs(self, classes: tuple[str, ...], size: tuple[int, ...], digest: str) -> list[RunSettings]:
        """Return every run: one seed of every arm, then the next seed, so that drift of the machine meets all arms."""
        shared = self.model_dump(include=set(CommonSettings.model_fields)) | {
            "classes": list(classes),
            "image_size": list(size),
            "digest": digest,
        }
        return [
            RunSettings(**shared, norm=norm, regularizer=regularizer, batch_size=batch_size, seed=seed)
            for seed in self.seeds
            for norm, regularizer, batch_size in self.arms()
        ]

    def arms(self) -> list[tuple[Norm, str, int]]:
        """Return (norm, regularizer, batch size) of every arm, once each."""
        base = self.base_batch_size
        first = self.regularizers[0] if "none" not in self.regularizers else "none"
        regularized = [norm for norm in self.norms if norm in ("none", "batch")] or self.norms
        arms = [(norm, first, base) for norm in self.norms]
        arms += [(norm, regularizer, base) for regularizer in self.regularizers for norm in regularized]
        arms += [(norm, first, size) for size in self.batch_sizes for norm in self.norms]
        if self.grid == "full":
            arms += [(n, r, b) for b in self.batch_sizes for r in self.regularizers for n in self.norms]
        return list(dict.fromkeys(arms))


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
    start = {"task": task, "preset": preset, **chosen.presets[preset]}
    over_file = start | _with_base(start, file) | {"preset": preset}
    validated(StudySettings, over_file, file_name)  # so that what is wrong in the file is said of it
    given = {key: value for key, value in flags.items() if value is not None}
    return validated(StudySettings, over_file | _with_base(over_file, given), "options")


def _with_base(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Let new batch sizes that leave out the old base bring their own: the middle one."""
    sizes = over.get("batch_sizes")
    if "base_batch_size" in over or not isinstance(sizes, list) or not sizes or under["base_batch_size"] in sizes:
        return dict(over)
    return dict(over) | {"base_batch_size": sorted(sizes)[(len(sizes) - 1) // 2]}
