"""Divide patients into train, val and test, or into folds, and check that none is in two parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mednorm.data.images import SPLITS, Item, Split
from mednorm.errors import ConfigError, DataError

_SHARE = 0.2  # of the patients, for val and again for test; train takes the rest


def divide(patients: Iterable[str], seed: int, source: str) -> dict[str, Split]:
    """Put each patient into one split: 60 % train, 20 % val, 20 % test, at least one in each.

    Images of one patient resemble each other, so a patient seen in training tells nothing about new patients. The
    result depends on the set of patients and on the seed alone, not on their order.

    Args:
        patients: their identifiers, repeated as often as they have images.
        seed: of the random order.
        source: begins the message.

    Raises:
        DataError: fewer than three patients.
        ConfigError: a negative seed.

    Example:
        >>> list(divide("edcba", seed=0, source="five").values()).count("train")
        3
    """
    distinct = sorted(set(patients))
    checked_seed(seed, source)
    if len(distinct) < len(SPLITS):
        raise DataError(
            f"{source}: expected at least 3 patients (or images, without a column `patient`) to divide into train, val "
            f"and test, got {len(distinct)}. Add images, or a column `split`."
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    held_out = max(1, round(_SHARE * len(distinct)))
    drawn: dict[str, Split] = dict.fromkeys(distinct, "train")
    drawn.update(dict.fromkeys((distinct[i] for i in order[:held_out]), "val"))
    drawn.update(dict.fromkeys((distinct[i] for i in order[held_out : 2 * held_out]), "test"))
    return drawn


def checked_seed(seed: int, source: str) -> int:
    """Return the seed.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(f"{source}: expected a seed of 0 or more, got {seed}.")
    return seed


def check_patients(items: Iterable[Item]) -> None:
    """Pass if every patient that is named is in one split only.

    Raises:
        DataError: one is in two; the message names an image in each.
    """
    first: dict[str, Item] = {}
    for item in items:
        if item.patient is None:
            continue
        seen = first.setdefault(item.patient, item)
        if seen.split != item.split:
            raise DataError(
                f"{item.where}: expected patient {item.patient!r} in split {seen.split!r} like {seen.where}, "
                f"got {item.split!r}. Move all images of a patient into one split."
            )


@dataclass(frozen=True)
class Fold:
    """One way to divide a set: the rows of its items in each split.

    Attributes:
        name: what runs on it are called by; empty for the set's own splits.
        rows: of "train", "test" and, where there are any, "val".
    """

    name: str
    rows: Mapping[Split, tuple[int, ...]]


def own_splits(items: Sequence[Item]) -> Fold:
    """Return the splits that the items name."""
    return _fold("", [item.split for item in items])


def cross_validation(items: Sequence[Item], folds: int, seed: int, source: str) -> tuple[Fold, ...]:
    """Divide patients (images, where no patient is named) into folds, each the test images once.

    The fold that comes next is for validation, the others for training; of two folds there is none for validation.
    Labels (of patients whose images have one) are spread evenly. The items' own splits are not looked at.

    Raises:
        DataError: fewer patients than folds, or fewer than two folds.

    Example:
        >>> pixels = np.zeros((1, 2, 2))
        >>> items = [Item(f"image {i}", "train", pixels, label=i // 2 % 2, patient=f"p{i // 2}") for i in range(12)]
        >>> [len(fold.rows["test"]) for fold in cross_validation(items, 3, seed=0, source="made")]
        [4, 4, 4]
    """
    from sklearn.model_selection import StratifiedKFold

    units = [item.patient or item.where for item in items]
    labels = dict(zip(units, (item.label for item in items), strict=True))
    distinct = sorted(labels)
    if not 2 <= folds <= len(distinct):
        raise DataError(
            f"{source}: expected from 2 to {len(distinct)} folds, the number of patients (or images, where no patient "
            f"is named), got {folds}."
        )
    strata = [-1 if labels[unit] is None else labels[unit] for unit in distinct]
    most = max(strata.count(label) for label in strata)
    if most < folds:  # scikit-learn refuses where no class has a member for each fold
        strata = [-1] * len(distinct)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        parts = StratifiedKFold(folds, shuffle=True, random_state=checked_seed(seed, source)).split(distinct, strata)
        part_of = {distinct[row]: number for number, (_, rows) in enumerate(parts) for row in rows}

    def split(unit: str, test: int) -> Split:
        if part_of[unit] == test:
            return "test"
        return "val" if folds > 2 and part_of[unit] == (test + 1) % folds else "train"

    return tuple(_fold(f"{test + 1}of{folds}", [split(unit, test) for unit in units]) for test in range(folds))


def hold_out_site(items: Sequence[Item], site: str, source: str) -> tuple[Fold, ...]:
    """Test on one hospital, train on the others; "each" gives one such fold a hospital.

    Of the other hospitals, validation images stay what they are, and test images are trained on.

    Raises:
        DataError: no such site, only one, an image without one, or a patient with images at two sites, whom no fold
            could keep apart.
    """
    sites = sorted({item.site for item in items if item.site is not None})
    if site != "each" and site not in sites:
        known = ", ".join(sites) or "none: the images name no site"
        raise DataError(f"{source}: expected the site to hold out to be each or one of {known}, got {site!r}.")
    if len(sites) < 2:
        raise DataError(f"{source}: expected at least 2 sites to hold one out, got {', '.join(sites) or 'none'}.")

    first: dict[str, Item] = {}
    for item in items:
        if item.site is None:
            raise DataError(
                f"{item.where}: expected a site, got none: its image may be of the site that is held out. Name it, or "
                "remove the row."
            )
        seen = first.setdefault(item.patient or item.where, item)
        if seen.site != item.site:
            raise DataError(
                f"{item.where}: expected patient {item.patient!r} at site {seen.site!r} like {seen.where}, got "
                f"{item.site!r}: holding out a site would train and test on one patient. Use --folds."
            )

    def split(item: Item, held: str) -> Split:
        if item.site == held:
            return "test"
        return "val" if item.split == "val" else "train"

    return tuple(
        _fold(f"site-{held}", [split(item, held) for item in items]) for held in (sites if site == "each" else [site])
    )


def share_of(units: Sequence[str], labels: Sequence[int | None], share: float, seed: int) -> list[int]:
    """Choose the rows of a share of the units (patients or images), at least one of each label.

    The order in which units are taken follows from the seed, so a smaller share is part of a larger one.
    """
    label_of = dict(zip(units, labels, strict=True))
    taken: set[str] = set()
    for label in sorted({-1 if label is None else label for label in labels}):
        mine = sorted(unit for unit, own in label_of.items() if (-1 if own is None else own) == label)
        order = np.random.default_rng([seed, 7]).permutation(len(mine))
        taken.update(mine[place] for place in order[: max(1, round(share * len(mine)))])
    return [row for row, unit in enumerate(units) if unit in taken]


def _fold(name: str, splits: Sequence[Split]) -> Fold:
    found = {which: tuple(row for row, split in enumerate(splits) if split == which) for which in SPLITS}
    return Fold(name, {which: rows for which, rows in found.items() if rows or which != "val"})
