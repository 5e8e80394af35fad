import numpy as np
import pytest
import torch

from mednorm.data import Geometry
from mednorm.errors import DataError
from mednorm.training.grids import Grid, bring


def ramp(shape, affine):
    """Image whose value at a voxel is x + 10·y + 100·z of its position, in mm."""
    places = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape).astype(float))
    places += affine[:3, 3].reshape(3, 1, 1, 1)
    return torch.from_numpy(np.tensordot([1.0, 10.0, 100.0], places, 1)[None]).float()


def oblique(spacing, degrees=20.0):
    turn = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = [-7, 3, 11]
    return affine


def test_a_grid_that_agrees_leaves_every_value():
    image = torch.randn(2, 5, 6, 7)
    geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (5, 6, 7))
    brought = bring(image, geometry, Grid((5, 6, 7), "RAS", [1.0, 1.0, 2.0]), "scan")
    assert brought.steps == ()
    assert brought.pixels is image
    assert brought.back(image) is image


def test_a_spacing_within_a_hundredth_is_the_same():
    image, geometry = torch.randn(1, 5, 6, 7), Geometry(np.eye(4), (5, 6, 7))
    assert bring(image, geometry, Grid(spacing=[1.0, 1.0, 1.009]), "scan").steps == ()
    assert bring(image, geometry, Grid(spacing=[1.0, 1.0, 1.05]), "scan").steps == ("to 1×1×1.05 mm",)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAR", "PIL"])
def test_turning_moves_voxels_and_changes_none(orientation):
    image = torch.randn(2, 4, 5, 6)
    geometry = Geometry(np.array([[0, 0, -1, 0], [1.0, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]), (4, 5, 6))
    assert geometry.orientation == "AIL"
    brought = bring(image, geometry, Grid(orientation=orientation), "scan")
    # By hand: where each letter of the goal stands among A, I, L or their opposites, and whether it is flipped.
    opposite = dict(zip("LRPAIS", "RLAPSI", strict=True))
    axes = [next(i for i, own in enumerate("AIL") if letter in (own, opposite[own])) for letter in orientation]
    expected = image.permute(0, *[axis + 1 for axis in axes])
    flips = [i + 1 for i, (letter, axis) in enumerate(zip(orientation, axes, strict=True)) if letter != "AIL"[axis]]
    torch.testing.assert_close(brought.pixels, expected.flip(flips), rtol=0, atol=0)
    torch.testing.assert_close(brought.back(brought.pixels), image, rtol=0, atol=0)


@pytest.mark.parametrize("spacing", [[2.0, 2.0, 2.0], [0.5, 0.7, 1.0], [1.0, 1.0, 3.0]])
def test_values_keep_their_place_in_the_patient(spacing):
    """A linear image is given back exactly wherever no value lies beyond the border of the coarser grid."""
    affine = oblique([0.8, 1.0, 1.5])
    image = ramp((14, 15, 16), affine)
    brought = bring(image, Geometry(affine, (14, 15, 16)), Grid(orientation="RAS", spacing=spacing), "scan")
    assert brought.steps == ("to {:g}×{:g}×{:g} mm".format(*spacing),)
    sizes = [round(side * old / new) for side, old, new in zip((14, 15, 16), (0.8, 1.0, 1.5), spacing, strict=True)]
    assert np.abs(np.subtract(brought.pixels.shape[1:], sizes)).max() <= 1
    back = brought.back(brought.pixels)
    assert back.shape == image.shape
    inner = (0, slice(4, -4), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(back[inner], image[inner], rtol=0, atol=0.05)


def test_a_turned_and_coarser_volume_comes_back_to_its_own_place():
    affine = oblique([0.8, 1.0, 1.5]) @ np.diag([-1.0, 1, 1, 1]) @ np.eye(4)[[2, 0, 1, 3]]
    image = ramp((14, 15, 16), affine)
    brought = bring(image, Geometry(affine, (14, 15, 16)), Grid(orientation="RAS", spacing=[1.0, 1.0, 1.0]), "scan")
    assert brought.steps == ("to RAS", "to 1×1×1 mm")
    back = brought.back(brought.pixels)
    inner = (0, slice(4, -4), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(back[inner], image[inner], rtol=0, atol=0.05)


@pytest.mark.parametrize("grid", [Grid(size=(5, 9, 6)), Grid(orientation="RAS"), Grid(spacing=[2.0, 0.4, 1.0])])
def test_probabilities_come_back_with_sum_one(grid):
    geometry = Geometry(np.diag([-1.0, 1.0, 1.0, 1.0]), (8, 9, 10))
    brought = bring(torch.zeros(1, 8, 9, 10), geometry, grid, "scan")
    there = torch.randn(3, *brought.pixels.shape[1:]).mul(4).softmax(0)
    back = brought.back(there)
    assert back.shape == (3, 8, 9, 10)
    assert back.min() >= 0
    torch.testing.assert_close(back.sum(0), torch.ones(8, 9, 10), rtol=0, atol=1e-5)


def test_a_size_goes_before_a_spacing_and_after_the_orientation():
    image, geometry = torch.randn(1, 8, 6, 4), Geometry(np.diag([-1.0, 1.0, 1.0, 1.0]), (8, 6, 4))
    brought = bring(image, geometry, Grid((4, 3, 2), "RAS", [9.0, 9.0, 9.0]), "scan")
    assert brought.steps == ("to RAS", "to 4×3×2 voxels")
    blocks = image.flip(1).reshape(1, 4, 2, 3, 2, 2, 2).mean((2, 4, 6))
    torch.testing.assert_close(brought.pixels, blocks)


def test_a_slice_is_brought_to_a_size_and_back():
    image = torch.randn(3, 12, 10)
    brought = bring(image, Geometry(np.eye(4), (12, 10)), Grid((6, 5), "RAS", [1.0, 1.0]), "slice")
    torch.testing.assert_close(brought.pixels, image.reshape(3, 6, 2, 5, 2).mean((2, 4)))
    assert brought.steps == ("to 6×5 pixels",)
    even = torch.full((2, 6, 5), 0.5)
    torch.testing.assert_close(brought.back(even), torch.full((2, 12, 10), 0.5))


def test_a_slice_with_the_place_of_a_volume_of_one_is_not_turned():
    image = torch.randn(1, 12, 10)
    assert (
        bring(image, Geometry(np.diag([-1.0, 1, 1, 1]), (12, 10, 1)), Grid(None, "RAS", [2.0, 2, 2]), "a").steps == ()
    )


def test_an_image_without_a_place_keeps_axes_and_spacing():
    image = torch.randn(1, 8, 6, 4)
    brought = bring(image, None, Grid(None, "RAS", [2.0, 2.0, 2.0]), "scan")
    assert brought.pixels is image
    assert brought.steps == ("orientation unknown, taken as it is",)
    assert bring(image[0], None, Grid(None, "RAS"), "slice").steps == bring(image, None, Grid(), "scan").steps == ()


def test_a_size_of_other_axes_is_refused():
    with pytest.raises(DataError, match=r"scan: expected size to hold 3 positive numbers.*got \(4, 4\)"):
        bring(torch.zeros(1, 5, 5, 5), None, Grid((4, 4)), "scan")
