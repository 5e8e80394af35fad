"""One call of the loops: how the work on a tensor is cut into tasks, and the block of arguments that says so."""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mednorm.errors import ConfigError, ShapeError
from mednorm.kernels.cpu import arguments as arg
from mednorm.kernels.cpu import compiled, layout, threads
from mednorm.kernels.groups import Groups

_SLICE = 4096  # values: a unit of a plane, which stays in the first cache
_ROWS = 32768  # values: a unit of rows, long beside what is merged at its end for each channel
_LANES = 256  # few channels are repeated to as many lanes
_LARGE = 4096  # values of a plane from which on the work goes channel by channel
_BLOCKS = 16  # parts of the work otherwise, at most, with any number of threads: so sums are the same with all
_SMALL = 32768  # values of a tensor up to which one thread does it: PyTorch's own grain


class Plan(NamedTuple):
    """How the work on tensors of one shape is cut, whatever their values."""

    block: array[int]
    runs: tuple[array[int], ...]  # what the block points to
    tasks: int
    blocks: int
    large: bool
    width: int
    threaded: bool


@lru_cache(maxsize=1024)
def _plan(kind: int, samples: int, channels: int, length: int, sizes: tuple[int, ...], ordered: bool) -> Plan:
    """Cut the work on planes, or rows, of so many values a channel and sample, in groups of so many samples."""
    values, groups, rows = samples * channels * length, len(sizes), kind == arg.ROWS
    large = not rows and length >= _LARGE and groups * channels > 2
    blocks = 1 if large else math.ceil(min(_BLOCKS, math.ceil(values / _SMALL)) / groups)
    width = channels * max(1, _LANES // channels) if rows else channels
    first = [0, *accumulate(sizes)]
    if rows and not ordered:  # a group's rows lie one behind the other: a single run
        starts, lengths, runs = first[:-1], [size * length for size in sizes], list(range(len(first)))
    else:
        starts, lengths, runs = list(range(first[-1])), [length] * first[-1], first
    kept = tuple(array("q", numbers) for numbers in (runs, starts, lengths))
    block = array("q", bytes(8 * arg.LENGTH))
    for place, value in (
        (arg.LAYOUT, kind),
        (arg.BLOCKS, blocks),
        (arg.TASK_CHANNELS, 1 if large else channels),
        (arg.GROUPS, groups),
        (arg.CHANNELS, channels),
        (arg.WIDTH, width),
        (arg.UNIT, max(1, _ROWS // channels) if rows else _SLICE),
        *zip((arg.GROUP_RUNS, arg.RUN_SAMPLE, arg.RUN_LENGTH), (each.buffer_info()[0] for each in kept), strict=True),
    ):
        block[place] = value
    return Plan(block, kept, groups * blocks * (channels if large else 1), blocks, large, width, values >= _SMALL)


def in_memory(tensor: Tensor) -> Tensor:
    """Return a tensor whose address can be taken: on the CPU, and its values as they are written there.

    Raises:
        ConfigError: it is on another device.

    """
    if tensor.device.type != "cpu":
        raise ConfigError(
            f"normalize: expected every tensor on the CPU, where the input is, got one on {tensor.device}. Move the "
            "layer to the input's device, or the input to the layer's."
        )
    if tensor.is_neg() or tensor._is_zerotensor():
        return tensor.clone()
    return tensor


class Call:
    """Hold the arguments of the loops over x, and do operations with them, one after the other.

    Args:
        x: (N, C, *), float32 or float64 on the CPU, not empty.
        groups: of its samples; None for one of all.
        eps: added to the variance.
        slope: of the activation below 0; None for no activation.

    """

    def __init__(self, x: Tensor, groups: Groups | None, eps: float = 0.0, slope: float | None = None) -> None:
        self.x = x
        self.kind = layout.kind_of(x)
        samples, self.channels = x.shape[:2]
        sizes = (samples,) if groups is None else tuple(groups.sizes)
        order = None if groups is None else groups.order
        length = x.numel() // (samples * self.channels)
        self.plan = _plan(self.kind, samples, self.channels, length, sizes, order is not None)
        self.groups = len(sizes)
        self.shape = (self.channels,) if groups is None else (self.groups, self.channels)
        self._kept: list[object] = []
        self._block = self.plan.block[:]
        self._ticket = array("q", [0])
        self._block[arg.TICKET] = self._ticket.buffer_info()[0]
        self._block[arg.ACTIVATION] = arg.NOTHING if slope is None else arg.RELU if slope == 0 else arg.LEAKY_RELU
        self._numbers(arg.EPSILON, array("d", [eps, slope or 0.0]))
        if order is not None:
            self._numbers(arg.RUN_SAMPLE, array("q", order.tolist()))
        self.image(arg.X, x)
        notes = arg.SUMS_PARTS * self.groups * self.plan.blocks * self.channels
        self.vector(arg.PARTIAL, x.new_empty(notes, dtype=torch.float64))
        if self.kind == arg.ROWS:
            self.vector(arg.SCRATCH, x.new_empty(self.plan.tasks * arg.SCRATCH_LANES * self.plan.width))

    def set(self, place: int, value: int) -> None:
        """Give a number."""
        self._block[place] = value

    def _numbers(self, place: int, numbers: array[int] | array[float]) -> None:
        self._kept.append(numbers)
        self._block[place] = numbers.buffer_info()[0]

    def vector(self, place: int, tensor: Tensor | None) -> None:
        """Give the address of a contiguous tensor; None leaves it out."""
        if tensor is not None:
            tensor = in_memory(tensor)
            self._kept.append(tensor)
            self._block[place] = tensor.data_ptr()

    def given(self, place: int, vector: Tensor | None) -> None:
        """Give a vector per channel, or per group and channel."""
        if vector is None:
            return
        if vector.shape[-1:] != (self.channels,) or vector.dim() > len(self.shape):
            raise ShapeError(
                f"normalize: expected vectors of shape {self.shape} for an input {tuple(self.x.shape)}, got "
                f"{tuple(vector.shape)}."
            )
        dtype = torch.int64 if place == arg.COUNT else self.x.dtype
        self.vector(place, in_memory(vector).to(dtype).expand(self.shape).contiguous())

    def per_channel(self, *places: int, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Give new vectors (C,) or (G, C), of x's type unless told, to write to, and return them."""
        found = self.x.new_empty((len(places), *self.shape), dtype=dtype).unbind()
        for place, each in zip(places, found, strict=True):
            self.vector(place, each)
        return found

    def lanes(self, *places: int) -> None:
        """Give room (groups, lanes) for vectors that the loops make for themselves."""
        size = self.groups * self.plan.width
        room = self.x.new_empty(len(places) * size)
        self._kept.append(room)
        for number, place in enumerate(places):
            self._block[place] = room.data_ptr() + number * size * room.element_size()

    def image(self, place: int, tensor: Tensor) -> None:
        """Give the address and strides of an image tensor, or of a copy of it that lies as x does."""
        tensor = in_memory(tensor)
        if (tensor.shape, tensor.dtype) != (self.x.shape, self.x.dtype):
            tensor = tensor.to(self.x.dtype).expand(self.x.shape)
        found = layout.as_kind(tensor, self.kind)
        self._kept.append(found.tensor)
        self._block[place : place + 3] = array("q", [found.tensor.data_ptr(), found.sample, found.channel])

    def out(self) -> Tensor:
        """Give a new image tensor to write to, and return it."""
        found = layout.like(self.x, self.kind)
        self.image(arg.OUT, found)
        return found

    def run(self, operation: int) -> None:
        """Do an operation over all tasks, on all threads."""
        self._run(operation, self.plan.tasks, torch.get_num_threads() if self.plan.threaded else 1)

    def per_channel_run(self, operation: int) -> None:
        """Do an operation over the channels of all groups, which is little."""
        self._run(operation, self.groups * self.channels, 1)

    def _run(self, operation: int, tasks: int, count: int) -> None:
        self._block[arg.OPERATION] = operation
        self._block[arg.TASKS] = tasks
        self._ticket[0] = 0
        threads.run(compiled.address_of(self.x.dtype), self._block.buffer_info()[0], min(count, tasks))
