"""The threads that the loops run on: PyTorch's own, so that there is one pool in the process and nothing competes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

Region = Callable[[int, int, int], None]  # address of the code, of its arguments, how many threads

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(code: int, arguments: int, threads: int) -> None:
    """Call the code with its arguments in several threads at once, and wait for all of them."""
    if threads == 1:
        _ENTRY(code)(arguments)
    else:
        _region()(code, arguments, threads)


def pool() -> str:
    """Say whose threads they are."""
    return "PyTorch's OpenMP pool" if _openmp() else "a pool of Python's"


@functools.cache
def _region() -> Region:
    return _openmp() or _in_python


@functools.cache
def _openmp() -> Region | None:
    """Return the function with which PyTorch's parallel regions begin, where its OpenMP has GNU's interface.

    It is looked up in PyTorch's library and in those that it was linked with: so it is the one that PyTorch calls.
    """
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.so")):
        try:
            begin = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            return None
        begin.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        begin.restype = None
        return lambda code, arguments, threads: begin(code, arguments, threads, 0)
    return None


def _in_python(code: int, arguments: int, threads: int) -> None:
    entry = _ENTRY(code)  # releases the interpreter's lock
    others = [_workers(threads).submit(entry, arguments) for _ in range(threads - 1)]
    entry(arguments)
    for other in others:
        other.result()


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mednorm")


# The threads of a pool do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)
