"""Amounts of memory: how a person writes them, and how they are said."""

from __future__ import annotations

import math
import re

from mednorm.errors import ConfigError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_WRITTEN = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<power>[KMGT]?)(?P<unit>iB|B|)", re.IGNORECASE)


def bytes_of(memory: str | float) -> int:
    """Read an amount of memory.

    Args:
        memory: bytes, or such as ``"8GB"`` (10⁹ bytes each), ``"8GiB"`` or ``"8G"`` (2³⁰, as Slurm and Docker have it).

    Raises:
        ConfigError: it is none, or not above 0.

    Example:
        >>> bytes_of("8GB"), bytes_of("8 GiB"), bytes_of("1.5G"), bytes_of(2**20)
        (8000000000, 8589934592, 1610612736, 1048576)

    """
    found = _WRITTEN.fullmatch(memory.strip()) if isinstance(memory, str) else None
    if found:
        decimal = found["unit"].upper() == "B" and found["power"]
        amount = float(found["number"]) * (1000 if decimal else 1024) ** _POWERS[found["power"].upper()]
    elif isinstance(memory, int | float) and not isinstance(memory, bool) and math.isfinite(memory):
        amount = memory
    else:
        raise ConfigError(f"memory: expected an amount such as '8GB', '512MiB' or bytes, got {memory!r}.")
    if amount < 1:
        raise ConfigError(f"memory: expected an amount above 0, got {memory!r}.")
    return int(amount)


def readable(size: float) -> str:
    """Say an amount of memory in decimal units.

    Example:
        >>> readable(8e9), readable(1_234_567), readable(12)
        ('8.0 GB', '1.2 MB', '12 B')

    """
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if abs(size) >= 0.9995 * 10**power:
            value = size / 10**power
            return f"{value:.1f} {unit}" if abs(value) < 99.95 else f"{value:.0f} {unit}"
    return f"{size:.0f} B"
