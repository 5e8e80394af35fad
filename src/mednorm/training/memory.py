"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_MEGABYTE = 1024 * 1024


class PeakMemory:
    """Measure peak memory from construction on, in MB (2²⁰ bytes).

    On CUDA: the most that PyTorch's allocator held. On Linux: the process's largest resident set since construction,
    libraries included, for which the kernel's high-water mark is reset. Elsewhere there is no such mark to reset: None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._works = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._works = False

    def read(self) -> float | None:
        """Return the peak so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MEGABYTE
        if not self._works or not sys.platform.startswith("linux"):
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return None
