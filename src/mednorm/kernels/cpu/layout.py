"""How the values of a tensor lie in memory, in the two ways that the loops walk over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mednorm.kernels.cpu.arguments import PLANES, ROWS


class Image(NamedTuple):
    """A tensor, and where its samples and channels begin: strides in values."""

    tensor: Tensor
    sample: int
    channel: int


def kind_of(x: Tensor) -> int:
    """Return how to walk over x, (N, C, *): planes of one channel, or rows of all channels."""
    planes, rows = _has_planes(x), _has_rows(x)
    return ROWS if rows and (not planes or x.numel() == x.shape[0] * x.shape[1]) else PLANES


def as_kind(x: Tensor, kind: int) -> Image:
    """Return x for that walk; a copy of it where it lies otherwise."""
    if not (_has_planes(x) if kind == PLANES else _has_rows(x)):
        x = like(x, kind).copy_(x)
    return Image(x, _stride(x, 0), _stride(x, 1))


def like(x: Tensor, kind: int) -> Tensor:
    """Return a new tensor of x's shape that lies in that way."""
    if kind == PLANES or x.dim() == 2:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    strides, step = [0] * x.dim(), 1
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        strides[axis], step = step, step * max(x.shape[axis], 1)
    # No view of a tensor in that order: autograd lets nobody write into a view that a function of ours returns.
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def _has_planes(x: Tensor) -> bool:
    """Tell whether the values of a channel in a sample lie one behind the other."""
    return _dense(x, range(2, x.dim()), 1)


def _has_rows(x: Tensor) -> bool:
    """Tell whether the channels of a pixel do, then the pixels of a sample, then the samples."""
    return _dense(x, (0, *range(2, x.dim()), 1), 1)


def _dense(x: Tensor, axes: range | tuple[int, ...], step: int) -> bool:
    for axis in reversed(axes):
        if x.shape[axis] != 1:
            if x.stride(axis) != step:
                return False
            step *= x.shape[axis]
    return True


def _stride(x: Tensor, axis: int) -> int:
    return x.stride(axis) if x.shape[axis] > 1 else 0
