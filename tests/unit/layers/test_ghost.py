"""GhostBatchNorm passes the suite of every layer; a ghost is normalized alone, the running statistics know them all."""

from __future__ import annotations

import pytest
import torch

from mednorm import BatchNorm, GhostBatchNorm
from mednorm.errors import ConfigError, ShapeError
from tests.harness import *  # noqa: F403
from tests.harness import CHANNELS, LayerSpec, assert_equal_to, bytes_of, images, train
from tests.oracle.groups import GhostBatchNormOracle

SPECS = [
    LayerSpec("ghosts of 4", GhostBatchNorm, GhostBatchNormOracle, {"ghost_size": 4}),
    LayerSpec(
        "ghosts of 2, leaky relu, cumulative, without parameters",
        GhostBatchNorm,
        GhostBatchNormOracle,
        {"ghost_size": 2, "activation": "leaky_relu", "momentum": None, "affine": False},
        torch_options={"momentum": None, "affine": False},
    ),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def made(**options):
    return GhostBatchNorm(CHANNELS, **options, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "ghosts"),
    [((9, CHANNELS, 3), [4, 4, 1]), ((8, CHANNELS, 3), [4, 4]), ((3, CHANNELS, 3), [3]), ((9, CHANNELS), [4, 5])],
    ids=["the last takes what is left", "whole ghosts", "larger than the batch", "a last single value joins"],
)
def test_every_ghost_is_normalized_by_itself(shape, ghosts):
    layer, alone = made(ghost_size=4), BatchNorm(CHANNELS, dtype=torch.float64)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    y, grad_x = train(layer, x, grad)
    for part, of_y, of_grad, of_x in zip(*(v.split(ghosts) for v in (x, y, grad, grad_x)), strict=True):
        wanted = train(alone, part, of_grad)
        assert_equal_to(of_y, wanted[0], 1e-12)
        assert_equal_to(of_x, wanted[1], 1e-12)


def test_the_running_statistics_are_those_of_the_whole_batch_not_of_the_ghosts():
    ghosts, whole = made(ghost_size=2), BatchNorm(CHANNELS, dtype=torch.float64)
    far = torch.arange(9, dtype=torch.float64).view(9, 1, 1)  # the spread is between ghosts, hardly within
    for step in range(3):
        x = images((9, CHANNELS, 5), torch.float64, seed=step) + 10 * far
        ghosts(x), whole(x)
    for name, wanted in whole.state_dict().items():
        assert_equal_to(ghosts.state_dict()[name], wanted, 1e-12)
    assert ghosts.num_batches_tracked == 3
    assert_equal_to(ghosts.batch_moments.variance, whole.batch_moments.variance, 1e-12)


def test_no_gradient_passes_from_one_ghost_to_another():
    x = images((6, CHANNELS, 5), torch.float64).requires_grad_()
    made(ghost_size=2)(x)[2:4].sin().sum().backward()
    assert x.grad[2:4].abs().min() > 0
    assert torch.equal(x.grad[:2], torch.zeros_like(x[:2]))
    assert torch.equal(x.grad[4:], torch.zeros_like(x[4:]))


def test_evaluation_does_not_see_the_ghosts():
    layer = made(ghost_size=2)
    layer(images((6, CHANNELS, 5), torch.float64))
    layer.eval()
    x = images((6, CHANNELS, 5), torch.float64, seed=1)
    assert_equal_to(torch.cat([layer(one) for one in x.split(1)]), layer(x), 1e-12)


@pytest.mark.parametrize("ghost_size", [0, -4, 2.0, "4", None, True], ids=repr)
def test_a_ghost_size_that_is_no_positive_whole_number_is_named(ghost_size):
    with pytest.raises(ConfigError) as caught:
        GhostBatchNorm(3, ghost_size=ghost_size)
    assert "GhostBatchNorm: expected ghost_size to be a whole number of at least 1" in str(caught.value)
    assert f"got {ghost_size!r}." in str(caught.value)


def test_ghosts_of_a_single_value_are_refused_with_the_count_and_move_nothing():
    layer = made(ghost_size=1)
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match=r"GhostBatchNorm\(num_features=4\): expected at least 2 values.*got 1 "):
        layer(images((5, CHANNELS), torch.float64))
    assert bytes_of(layer) == before


def test_a_ghost_that_the_mask_empties_is_refused_and_moves_nothing():
    layer = made(ghost_size=2)
    before, mask = bytes_of(layer), torch.ones(4, 5, dtype=torch.bool)
    mask[2:] = False
    with pytest.raises(ShapeError, match=r"values per channel that the mask keeps.*got 0 "):
        layer(images((4, CHANNELS, 5), torch.float64), mask)
    assert bytes_of(layer) == before


def test_the_printed_layer_names_its_ghost_size():
    assert "ghost_size=8" in repr(GhostBatchNorm(3, ghost_size=8))
