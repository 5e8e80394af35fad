"""What every benchmark says of its times and of the machine."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median and quartiles; a single value is all three."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def cpu_model() -> str:
    """Return the processor's name where the system tells, otherwise its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
