"""Real processes for the tests that need several: joined by gloo on loopback, bounded in time, their errors shown."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

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


def _join(rank: int, count: int, rendezvous: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    if loopback:  # otherwise gloo looks the machine's name up, which some networks do not know
        os.environ["GLOO_SOCKET_IFNAME"] = loopback.pop()
    limit = timedelta(seconds=SECONDS / 3)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=count, timeout=limit)
    try:
        work(rank, *arguments)
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()
