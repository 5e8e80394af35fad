"""What every kind of outcome shares: one row an image, patients to pool and resample, sites, and a table to write."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np

from mednorm.errors import DataError
from mednorm.tasks.bootstrap import FEWEST_CLUSTERS, Array, resampled

Metrics = dict[str, float | None]
Unit = Literal["image", "patient"]


@dataclass(frozen=True, eq=False)
class Rows(ABC):
    """One row an image: who was imaged where. What the network said is in the subclasses.

    Attributes:
        classes: name of every class, in the order of the numbers.
        names: where each image came from; rows of one name are one image, judged more than once.
        patients: patient of each, None where unknown.
        sites: hospital or scanner of each, None where unknown.

    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    patients: tuple[str | None, ...]
    sites: tuple[str | None, ...]

    @property
    def clusters(self) -> tuple[str, int]:
        """What is resampled, and how many of them: ("patients", 15) where every row names one, else ("images", 624)."""
        return "patients" if self._by_patient else "images", len(set(self._cluster_of_row))

    def metrics(self, unit: Unit) -> Metrics:
        """Return every metric; None where it is not defined, and everywhere if any output was not finite.

        Args:
            unit: "image", or "patient" to pool the images of each patient first. Where a row names no patient, rows
                stay images.

        Raises:
            DataError: the images of one patient are labelled differently, for classification by patient.

        """
        if not self.names or not self._finite:
            return dict.fromkeys(self.metric_names)
        scores = self._entries(unit)._estimates()
        return {name: None if np.isnan(scores[name]) else float(scores[name]) for name in self.metric_names}

    def replicates(self, unit: Unit, resamples: int = 1000, seed: int = 0) -> dict[str, Array]:
        """Return every metric of bootstrap resamples: patients drawn with replacement, or images where one is unknown.

        Images of a patient are drawn together whatever the unit, because they are not independent. Outcomes of two
        networks for the same images are resampled alike: the difference of their replicates is paired.

        Args:
            unit: as in `metrics`; a patient drawn twice counts as two.
            resamples: how many.
            seed: not negative; with the names of the clusters it decides every draw.

        Returns:
            ``(resamples,)`` for each metric. NaN where it is not defined in a resample, such as the AUC of one that
            lacks a class, or the mean Dice of one that lacks a class which the whole sample has; NaN throughout where
            the metric of the whole sample is None or there are fewer than 5 clusters, too few to say how they vary.

        Raises:
            DataError: as in `metrics`.

        """
        estimates = self.metrics(unit)
        result = {name: np.full(resamples, np.nan) for name in estimates}
        clusters = sorted(set(self._cluster_of_row))
        if len(clusters) < FEWEST_CLUSTERS or all(value is None for value in estimates.values()):
            return result
        entries = self._entries(unit)
        columns = _numbers(entries._cluster_of_row)
        done = 0
        for counts in resampled(clusters, resamples, seed, len(columns)):
            for name, scores in entries._weighted(counts[:, columns]).items():
                if estimates[name] is not None:
                    result[name][done : done + len(counts)] = scores
            done += len(counts)
        return result

    def take(self, rows: Sequence[int] | Array) -> Self:
        """Choose some rows by number or by a mask of bools, in the order given."""
        index = np.arange(len(self.names))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        return self._with(lambda name: _chosen(getattr(self, name), index))

    def by_site(self) -> dict[str, Self]:
        """Return the rows of each site, sites sorted; rows without one are left out."""
        sites = sorted({site for site in self.sites if site is not None})
        return {name: self.take([row for row, site in enumerate(self.sites) if site == name]) for name in sites}

    def to_csv(self) -> str:
        """Write a table that a person can open, one row an image; `read_outcomes` reads it back exactly."""
        columns = {"name": self.names, "patient": self.patients, "site": self.sites, **self._columns()}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` returns, in that order."""

    @property
    @abstractmethod
    def _finite(self) -> bool:
        """Whether every output was a number."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[object]]:
        """Return what the table holds beside name, patient and site."""

    @abstractmethod
    def _pooled(self, owner: Array, patients: tuple[str, ...]) -> Mapping[str, Array | None]:
        """Return the arrays with a row a patient; owner is the number of the patient of each row."""

    @abstractmethod
    def _estimates(self) -> Mapping[str, float]:
        """Return every metric with each row counted once, NaN where it is not defined."""

    @abstractmethod
    def _weighted(self, weights: Array) -> Mapping[str, Array]:
        """Return every metric under each row of weights (R, N), NaN where it is not defined."""

    @property
    def _by_patient(self) -> bool:
        return bool(self.patients) and None not in self.patients

    @property
    def _cluster_of_row(self) -> Sequence[str]:
        return [patient for patient in self.patients if patient is not None] if self._by_patient else self.names

    def _entries(self, unit: Unit) -> Self:
        """Return what counts as one: the rows, or a row a patient."""
        if unit == "image" or not self._by_patient:
            return self
        patients = tuple(sorted(set(self._cluster_of_row)))
        arrays: dict[str, Any] = dict(self._pooled(_numbers(self._cluster_of_row), patients))
        return replace(self, names=patients, patients=patients, sites=(None,) * len(patients), **arrays)

    def _with(self, column: Callable[[str], Any]) -> Self:
        return replace(self, **{name: column(name) for name in _column_names(self)})


R = TypeVar("R", bound=Rows)


def join(parts: Sequence[R]) -> R:
    """Put outcomes one after the other, such as those of the folds of a cross-validation.

    Raises:
        DataError: there are none, or they differ in kind, in classes, or in having distances.

    """
    kinds = sorted({str((type(part).__name__, part.classes, _absent(part))) for part in parts})
    if len(kinds) != 1:
        got = " and ".join(kinds) or "nothing"
        raise DataError(f"join: expected outcomes of one kind with the same classes and columns, got {got}.")
    return parts[0]._with(lambda name: _joined([getattr(part, name) for part in parts]))


def summed(values: Array, owner: Array, count: int) -> Array:
    """Add up the rows of values (N, C) of each owner: (count, C)."""
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, owner, values)
    return total


def _numbers(names: Sequence[str]) -> Array:
    """Return the place of each name among all names sorted."""
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([place[name] for name in names], dtype=np.int64)


def _column_names(rows: Rows) -> list[str]:
    return [field.name for field in fields(rows) if field.name != "classes"]


def _absent(rows: Rows) -> list[str]:
    return [f"no {name}" for name in _column_names(rows) if getattr(rows, name) is None]


def _chosen(column: Any, index: Array) -> Any:
    return (
        tuple(column[row] for row in index) if isinstance(column, tuple) else None if column is None else column[index]
    )


def _joined(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], tuple):
        return tuple(value for column in columns for value in column)
    return None if columns[0] is None else np.concatenate(columns)
