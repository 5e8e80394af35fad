"""The parent's side of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from mednorm.allocator import OWN_SETTINGS
from mednorm.bench.cases import MissingPeerError, Peer
from mednorm.bench.machine import tcmalloc

# What a user sets that would change what a peer is; each peer gets its own.
DECIDED = ("LD_PRELOAD", "KERAS_BACKEND", "MEDNORM_ALLOCATOR", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", *OWN_SETTINGS)


class Worker:
    """The process in which a peer is measured; it starts at once and is waited for when it is first asked.

    Args:
        peer: decides the allocator and Keras's backend.
        threads: for the loops of every framework that can be told; None for what it takes itself.

    Raises:
        MissingPeerError: its allocator is not installed.

    """

    def __init__(self, peer: Peer, threads: int | None = None) -> None:
        # Closed with the process.
        self._said = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mednorm.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env=environment(peer, threads, dict(os.environ), tcmalloc()),
        )

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            MissingPeerError: the peer cannot be measured, or its process ended.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MissingPeerError(f"its process ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingPeerError(answer["missing"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _last_words(self) -> str:
        self._said.seek(0)
        return next((line.strip() for line in reversed(self._said.readlines()) if line.strip()), "without a word")


def environment(peer: Peer, threads: int | None, inherited: dict[str, str], preload: str | None) -> dict[str, str]:
    """Return the variables of a peer's process.

    Args:
        peer: whose it is.
        threads: see `Worker`.
        inherited: variables of this process.
        preload: the library of tcmalloc; None where it is not installed.

    Raises:
        MissingPeerError: its allocator is not installed.

    """
    own = {name: value for name, value in inherited.items() if name not in DECIDED}
    if peer.allocator == "tcmalloc":
        if preload is None:
            raise MissingPeerError("tcmalloc is not installed (Debian: libtcmalloc-minimal4 or libgoogle-perftools4)")
        own["LD_PRELOAD"] = preload
    if peer.allocator == "tuned":
        own["MEDNORM_BENCH_TUNED"] = "1"
    if peer.backend is not None:
        own |= {"KERAS_BACKEND": peer.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if threads is not None:
        own |= dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    return own
