"""Numbers and intervals as the page prints them: few digits, a true minus sign, and a dash for what does not exist."""

from __future__ import annotations

import math
from typing import Any, Literal

from mednorm.results import Estimate

MISSING = "–"

Kind = Literal["metric", "seconds", "megabytes", "epochs"]


def plural(count: int, noun: str) -> str:
    """Say how many there are.

    >>> plural(1, "seed"), plural(3, "seed"), plural(2, "class")
    ('1 seed', '3 seeds', '2 classes')
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def decimals(value: float, kind: Kind) -> int:
    """Choose how many decimals a value of this kind deserves.

    Metrics have three (one from 100 up), durations three significant digits, memory none, epochs one.
    """
    magnitude = abs(value)
    if kind == "megabytes":
        return 0 if magnitude >= 10 else 1
    if kind == "epochs":
        return 1
    if kind == "seconds":
        return 3 if magnitude == 0 else max(0, min(6, 2 - math.floor(math.log10(magnitude))))
    return 3 if magnitude < 100 else 1


def number(value: float | None, places: int, *, signed: bool = False) -> str:
    """Print one number with a fixed count of decimals.

    >>> number(-0.01234, 3), number(0.5, 3, signed=True), number(None, 3)
    ('−0.012', '+0.500', '–')
    """
    if value is None:
        return MISSING
    if abs(value) >= 1e7:
        return f"{value:+.2e}".replace("-", "−") if signed else f"{value:.2e}".replace("-", "−")
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def value(amount: float | None, kind: Kind, *, signed: bool = False) -> str:
    """Print one quantity with the decimals of its kind."""
    return MISSING if amount is None else number(amount, decimals(amount, kind), signed=signed)


def interval(estimate: Estimate, kind: Kind, *, signed: bool = False) -> str:
    """Print the interval alone, with as many decimals as the mean; say so where one seed gives none."""
    if estimate.mean is None or estimate.n == 0:
        return ""
    if estimate.low is None or estimate.high is None:
        return "one seed" if estimate.n == 1 else f"{estimate.n} seeds, no interval"
    places = decimals(estimate.mean, kind)
    return f"[{number(estimate.low, places, signed=signed)}, {number(estimate.high, places, signed=signed)}]"


def estimate(given: Estimate, kind: Kind, *, signed: bool = False) -> str:
    """Print a mean with its interval.

    >>> estimate(Estimate(n=3, mean=0.912, low=0.905, high=0.919), "metric")
    '0.912 [0.905, 0.919]'
    >>> estimate(Estimate(n=1, mean=0.912), "metric")
    '0.912 (one seed)'
    """
    bounds = interval(given, kind, signed=signed)
    if not bounds:
        return value(given.mean, kind, signed=signed)
    return f"{value(given.mean, kind, signed=signed)} {bounds if bounds.startswith('[') else f'({bounds})'}"


def share(part: float) -> str:
    """Print a part of a whole.

    >>> share(0.25), share(0.125)
    ('25 %', '12.5 %')
    """
    return f"{100 * part:.4g} %"


def label(key: str) -> str:
    """Turn a key of the file into words.

    >>> label("test_balanced_accuracy")
    'test balanced accuracy'
    """
    return key.replace("_", " ")


def regularizer(name: str) -> str:
    """Name a regularizer in words."""
    return "no regularizer" if name == "none" else label(name)


def of_patients(document: dict[str, Any], site: str) -> str:
    """Say how many images an examination saw of a site, and of how many patients where it knows these.

    >>> of_patients({"sites": {"A": 12, "B": 6}, "patients": {"A": 3}}, "A")
    '12 of 3 patients'
    >>> of_patients({"sites": {"A": 12, "B": 6}, "patients": {"A": 3}}, "B")
    '6'
    """
    images, patients = document["sites"].get(site, 0), document.get("patients", {}).get(site)
    return str(images) if patients is None else f"{images} of {plural(patients, 'patient')}"


def listed(words: list[str], *, most: int = 8) -> str:
    """Join words with commas; past `most`, say how many more there are."""
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"
