"""The loops on a GPU, as Triton kernels: what each takes and returns, and the tiles it works on.

Every function takes x of shape (N, C, *), contiguous or channels_last (other strides are copied), and per-channel
vectors of shape (C,). The arithmetic runs in float32, in float64 for float64. Every run gives the same bits: tiles
follow from the shape alone, and no sum is made by atomics. Triton is imported at the first call.

Reference:
    Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance". Tillet, Kung, Cox (2019), "Triton: an
    intermediate language and compiler for tiled neural network computations".
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mednorm.kernels.affine import Affine

OLDEST = (8, 0)  # the compute capability that Triton asks of a GPU
VALUES = 2048  # of a tile: 16 a thread of four warps, in loads of 16 bytes
PROGRAMS = 2048  # enough to fill the largest GPUs, few enough that their parts are quickly added up
TILES_EACH = 32  # at most: see `triton_loops.measure` on what a long row of tiles costs in accuracy
ROW = 64  # values side by side in memory that a tile takes at least, where there are as many


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why these kernels cannot run on a device; None where they can.

    Args:
        device: of the tensors; by default the current GPU.

    Example:
        >>> import torch
        >>> reason = unavailable(torch.device("cpu"))
        >>> reason is None or "Triton" in reason
        True

    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device is not None and device.type != "cuda":
        return f"Triton runs on GPUs, not on {device.type}"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU for Triton"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        asked, found = (".".join(map(str, version)) for version in (OLDEST, capability))
        return f"Triton asks for compute capability {asked}, {torch.cuda.get_device_name(device)} has {found}"
    return None


def measure(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, sum of squared deviations from it, minimum and maximum of each channel.

    One pass over x. A NaN makes all four of its channel NaN; without values they are 0, 0, inf and -inf.
    """
    tiling = _Tiling.of(x)
    mean, m2, minimum, maximum = (
        torch.full((x.shape[1],), empty, dtype=_arithmetic(x), device=x.device) for empty in (0, 0, math.inf, -math.inf)
    )
    if x.numel() > 0:
        parts = tiling.parts_of(5, x)
        with torch.cuda.device_of(x):
            tiling.over_parts("measure", tiling.dense(x), parts)
            _merge("merge", parts, mean, m2, minimum, maximum)
    return mean, m2, minimum, maximum


def normalize(x: Tensor, affine: Affine) -> Tensor:
    """Return act((x - mean) * scale + bias) in x's type and memory format."""
    tiling = _Tiling.of(x)
    x = tiling.dense(x)
    y = torch.empty_like(x)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            tiling.over_tiles("normalize", x, y, *_vectors(*affine[:3]), SLOPE=affine.slope)
    return y


def sums(grad: Tensor, x: Tensor, affine: Affine) -> Tensor:
    """Return the sums of h and of h * (x - mean), of shape (2, C), h being the gradient before the activation.

    The activation's output is not needed: its sign is recomputed from x, as `normalize` computes it.
    """
    tiling = _Tiling.of(x)
    added = torch.zeros((2, x.shape[1]), dtype=_arithmetic(x), device=x.device)
    if x.numel() > 0:
        parts = tiling.parts_of(2, x)
        vectors = _vectors(*affine[:3])
        with torch.cuda.device_of(x):
            tiling.over_parts("sums", tiling.dense(grad), tiling.dense(x), parts, *vectors, SLOPE=affine.slope)
            _merge("add", parts, added)
    return added


def apply(grad: Tensor, x: Tensor, affine: Affine, k: Tensor, m: Tensor) -> Tensor:
    """Return scale * h - k * (x - mean) - m, the gradient of x, in x's type and memory format.

    Args:
        grad: the gradient of `normalize`'s output, of x's shape.
        x: what was normalized.
        affine: with what.
        k: of shape (C,); for batch norm scale / std^2 times the mean of h * (x - mean), 0 for fixed statistics.
        m: of shape (C,); for batch norm scale times the mean of h, 0 for fixed statistics.

    """
    tiling = _Tiling.of(x)
    x = tiling.dense(x)
    grad_x = torch.empty_like(x)
    if x.numel() > 0:
        vectors = _vectors(*affine[:3], k, m)
        with torch.cuda.device_of(x):
            tiling.over_tiles("apply", tiling.dense(grad), x, grad_x, *vectors, SLOPE=affine.slope)
    return grad_x


class _Tiling(NamedTuple):
    """How a tensor, seen as (outer, channels, inner) with the last axis densest, is cut into tiles.

    A block is so many channels, and `tiles` cover it; each program of a sum takes `each` of them, one of `parts`.
    """

    channels_last: bool
    sizes: tuple[int, int, int]
    tile: tuple[int, int, int]
    blocks: int
    tiles: int
    each: int
    parts: int

    @classmethod
    def of(cls, x: Tensor) -> _Tiling:
        samples, channels, voxels = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        channels_last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
        outer, inner = (samples * voxels, 1) if channels_last else (samples, voxels)
        wide = min(_power_of_two(inner), VALUES)
        across = min(_power_of_two(channels), max(1, ROW // wide))
        deep = min(_power_of_two(outer), VALUES // (wide * across))
        blocks, tiles = -(-channels // across), -(-outer // deep) * -(-inner // wide)
        each = min(max(1, blocks * tiles // PROGRAMS), TILES_EACH)
        sizes, tile = (outer, channels, inner), (deep, across, wide)
        return cls(channels_last, sizes, tile, blocks, tiles, each, -(-tiles // each))

    def dense(self, tensor: Tensor) -> Tensor:
        """Bring a tensor of the same shape into the order of memory that the tiles were made for."""
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if self.channels_last else tensor.contiguous()

    def parts_of(self, fields: int, x: Tensor) -> Tensor:
        """Return memory for what the programs of a sum leave."""
        return x.new_empty((fields, self.parts, self.sizes[1]), dtype=torch.float64)

    def over_parts(self, loop: str, *tensors: Tensor, **constants: Any) -> None:
        """Launch one program a part and block of channels."""
        self._launch(loop, self.parts * self.blocks, tensors, (self.tiles, self.each, self.parts), constants)

    def over_tiles(self, loop: str, *tensors: Tensor, **constants: Any) -> None:
        """Launch one program a tile."""
        programs = self.tiles * self.blocks
        self._launch(loop, programs, tensors, (programs - 1, self.blocks), constants)

    def _launch(
        self, loop: str, programs: int, tensors: tuple[Tensor, ...], counts: tuple[int, ...], constants: dict[str, Any]
    ) -> None:
        from mednorm.kernels import triton_loops

        dtype = triton_loops.ARITHMETIC[_arithmetic(tensors[0])]
        outer, channels, inner = self.sizes
        even = min(inner & -inner, 16)  # the largest power of two in it
        deep, across, wide = self.tile
        constants |= {"EVEN": even, "TYPE": dtype, "OUTER": deep, "CHANNELS": across, "INNER": wide}
        warps = min(max(1, deep * across * wide // 256), 4)
        kernel = getattr(triton_loops, loop)[(programs,)]
        kernel(*tensors, outer, channels, inner // even, *counts, **constants, num_warps=warps)


def _merge(loop: str, parts: Tensor, *merged: Tensor) -> None:
    from mednorm.kernels import triton_loops

    fields, count, channels = parts.shape
    across, deep = min(_power_of_two(channels), 8), min(_power_of_two(count), 128)
    grid = (-(-channels // across), fields if loop == "add" else 1)
    getattr(triton_loops, loop)[grid](parts, *merged, channels, count, PARTS=deep, CHANNELS=across)


def _vectors(*vectors: Tensor) -> tuple[Tensor, ...]:
    return tuple(vector.contiguous() for vector in vectors)


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least this, which a tile's sides must be."""
    return 1 << max(0, size - 1).bit_length()
