"""Bring an image to the grid that a network was trained on, and what the network says back to the image's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mednorm.data import Geometry, pixels, readers

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

UNPLACED = "orientation unknown, taken as it is"
_SAME_SPACING = 0.01  # relative; what the readers take for one spacing


@dataclass(frozen=True, slots=True)
class Grid:
    """What a network was trained on; None for what was not fixed.

    Attributes:
        size: voxels along each axis, whatever the proportions.
        orientation: where the axes of a volume lead, such as "RAS".
        spacing: mm between the voxels of a volume along each axis; passed over where there is a size.
    """

    size: Sequence[int] | None = None
    orientation: str | None = None
    spacing: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Brought:
    """An image on a network's grid.

    Attributes:
        pixels: float32 ``(C, *spatial)``.
        back: takes float32 ``(K, *spatial)`` on that grid to the image's own.
        steps: what was done, such as ``("to RAS", "to 1×1×1 mm")``; nothing where the grids agree. `UNPLACED` where the
            grid has an orientation and the image does not say its own.
    """

    pixels: Tensor
    back: Callable[[Tensor], Tensor]
    steps: tuple[str, ...]


def bring(image: Tensor, geometry: Geometry | None, grid: Grid, where: str) -> Brought:
    """Bring an image to a grid: its axes in order, then to its size, or else its spacing.

    Axes are turned and swapped without a change of any value. A size is reached as in training: by areas where it
    shrinks, else linearly; a spacing linearly, what lies beyond the border taken as the border. The way back is linear,
    so that probabilities stay probabilities: in 0…1, with sum 1 over the classes.

    Args:
        image: float32 ``(C, *spatial)``.
        geometry: where its voxels lie; None where unknown (and for slices), which leaves the axes and spacing as they
            are.
        grid: what the network was trained on.
        where: how messages call the image.

    Raises:
        DataError: the size of the grid has not one number for each spatial axis.

    Example:
        >>> left = Geometry(np.diag([-1.0, 1.0, 1.0, 1.0]), (3, 2, 2))
        >>> image = torch.arange(12.0).reshape(1, 3, 2, 2)
        >>> brought = bring(image, left, Grid(orientation="RAS"), "scan")
        >>> brought.steps, brought.pixels[0, 0].tolist()
        (('to RAS',), [[8.0, 9.0], [10.0, 11.0]])
        >>> bool((brought.back(brought.pixels) == image).all())
        True
    """
    ways: list[Callable[[Tensor], Tensor]] = []
    steps: list[str] = []
    affine = None if geometry is None or image.dim() != 4 else torch.tensor(geometry.affine)
    if image.dim() == 4 and geometry is None and grid.orientation is not None:
        steps.append(UNPLACED)
    if affine is not None and geometry is not None and grid.orientation not in (None, geometry.orientation):
        image, affine, way = _turned(image, affine, str(grid.orientation), geometry.orientation)
        ways.append(way)
        steps.append(f"to {grid.orientation}")
    if grid.size is not None and tuple(grid.size) != tuple(image.shape[1:]):
        before = tuple(image.shape[1:])
        image = pixels.resized(image, torch.tensor(0), grid.size, where)[0]
        ways.append(lambda values: readers.resample(values, before, "bilinear" if len(before) == 2 else "trilinear"))
        steps.append(f"to {'×'.join(map(str, grid.size))} {'pixels' if len(before) == 2 else 'voxels'}")
    elif grid.size is None and grid.spacing is not None and affine is not None:
        now = torch.linalg.vector_norm(affine[:3, :3], dim=0).numpy()
        if not np.allclose(now, grid.spacing, rtol=_SAME_SPACING, atol=0):
            image, way = _spaced(image, affine, grid.spacing)
            ways.append(way)
            steps.append(f"to {'×'.join(f'{length:g}' for length in grid.spacing)} mm")

    def back(values: Tensor) -> Tensor:
        for way in reversed(ways):
            values = way(values)
        return values

    return Brought(image, back, tuple(steps))


def _turned(
    image: Tensor, affine: Tensor, orientation: str, own: str
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    from monai.transforms.spatial.array import Orientation

    # Named, as MONAI 1.6 warns of leaving them out; an affine of ours leads to right, anterior, superior.
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    turned: Any = Orientation(orientation, labels=labels)(_placed(image, affine))
    there = turned.affine

    def way(values: Tensor) -> Tensor:
        return _plain(Orientation(own, labels=labels)(_placed(values, there)))

    return _plain(turned), there, way


def _spaced(image: Tensor, affine: Tensor, spacing: Sequence[float]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    from monai.transforms.spatial.array import Spacing, SpatialResample

    spaced: Any = Spacing(list(spacing), padding_mode="border", dtype=np.float32)(_placed(image, affine))
    there, before = spaced.affine, image.shape[1:]

    def way(values: Tensor) -> Tensor:
        resample = SpatialResample(padding_mode="border", dtype=np.float32)
        return _plain(resample(_placed(values, there), dst_affine=affine, spatial_size=list(before)))

    return _plain(spaced), way


def _placed(values: Tensor, affine: Tensor) -> MetaTensor:
    from monai.data.meta_tensor import MetaTensor

    return MetaTensor(values, affine=affine)


def _plain(values: Any) -> Tensor:
    plain: Tensor = values.as_tensor()
    return plain.float().contiguous()
