"""Two processes with unequal batches normalize as one does with both."""

import tempfile

import torch
import torch.distributed as dist
from torch import multiprocessing

import mednorm

torch.manual_seed(0)
SCANS = torch.randn(5, 1, 8, 8, 8) + torch.linspace(-2, 2, 5).view(5, 1, 1, 1, 1)
SHARES = [4, 1]  # the second process has a single scan


def running(process_group: str | None, scans: torch.Tensor) -> str:
    layer = mednorm.BatchNorm(1, momentum=1.0, process_group=process_group)
    layer(scans)
    return f"running mean {layer.running_mean.item():+.3f}, variance {layer.running_var.item():.3f}"


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = SCANS.split(SHARES)[rank]
    lines: list[str | None] = [None, None]
    dist.all_gather_object(lines, f"process {rank} alone:  {running(None, mine)}")
    together = running("world", mine)
    if rank == 0:
        print(*lines, f"both, synchronised: {together}", sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"all in one process: {running(None, SCANS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(process, (folder,), nprocs=2)
