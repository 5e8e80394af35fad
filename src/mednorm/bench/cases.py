"""What is measured: cases, each of which has peers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mednorm.errors import MednormError

Allocator = Literal["default", "tuned", "tcmalloc"]
ALLOCATORS: tuple[Allocator, ...] = ("default", "tuned", "tcmalloc")


@dataclass(frozen=True)
class Peer:
    """One of those that are compared.

    Attributes:
        name: what is run, such as "torch" or "mednorm".
        allocator: of its process: as installed, with `mednorm.tune_allocator`, or with tcmalloc preloaded.
        backend: Keras's, of its process.

    """

    name: str
    allocator: Allocator = "default"
    backend: Literal["tensorflow", "jax"] | None = None

    @property
    def id(self) -> str:
        """Return what results call it: "torch", or "torch+tuned"."""
        return self.name if self.allocator == "default" else f"{self.name}+{self.allocator}"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        part: the module below `mednorm.bench` that builds it.
        name: for people.
        peers: who is compared.
        of: what the module needs to build it, as JSON knows it.
        fresh: its processes are started for it alone, since their memory is measured.

    """

    part: str
    name: str
    peers: tuple[Peer, ...]
    of: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False


class Subject(Protocol):
    """A peer in a case, ready to be measured."""

    def round(self, seconds: float) -> dict[str, float]:
        """Measure once; times in milliseconds, "milliseconds" among them."""

    def facts(self, shared: Path) -> dict[str, Any]:
        """Say what does not differ from round to round; asked after the last, of one peer after the other.

        Args:
            shared: a folder that the peers of the case have in common, empty for the first.

        """


class MissingPeerError(MednormError):
    """A peer cannot be measured here; the message is the reason."""


PARTS = ("layers", "family", "steps", "statistics", "inference", "startup", "allocators")


def cases_of(part: str, smoke: bool) -> list[Case]:
    """Return the cases of a part; for `smoke` one or two small ones."""
    found: list[Case] = importlib.import_module(f"mednorm.bench.{part}").cases(smoke)
    return found


def build(part: str, of: dict[str, Any], peer: str) -> Subject:
    """Build a peer of a case in this process.

    Raises:
        MissingPeerError: it needs what is not installed.

    """
    subject: Subject = importlib.import_module(f"mednorm.bench.{part}").build(of, peer)
    return subject


def with_allocators(names: Sequence[str], allocators: Sequence[Allocator] = ALLOCATORS) -> tuple[Peer, ...]:
    """Return peers with each allocator in turn."""
    return tuple(Peer(name, allocator) for allocator in allocators for name in names)
