"""Divide patients into train, val and test, and check that none is in two of them."""

from __future__ import annotations

from collections.abc import Iterable

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
