"""The file of results: what stands in it, and how a run that was interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mednorm.bench.machine import cpu_model, tcmalloc, versions
from mednorm.errors import RunError
from mednorm.files import write_atomically

Record = dict[str, Any]


def new_record(settings: dict[str, Any], about: dict[str, Any]) -> Record:
    """Return a record without cases.

    Args:
        settings: what was asked for; a run goes on only with the same.
        about: what a worker says of itself: threads, whether there is CUDA.

    """
    gpu = "a GPU is here, and these figures are of the CPU" if about["cuda"] else "no GPU was here"
    return {
        "schema": 1,
        "machine": {
            "model": cpu_model(),
            "threads": about["threads"],
            "allocator": about["served_by"],
            "tcmalloc": Path(tcmalloc() or "not installed").name,
        },
        "versions": versions(),
        "kernels": about["kernels"],
        "cuda": f"unmeasured: {gpu}",
        "settings": settings,
        "finished": False,
        "cases": [],
    }


def opened(path: Path | None, fresh: Record, overwrite: bool) -> Record:
    """Return the record to go on with: that of the file where it is unfinished, otherwise the fresh one.

    Args:
        path: of the file; None for none.
        fresh: what this run would begin with.
        overwrite: begin anew whatever is there.

    Raises:
        RunError: the file is finished, was made with other settings, on another machine or by other versions, or is
            no file of results.

    """
    if path is None or overwrite or not path.exists():
        return fresh
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        finished = there["finished"]
        apart = [key for key in ("schema", "machine", "versions", "kernels", "settings") if there[key] != fresh[key]]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}: expected results of mednorm bench, got another file. Choose another --out.") from None
    if finished:
        raise RunError(f"{path}: expected an unfinished run, got a finished one. Use --overwrite, or another --out.")
    if apart:
        raise RunError(
            f"{path}: expected an unfinished run with the same {', '.join(apart)}, got {there[apart[0]]!r} where this "
            f"one has {fresh[apart[0]]!r}. Use --overwrite, or another --out."
        )
    found: Record = there
    return found


def write(record: Record, path: Path | None) -> None:
    """Write the record, whole or not at all."""
    if path is not None:
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
