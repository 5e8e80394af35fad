"""Peak memory of a stretch of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

_MEGABYTE = 1024 * 1024


class PeakMemory:
    """Measure by how much memory rises above its level at construction, at most, in MB (2²⁰ bytes).

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

    def read(self) -> float | None:
        """Return the rise so far."""
        if self._start is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MEGABYTE - self._start
        peak = _resident("VmHWM")
        return None if peak is None else peak - self._start


def _reset_high_water_mark() -> bool:
    """Return whether the system has a mark that could be reset."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> float | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return None
