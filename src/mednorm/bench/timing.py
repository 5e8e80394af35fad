"""Times of a statement, and what is said of the times of several rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Quartiles = dict[str, float]


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return median and quartiles; a single value is all three.

    Example:
        >>> quartiles([3.0, 1.0, 2.0])
        {'median': 2.0, 'low': 1.5, 'high': 2.5}

    """
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def over_rounds(rounds: Sequence[Mapping[str, float]]) -> dict[str, Quartiles]:
    """Summarize each quantity over rounds, and ratios taken round by round: to the floor, and to another peer.

    Args:
        rounds: quantities of each round, the same in all. "milliseconds" is there; "floor" makes a "ratio" to it, and
            "relative_to", milliseconds of another peer, turns into "relative".

    Example:
        >>> over_rounds([{"milliseconds": 6.0, "floor": 2.0}, {"milliseconds": 8.0, "floor": 4.0}])["ratio"]["median"]
        2.5

    """
    found = {name: quartiles([each[name] for each in rounds]) for name in rounds[0]}
    for quantity, ratio in (("floor", "ratio"), ("relative_to", "relative")):
        if quantity in found:
            found[ratio] = quartiles([each["milliseconds"] / each[quantity] for each in rounds])
    found.pop("relative_to", None)
    return found


def milliseconds(call: Callable[[], Any], seconds: float, steps: int | None = None) -> float:
    """Return the time of a call by PyTorch's benchmark timer, with as many threads as PyTorch uses.

    Args:
        call: what is timed; it ran before, so that nothing is compiled or cached for the first time.
        seconds: to measure at least; the median of what was seen is returned.
        steps: measure so many calls in a row instead and return their mean, for calls that differ in turn.

    """
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    if steps is None:
        return timer.blocked_autorange(min_run_time=seconds).median * 1e3
    started = time.perf_counter()
    for _ in range(steps):
        call()
    return (time.perf_counter() - started) * 1e3 / steps
