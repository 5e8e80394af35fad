"""Samples of a batch that share their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mednorm.errors import ShapeError


class Groups(NamedTuple):
    """Which samples share their statistics.

    Attributes:
        sizes: samples of each group, at least one.
        order: the samples, one group after the other, shape (N,), int64; None where they lie so already.

    """

    sizes: Sequence[int]
    order: Tensor | None = None

    def check(self, samples: int) -> None:
        """Refuse sizes and an order that are not those of so many samples.

        Raises:
            ShapeError: they are not.

        """
        places = range(samples) if self.order is None else self.order.tolist()
        if sum(self.sizes) != samples or min(self.sizes, default=1) < 1 or sorted(places) != list(range(samples)):
            raise ShapeError(
                f"Groups: expected sizes of at least 1 that add up to the {samples} samples, each of which is in the "
                f"order once, got sizes {list(self.sizes)} and order {None if self.order is None else places}."
            )

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the samples of each group."""
        parts: tuple[Tensor, ...] = (x if self.order is None else x[self.order]).split(list(self.sizes))
        return parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the samples of all groups into their places again."""
        joined = torch.cat(list(parts))
        return joined if self.order is None else joined[self.order.argsort()]


def rows(vector: Tensor | None, groups: Groups) -> Iterator[Tensor | None]:
    """Give each group its row of vectors (G, C), or the one vector (C,) to all."""
    for place in range(len(groups.sizes)):
        yield vector if vector is None or vector.dim() == 1 else vector[place]
