"""How long Python, an import and the command line take to start; each time in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mednorm.bench.cases import Case, Peer

_HELP = "import sys; sys.argv = ['mednorm', '--help']; from mednorm.cli import main; main()"
_PROGRAMS = {
    "python": "pass",
    "import torch": "import torch",
    "import mednorm": "import mednorm",
    "mednorm.BatchNorm": "import mednorm; mednorm.BatchNorm",
    "mednorm --help": _HELP,
}


class Start:
    """A program that is started and waited for."""

    def __init__(self, code: str) -> None:
        self._command = [sys.executable, "-c", code]
        self.round(0)  # once unmeasured: files come into the system's cache

    def round(self, seconds: float) -> dict[str, float]:
        """Time one start."""
        started = time.perf_counter()
        subprocess.run(self._command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed words
        return {"milliseconds": (time.perf_counter() - started) * 1e3}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Say nothing more."""
        return {}


def cases(smoke: bool) -> list[Case]:
    """Return the one case there is."""
    programs = [name for name in _PROGRAMS if not smoke or name in ("python", "import mednorm")]
    return [Case("startup", "start", tuple(Peer(name) for name in programs))]


def build(of: dict[str, Any], peer: str) -> Start:
    """Return the program of that name."""
    return Start(_PROGRAMS[peer])
