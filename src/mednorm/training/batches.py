"""Batches of images held in memory, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from mednorm.data import Arrays

Loader = DataLoader[tuple[Tensor, ...]]


class EpochBatches(Sampler[list[int]]):
    """Draw a new order each epoch from (seed, epoch), so that a resumed run draws what an uninterrupted one would.

    The last, incomplete batch is left out, as is usual with batch statistics; its images differ from epoch to epoch.
    Where an epoch has more steps than the images fill, they come again in a new order.
    """

    def __init__(self, size: int, batch_size: int, seed: int, steps: int | None = None) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0
        self.steps = size // batch_size if steps is None else steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = []
        for _ in range(self.steps):
            while len(order) < self.batch_size:
                order += torch.randperm(self.size, generator=generator).tolist()
            yield order[: self.batch_size]
            del order[: self.batch_size]


def training_loader(arrays: Arrays, batch_size: int, seed: int, steps: int | None = None) -> Loader:
    """Return shuffled batches of (images, targets, rows of the arrays); one indexing operation a batch."""
    return _loader(arrays, EpochBatches(len(arrays.names), batch_size, seed, steps))


def evaluation_loader(arrays: Arrays, batch_size: int = 64) -> Loader:
    """Return every image once, in order; volumes one at a time, as their sizes may differ."""
    if isinstance(arrays.images, tuple):
        pairs = enumerate(zip(arrays.images, arrays.targets, strict=True))
        single = [(image[None], target[None], torch.tensor([row])) for row, (image, target) in pairs]
        return DataLoader(single, batch_size=None)  # type: ignore[arg-type]
    size = len(arrays.names)
    return _loader(arrays, [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)])


def _loader(arrays: Arrays, batches: Sampler[list[int]] | list[list[int]]) -> Loader:
    assert isinstance(arrays.images, Tensor)
    assert isinstance(arrays.targets, Tensor)
    rows = torch.arange(len(arrays.names))
    return DataLoader(TensorDataset(arrays.images, arrays.targets, rows), sampler=batches, batch_size=None)
