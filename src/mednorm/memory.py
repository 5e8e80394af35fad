"""Memory of this process and of its device: the peak of a stretch of work, and what is still to be had."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

import torch

_MEGABYTE = 1024 * 1024
# Limits of a container or of a batch system: the kernel's second and first version of control groups.
_CONTROL = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class PeakMemory:
    """Measure the most memory from construction on, also as the rise above the level then, in MB (2²⁰ bytes).

    On CUDA this is what PyTorch's allocator holds. On Linux it is the resident memory of the process: what is free is
    given back to the system first, and the kernel's high-water mark is reset. Elsewhere there is no such mark: None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: float | None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device) / _MEGABYTE
        else:
            self._start = _resident("VmRSS") if _reset_high_water_mark() else None

    @property
    def start(self) -> float | None:
        """The level at construction."""
        return self._start

    def read(self) -> float | None:
        """Return the rise so far."""
        peak = self.total()
        return None if peak is None or self._start is None else peak - self._start

    def total(self) -> float | None:
        """Return the peak so far, with all that was there before."""
        if self._start is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MEGABYTE
        return _resident("VmHWM")


def in_use(device: torch.device) -> int | None:
    """Return the bytes that this process holds on a device, without what it can give back; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _give_back()
    held = _resident("VmRSS")
    return None if held is None else int(held * _MEGABYTE)


def available(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device, by the limits of a container, too; None where unknown."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserved)
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = [1024 * int(found[1])] if found else []
    for most, now in _CONTROL:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            free.append(max(0, int(most.read_text()) - int(now.read_text())))
    return min(free, default=None)


def _reset_high_water_mark() -> bool:
    """Return whether the system has a mark that could be reset."""
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Return what is free to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return None
