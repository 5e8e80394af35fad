"""The streaming passes over memory that no implementation of batch normalization and ReLU can avoid."""

from __future__ import annotations

import torch
from torch import Tensor

from mednorm.bench.timing import milliseconds


class Floor:
    """Times the passes of a training step, on tensors like its own.

    Forward reads x, then copies it to y; backward reads two tensors, then reads two and writes one:
    3 · t(`x.sum()`) + t(`y.copy_(x)`) + t(`torch.add(x, g, out=y)`).
    """

    def __init__(self, x: Tensor, grad: Tensor) -> None:
        self._x, self._grad, self._y = x.detach(), grad, torch.empty_like(grad)
        self.milliseconds(0.0)

    def milliseconds(self, seconds: float) -> float:
        """Return the time of the passes."""
        third = seconds / 3
        return 3 * milliseconds(self._x.sum, third) + self.copy(third) + milliseconds(self._add, third)

    def copy(self, seconds: float) -> float:
        """Return the time of reading x and writing y, which is what evaluation cannot avoid."""
        return milliseconds(self._copy, seconds)

    def _copy(self) -> None:
        self._y.copy_(self._x)

    def _add(self) -> None:
        torch.add(self._x, self._grad, out=self._y)


def tensors(shape: list[int], channels_last: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return values and a gradient, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for _ in range(2)]
    if channels_last:
        made = [each.contiguous(memory_format=torch.channels_last) for each in made]
    return made[0], made[1]
