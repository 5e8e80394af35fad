"""What figures depend on: the processor, the allocators there are, the versions of packages."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

_TCMALLOC = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
# Where Debian, Fedora and Arch put libraries; the loader's own list, which not every user may ask, comes first.
_FOLDERS = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
_PACKAGES = ("torch", "monai", "numba", "keras", "tensorflow", "tensorflow_cpu", "jax")


def cpu_model() -> str:
    """Return the processor's name where the system tells, otherwise its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def tcmalloc() -> str | None:
    """Return gperftools' tcmalloc, as LD_PRELOAD takes it; None where it is not installed."""
    for folder in _FOLDERS:
        for name in _TCMALLOC:
            if (Path(folder) / name).exists():
                return str(Path(folder) / name)
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of Python, mednorm and of what is measured beside it, as far as installed."""
    from mednorm import __version__

    found = {"mednorm": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
