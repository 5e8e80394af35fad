"""Where and how numbers were made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from mednorm import __version__
from mednorm.results import Environment

_PACKAGES = ("torch", "monai", "lightning", "torchmetrics", "numpy", "scipy", "nilearn")


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_environment(command: str, started: str, device: str) -> Environment:
    """Describe this machine and the versions in use."""
    return Environment(
        command=command,
        started=started,
        finished=now(),
        mednorm=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=device,
        commit=_commit(),
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of a source checkout, with "+" where it has changes; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]  # no shell; fixed words only
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
