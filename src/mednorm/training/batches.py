"""Batches of images held in memory, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from mednorm.data import Arrays


class EpochBatches(Sampler[list[int]]):
    """Draw a new order each epoch from (seed, epoch), so that a resumed run draws what an uninterrupted one would.

    The last, incomplete batch is left out, as is usual with batch statistics; its images differ from epoch to epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def training_loader(arrays: Arrays, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return shuffled batches of (images, targets); one indexing operation a batch."""
    return DataLoader(
        TensorDataset(arrays.images, arrays.targets),
        sampler=EpochBatches(len(arrays.names), batch_size, seed),
        batch_size=None,
    )


def evaluation_loader(arrays: Arrays, batch_size: int = 64) -> DataLoader[tuple[Tensor, ...]]:
    """Return every image once, in order."""
    size = len(arrays.names)
    batches = [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
    return DataLoader(TensorDataset(arrays.images, arrays.targets), sampler=batches, batch_size=None)
