"""Rounds over the peers of each case."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mednorm.bench.cases import PARTS, Case, MissingPeerError, Peer, cases_of
from mednorm.bench.process import Worker
from mednorm.bench.record import Record, new_record, opened, write
from mednorm.bench.timing import over_rounds
from mednorm.errors import ConfigError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long.

    Attributes:
        parts: of `PARTS`.
        rounds: over all peers of a case.
        seconds: that a peer is timed in a round, at least.
        threads: of the loops; None for what PyTorch takes.
        smoke: small cases, to see that everything runs.
        leave_out: peers not to measure, by their name, allocator or both: "torch-compile", "tcmalloc", "torch+tuned".

    """

    parts: tuple[str, ...] = PARTS
    rounds: int = 5
    seconds: float = 0.2
    threads: int | None = None
    smoke: bool = False
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ConfigError(f"bench: expected parts of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}.")
        if self.rounds < 1:
            raise ConfigError(f"--rounds: expected at least 1, got {self.rounds}.")
        if not self.seconds > 0:
            raise ConfigError(f"--seconds: expected more than 0, got {self.seconds:g}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads: expected at least 1, got {self.threads}.")


def run_bench(
    settings: Settings, out: Path | None = None, *, overwrite: bool = False, progress: Progress = lambda *_: None
) -> Record:
    """Measure, and write what was measured after each case.

    A run that is interrupted goes on where it was: cases in the file are not measured again.

    Args:
        settings: what to measure.
        out: a file for the results; None for none.
        overwrite: begin anew where there is one.
        progress: called with the case, the number of measurements that it has behind it, and of all it takes.

    Raises:
        ConfigError: peers to leave out that no case has.
        RunError: the file is finished, or of other settings, versions or another machine.

    Example:
        >>> record = run_bench(Settings(parts=("startup",), rounds=1, smoke=True))
        >>> [case["name"] for case in record["cases"]], record["finished"]
        (['start'], True)

    """
    cases = [case for part in settings.parts for case in cases_of(part, settings.smoke)]
    _check_left_out(settings.leave_out, cases)
    record = opened(out, new_record(_as_json(settings), _about(settings.threads)), overwrite)
    done = {(case["part"], case["name"]) for case in record["cases"]}
    with _Pool(settings.threads) as pool:
        for before, case in zip([None, *cases], cases, strict=False):
            if before is None or before.part != case.part or case.fresh:
                pool.close()
            if (case.part, case.name) not in done:
                record["cases"].append(measure(case, settings, pool, progress))
                write(record, out)
    record["finished"] = True
    write(record, out)
    return record


def measure(case: Case, settings: Settings, pool: _Pool, progress: Progress) -> Record:
    """Measure one case: its peers in turn, round by round; a peer that cannot be measured is named with the reason."""
    missing = {peer.id: "left out" for peer in case.peers if _is_left_out(peer, settings.leave_out)}
    peers = [peer for peer in case.peers if peer.id not in missing]
    total, count = len(peers) * (settings.rounds + 2), iter(range(1, 1_000_000))

    def asked(do: str, **what: Any) -> dict[str, dict[str, Any]]:
        answers = {}
        for peer in peers:
            if peer.id not in missing:
                try:
                    answers[peer.id] = pool.worker(peer).ask(do, name=peer.name, **what)
                except MissingPeerError as reason:
                    missing[peer.id] = str(reason)
                    pool.drop(peer)
            progress(f"{case.part} {case.name}", next(count), total)
        return answers

    for peer in peers:  # all start at once
        with contextlib.suppress(MissingPeerError):  # said when it is asked
            pool.worker(peer)
    asked("prepare", part=case.part, of=case.of)
    rounds = [asked("round", seconds=settings.seconds) for _ in range(settings.rounds)]
    with tempfile.TemporaryDirectory() as shared:
        facts = asked("facts", shared=shared)
    measured = [peer for peer in peers if peer.id not in missing]
    first = [each[measured[0].id]["milliseconds"] for each in rounds] if measured else []
    return {
        "part": case.part,
        "name": case.name,
        **case.of,
        "rounds": settings.rounds,
        "reference": measured[0].id if measured else None,
        "peers": {
            peer.id: {
                "name": peer.name,
                "allocator": peer.allocator,
                **over_rounds([each[peer.id] | {"relative_to": t} for each, t in zip(rounds, first, strict=True)]),
                **facts[peer.id],
            }
            for peer in measured
        },
        "missing": missing,
    }


class _Pool:
    """The workers of the peers that were asked for."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def worker(self, peer: Peer) -> Worker:
        if peer.id not in self._workers:
            self._workers[peer.id] = Worker(peer, self._threads)
        return self._workers[peer.id]

    def drop(self, peer: Peer) -> None:
        worker = self._workers.pop(peer.id, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers = {}


def _about(threads: int | None) -> dict[str, Any]:
    with contextlib.closing(Worker(Peer("torch"), threads)) as worker:
        return worker.ask("about")


def _as_json(settings: Settings) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


def _is_left_out(peer: Peer, leave_out: Sequence[str]) -> bool:
    return bool({peer.name, peer.allocator, peer.id, f"{peer.name}+{peer.allocator}"} & set(leave_out))


def _check_left_out(leave_out: Sequence[str], cases: Sequence[Case]) -> None:
    peers = [peer for case in cases for peer in case.peers]
    unknown = [word for word in leave_out if not any(_is_left_out(peer, [word]) for peer in peers)]
    if unknown:
        known = ", ".join(dict.fromkeys(peer.name for peer in peers))
        raise ConfigError(
            f"--leave-out: expected peers of {known}, or an allocator, got {', '.join(unknown)}. Write such as "
            "torch-compile,tcmalloc or torch+tuned."
        )
