"""The machine code of the loops, made at its first use and kept on disk."""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

_log = logging.getLogger("mednorm.kernels")
_lock = threading.Lock()
_made: dict[torch.dtype, _Code] = {}
_TYPES = {torch.float32: (np.float32, np.int32, 31), torch.float64: (np.float64, np.int64, 63)}
_PATIENCE = 1.0  # seconds before we say why nothing happens
_NOTICE = "Preparing mednorm's loops for {}: they are compiled at their first use, which takes up to half a minute …"


def address_of(dtype: torch.dtype) -> int:
    """Return where the code for images of a type begins, compiled on the first call.

    Several threads and several processes may ask at once. Each process compiles once; what they keep on disk at once
    is the same, and Numba writes each file under another name before it gives it its own.
    """
    found = _made.get(dtype)
    if found is None:
        with _lock:
            found = _made.get(dtype) or _compile(dtype)
            _made[dtype] = found
    return found.address


def ready() -> tuple[str, ...]:
    """Return the types the loops are compiled for in this process."""
    return tuple(_name(dtype) for dtype in _made)


def cache_folder() -> str | None:
    """Return where the code is kept for the next process; None where it is not, or there is none yet."""
    return next((code.folder for code in _made.values()), None)


class _Code(NamedTuple):
    address: int
    folder: str | None
    kept: Any  # what the address belongs to


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compile(dtype: torch.dtype) -> _Code:
    with _saying_why(_name(dtype)):
        from numba import cfunc

        from mednorm.kernels.cpu import tasks

        enter = tasks.entry(*_TYPES[dtype])
        # Numba names the files of its cache by this, and looks for changes in this function's own file alone. Nor would
        # two processes that keep different code under one name at once get their own back.
        enter.__qualname__ = f"{_name(dtype)}_{_version()}"
        try:
            made = cfunc(tasks.SIGNATURE, cache=True)(enter)
            return _Code(made.address, made._cache.cache_path, made)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            # No folder to keep it in, a full one, or a file in it that is broken.
            _log.info("The compiled loops cannot be kept for the next process: %s", error)
            made = cfunc(tasks.SIGNATURE)(enter)
            return _Code(made.address, None, made)


def _version() -> str:
    """Tell apart the sources of the loops, and the processors that they are compiled for."""
    from llvmlite import binding

    digest = hashlib.sha256(f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _saying_why(name: str) -> Iterator[None]:
    """Say what is going on once it has taken a second, and how long it took."""
    told = threading.Timer(_PATIENCE, _log.warning, [_NOTICE.format(name)])
    told.daemon = True
    began = time.perf_counter()
    told.start()
    try:
        yield
    finally:
        told.cancel()
    _log.info("Loops for %s ready after %.1f s.", name, time.perf_counter() - began)
