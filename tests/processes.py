"""Real processes for the tests that need several: joined by gloo on loopback, bounded in time, their errors shown."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.testing._internal.distributed.fake_pg import FakeStore

SECONDS = 90  # for all of it; a process starts in some seconds, more where many tests run beside


def run_processes(work: Callable[..., None], count: int, folder: Path, *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in that many new processes, which form the default process group.

    `work` is a function of a module, since each process imports it anew. They meet by a file in `folder`. An exception
    in one of them ends all, and is raised here with its traceback; so is a wait for a process that never comes.
    """
    processes = multiprocessing.start_processes(
        _join, (count, str(folder / "rendezvous"), work, arguments), nprocs=count, join=False, start_method="spawn"
    )
    end = time.monotonic() + SECONDS
    while not processes.join(timeout=1):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__}: {count} processes did not end within {SECONDS} seconds.")


@contextmanager
def first_of(count: int) -> Iterator[None]:
    """Make this process the first of so many, of which the others are imagined: nothing is exchanged."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_alone(work: Callable[[], None], folder: Path) -> None:
    """Call `work` in this process as the only one of a group of gloo, and let go of all that it made.

    A DistributedDataParallel must not outlive the group: deleted as its last holder, it would wait for gloo's threads,
    which wait for the interpreter, for ever.
    """
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        work()
        gc.collect()
    finally:
        dist.destroy_process_group()


def _join(rank: int, count: int, rendezvous: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    if loopback:  # otherwise gloo looks the machine's name up, which some networks do not know
        os.environ["GLOO_SOCKET_IFNAME"] = loopback.pop()
    limit = timedelta(seconds=SECONDS / 3)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=count, timeout=limit)
    try:
        work(rank, *arguments)
        gc.collect()  # see `run_alone`
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
