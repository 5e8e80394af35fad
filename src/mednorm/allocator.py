"""Let glibc keep the memory of freed tensors, so that the next training step does not ask the system for it again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mednorm.errors import ConfigError

Allocator = Literal["glibc", "tcmalloc", "jemalloc", "mimalloc", "other"]

SWITCH = "MEDNORM_ALLOCATOR"
# What a user sets who has tuned glibc already: where large blocks come from, and when they go back.
OWN_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
OWN_TUNABLES = ("glibc.malloc.mmap_max", "glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold")
# Parameters of mallopt(3), from malloc.h, and what they are set to.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_SETTINGS = (
    (_M_MMAP_MAX, 0),  # of the heap whatever their size: M_MMAP_THRESHOLD ends at 32 MiB in glibc before 2.35
    (_M_TRIM_THRESHOLD, -1),  # free memory at the top of the heap stays
    # An arena of a further thread ends at 64 MiB: its larger blocks would be mapped anew, and it would keep its own.
    (_M_ARENA_MAX, 1),
)


@dataclass(frozen=True)
class AllocatorReport:
    """What `tune_allocator` did.

    Attributes:
        applied: glibc was told to keep freed memory.
        allocator: who serves PyTorch's tensors on the CPU in this process.
        reason: one sentence for people.

    """

    applied: bool
    allocator: Allocator
    reason: str

    def __str__(self) -> str:
        return self.reason


def tune_allocator() -> AllocatorReport:
    """Let glibc keep the memory of freed tensors instead of returning it to the system.

    As it comes, glibc maps every block of more than 32 MiB anew and returns it when it is freed: of every large tensor
    of every training step each page is cleared by the kernel on its first touch, which takes half of the time of a
    normalization layer on the CPU. Afterwards large blocks come from the heap, which is not trimmed, and all threads
    share one. The process keeps the most memory it ever held, and fragments take some more.

    Call it once, early, in a program that trains or predicts on the CPU; `mednorm train` and `mednorm study` do. A
    second call changes nothing. It is a no-op, and says so, where another allocator such as a preloaded tcmalloc
    serves memory, where there is no glibc, where glibc was already tuned by the environment
    (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``, …), and with ``MEDNORM_ALLOCATOR=default``.

    Returns:
        What was done, and why.

    Raises:
        ConfigError: ``MEDNORM_ALLOCATOR`` is neither ``tuned`` nor ``default``.

    Example:
        >>> report = tune_allocator()
        >>> report.applied == (report.allocator == "glibc" and "keeps" in report.reason)
        True
        >>> tune_allocator() == report
        True

    Reference:
        mallopt(3); "Malloc Tunable Parameters" in the GNU C Library manual.

    """
    report = decide(serving_library(), os.environ)
    if not report.applied:
        return report
    libc = ctypes.CDLL(None)
    refused = [parameter for parameter, value in _SETTINGS if libc.mallopt(parameter, value) != 1]
    if refused:
        return AllocatorReport(False, "glibc", f"glibc's mallopt refused parameters {refused}; the others are set.")
    return report


def decide(library: str | None, environment: Mapping[str, str]) -> AllocatorReport:
    """Say what is to be done, given the facts.

    Args:
        library: path of the shared library whose `posix_memalign` is in use, which is what PyTorch calls; None where
            the system does not tell.
        environment: variables of the process.

    Raises:
        ConfigError: ``MEDNORM_ALLOCATOR`` is neither ``tuned`` nor ``default``.

    """
    switch = environment.get(SWITCH, "tuned")
    if switch not in ("tuned", "default"):
        raise ConfigError(f"{SWITCH}: expected tuned or default, got {switch!r}.")
    allocator = _named(library)
    if switch == "default":
        return AllocatorReport(False, allocator, f"{SWITCH}=default: {allocator} is left as it is.")
    if allocator == "other":
        found = f"{library} serves memory" if library else "the system does not say who serves memory"
        return AllocatorReport(False, allocator, f"Nothing to tune: {found}, and only glibc is tuned.")
    if allocator != "glibc":
        return AllocatorReport(False, allocator, f"{allocator} serves memory in the place of glibc: left as it is.")
    own = [name for name in OWN_SETTINGS if name in environment]
    own += [name for name in OWN_TUNABLES if name in environment.get("GLIBC_TUNABLES", "")]
    if own:
        return AllocatorReport(False, allocator, f"{', '.join(own)} is set: glibc is left as you tuned it.")
    return AllocatorReport(True, allocator, "glibc keeps the memory of freed tensors for the next step.")


def serving_library() -> str | None:
    """Return the path of the library that serves `posix_memalign`; None where that cannot be found out."""
    if sys.platform == "win32":
        return None

    class Found(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    found = Found()
    try:
        program = ctypes.CDLL(None)  # every symbol as the process itself sees it, so what is preloaded comes first
        known = program.dladdr(ctypes.cast(program.posix_memalign, ctypes.c_void_p), ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return os.fsdecode(found.file) if known and found.file else None


def _named(library: str | None) -> Allocator:
    name = Path(library or "").name.lower()
    for known in ("tcmalloc", "jemalloc", "mimalloc"):
        if known in name:
            return known
    # musl's library is libc.so, or the loader ld-musl-x86_64.so.1; on macOS it is libsystem_malloc.dylib.
    return "glibc" if name == "libc.so.6" or (name.startswith("libc-2.") and name.endswith(".so")) else "other"
