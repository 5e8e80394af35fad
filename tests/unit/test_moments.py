"""Moments of given tensors against exact summation, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mednorm import Moments
from mednorm.errors import ShapeError
from tests.harness import assert_equal_to, images, to_numpy
from tests.oracle import moments as oracle
from tests.processes import run_processes

SHAPES = [(7, 3), (4, 3, 5), (3, 3, 4, 5), (2, 3, 2, 3, 4)]
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=str)


def assert_moments(ours: Moments, expected: list[oracle.ChannelMoments], tolerance: float = 1e-12) -> None:
    """Counts and extremes exactly, mean and M2 to rounding."""
    columns = [np.array(column) for column in zip(*expected, strict=True)]
    assert ours.count.tolist() == columns[0].tolist()
    assert ours.minimum.tolist() == columns[3].tolist()
    assert ours.maximum.tolist() == columns[4].tolist()
    assert_equal_to(ours.mean, columns[1], tolerance)
    assert_equal_to(ours.m2, columns[2], tolerance)


def assert_same(ours: Moments, expected: Moments) -> None:
    """Every byte."""
    for mine, wanted in zip(ours.fields(), expected.fields(), strict=True):
        assert torch.equal(mine, wanted)


# --- of ---------------------------------------------------------------------------------------------------------------


@ALL_SHAPES
def test_moments_of_a_tensor_are_the_exact_sums(shape):
    x = images(shape, torch.float64)
    assert_moments(Moments.of(x), oracle.of_channels(x.numpy()))


@ALL_SHAPES
def test_masked_moments_are_those_of_the_values_kept(shape):
    x = images(shape, torch.float64)
    mask = torch.rand(shape) < 0.6
    assert_moments(Moments.of(x, mask=mask), oracle.of_channels(x.numpy(), mask=mask.numpy()))


def test_a_mask_without_channel_axis_holds_for_every_channel():
    x, mask = images(SHAPES[2], torch.float64), torch.rand(3, 4, 5) < 0.6
    assert_same(Moments.of(x, mask=mask), Moments.of(x, mask=mask[:, None].expand(x.shape)))


def test_a_mask_that_broadcasts_over_the_batch_holds_for_every_image():
    x, mask = images(SHAPES[2], torch.float64), torch.rand(1, 1, 4, 5) < 0.6
    assert_same(Moments.of(x, mask=mask), Moments.of(x, mask=mask.expand(x.shape)))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_the_mask_leaves_out_may_be_anything(garbage):
    x, mask = images(SHAPES[2]), torch.rand(SHAPES[2]) < 0.6
    assert_same(Moments.of(x.masked_fill(~mask, garbage), mask=mask), Moments.of(x.masked_fill(~mask, 1), mask=mask))


def test_a_channel_of_which_the_mask_keeps_nothing_is_empty():
    mask = torch.ones(SHAPES[2], dtype=torch.bool)
    mask[:, 1] = False
    ours = Moments.of(images(SHAPES[2]), mask=mask)
    assert [field[1].item() for field in ours.fields()] == [0, 0.0, 0.0, math.inf, -math.inf]
    assert ours.count.tolist() == [60, 0, 60]


@pytest.mark.parametrize("axis", [2, 3, -1, -2])
def test_channels_may_lie_on_another_axis(axis):
    x = images((4, 3, 5, 6), torch.float64).movedim(1, axis)
    assert_moments(Moments.of(x, channel_axis=axis), oracle.of_channels(x.numpy(), channel_axis=axis))


def test_a_mask_goes_with_channels_on_the_last_axis():
    x = images((4, 3, 5, 6), torch.float64).movedim(1, -1)
    short = torch.rand(4, 5, 6) < 0.5
    full = short[..., None].expand(x.shape)
    expected = oracle.of_channels(x.numpy(), channel_axis=3, mask=full.numpy())
    assert_moments(Moments.of(x, channel_axis=-1, mask=short), expected)
    assert_moments(Moments.of(x, channel_axis=-1, mask=full), expected)


@ALL_SHAPES
def test_per_sample_moments_are_those_of_each_image(shape):
    x = images(shape, torch.float64)
    ours = Moments.of(x, per_sample=True)
    assert ours.mean.shape == shape[:2]
    for number, image in enumerate(x):
        row = Moments(*(field[number] for field in ours.fields()))
        assert_moments(row, oracle.of_channels(image[None].numpy()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_whole_numbers_are_measured_in_float64(dtype):
    x = torch.randint(0, 200, (4, 3, 7), dtype=dtype)
    ours = Moments.of(x)
    assert ours.mean.dtype == torch.float64
    assert_moments(ours, oracle.of_channels(x.numpy()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_measured_in_float32(dtype):
    # 3000 ones and twos do not fit in either half type as a sum; float32 holds it exactly.
    x = torch.ones(3000, 1, dtype=dtype)
    x[::2] = 2
    ours = Moments.of(x)
    assert ours.mean.dtype == torch.float32
    assert (ours.mean.item(), ours.m2.item()) == (1.5, 750.0)


def test_float64_accumulation_is_more_exact_than_float32s_on_an_ill_conditioned_case():
    x = torch.randn(500, 1) * 1e-3 + 1e4  # the spread is one part in ten million
    exact = oracle.of_values_exactly(x.numpy())
    errors = {
        dtype: (abs(ours.mean.item() - exact.mean), abs(ours.m2.item() / exact.m2 - 1))
        for dtype in (torch.float32, torch.float64)
        for ours in [Moments.of(x, dtype=dtype)]
    }
    assert errors[torch.float64][0] < 1e-11 < errors[torch.float32][0]
    assert errors[torch.float64][1] < 1e-10 < errors[torch.float32][1]


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_the_float32_mean_is_the_exact_one_rounded(offset):
    # Regression: one pass of float32 sums was up to five neighbours off, which is five times torch's error.
    x = torch.randn(64, 3, 7, 7) + offset
    exact = [oracle.of_values(plane).mean for plane in x.transpose(0, 1).numpy()]
    neighbour = np.spacing(np.float32(offset))
    assert np.abs(to_numpy(Moments.of(x).mean) - exact).max() <= 0.6 * neighbour


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_the_float32_variance_keeps_its_digits_far_from_zero(offset, masked):
    # E[x²] − E[x]² has none left at 1e4.
    x = torch.randn(64, 3, 7, 7) + offset
    mask = torch.rand(x.shape) < 0.5 if masked else None
    expected = oracle.of_channels(x.numpy(), mask=None if mask is None else mask.numpy())
    assert_equal_to(Moments.of(x, mask=mask).m2, np.array([channel.m2 for channel in expected]), 2e-6)


def test_a_constant_channel_has_no_spread_at_all():
    ours = Moments.of(torch.full((7, 1, 11), 1000.1))
    assert ours.variance.item() == 0
    assert ours.range.item() == 0
    assert ours.mean.item() == torch.tensor(1000.1).item()


def test_a_spread_that_float32_cannot_hold_is_infinite_not_nan():
    ours = Moments.of(torch.randn(50, 1) * 1e30)
    assert ours.m2.item() == math.inf
    assert ours.mean.isfinite().all()
    assert not ours.finite


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_one_value_that_is_no_number_is_seen(bad):
    x = images(SHAPES[2])
    assert Moments.of(x).finite
    x[1, 2, 3, 4] = bad
    assert not Moments.of(x).finite


@pytest.mark.parametrize(
    ("shape", "per_sample", "expected"),
    [((0, 3), False, (3,)), ((0, 3, 4), False, (3,)), ((2, 3, 0, 4), False, (3,)), ((2, 3, 0), True, (2, 3))],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_an_empty_tensor_gives_the_neutral_element(shape, per_sample, expected, masked):
    mask = torch.ones(shape, dtype=torch.bool) if masked else None
    ours = Moments.of(torch.empty(shape), mask=mask, per_sample=per_sample)
    wanted = [0, 0.0, 0.0, math.inf, -math.inf]
    for field, value in zip(ours.fields(), wanted, strict=True):
        assert torch.equal(field, torch.full(expected, value, dtype=field.dtype))
    for nothing in (ours.variance, ours.unbiased_variance, ours.std, ours.range):
        assert nothing.isnan().all()


def test_the_input_is_left_as_it_was_and_no_graph_is_kept():
    x = images(SHAPES[2], torch.float64).requires_grad_()
    before = x.detach().clone()
    ours = Moments.of(x, mask=torch.rand(SHAPES[2]) < 0.5)
    assert torch.equal(x.detach(), before)
    assert not any(field.requires_grad for field in ours.fields())


# --- what is derived --------------------------------------------------------------------------------------------------


def test_variances_deviation_and_range_follow_from_the_five_fields():
    x = images(SHAPES[3], torch.float64)
    ours, flat = Moments.of(x), x.transpose(0, 1).reshape(3, -1).numpy()
    assert_equal_to(ours.variance, flat.var(1), 1e-13)
    assert_equal_to(ours.unbiased_variance, flat.var(1, ddof=1), 1e-13)
    assert_equal_to(ours.std, flat.std(1), 1e-13)
    assert_equal_to(ours.range, np.ptp(flat, 1), 0)


def test_one_value_has_a_variance_of_zero_but_no_unbiased_one():
    ours = Moments.of(torch.full((1, 2), 7.0))
    assert ours.variance.tolist() == [0, 0]
    assert ours.unbiased_variance.isnan().all()


# --- merging ----------------------------------------------------------------------------------------------------------


def test_scans_that_differ_by_scanner_pool_to_the_true_variance_at_every_batch_size():
    # Regression by design: half the scanners lie at −1 and half at +1, each with variance 1 inside a scan, so the true
    # variance is 1 + 1. Averaging the batches' variances loses what lies between batches; pooling loses nothing.
    voxels, scans = 64, 1024
    inside = torch.randn(scans, voxels, dtype=torch.float64)
    inside = (inside - inside.mean(1, keepdim=True)) / inside.std(1, keepdim=True, correction=0)
    scanner = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(scans // 2)[torch.randperm(scans)]
    volumes = (inside + scanner[:, None])[:, None]
    averaged = {}
    for size in (1, 2, 32):
        batches = [Moments.of(batch) for batch in volumes.split(size)]
        assert Moments.pool(batches).variance.item() == pytest.approx(2.0, abs=1e-12)
        averaged[size] = torch.stack([batch.variance for batch in batches]).mean().item()
    assert averaged[1] == pytest.approx(1.00, abs=1e-12)
    assert averaged[2] == pytest.approx(1.51, abs=0.03)
    assert averaged[32] == pytest.approx(1.97, abs=0.01)


@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 2e-6), (1e4, 5e-5)], ids=["near", "far"])
def test_many_float32_parts_pool_to_what_their_rounded_means_leave(offset, tolerance):
    # At 1e4 a float32 mean is off by up to 5e-4 of the spread.
    x = torch.randn(64, 2, 50) + offset
    pooled = Moments.pool(Moments.of(part) for part in x.split([1, 2, 5, 8, 16, 32]))
    expected = oracle.of_channels(x.numpy())
    assert_equal_to(pooled.mean, np.array([channel.mean for channel in expected]), 2e-7)
    assert_equal_to(pooled.m2, np.array([channel.m2 for channel in expected]), tolerance)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("size", [1.0, 1e25])
def test_an_empty_part_changes_no_bit(order, size):
    # Regression: a mean of 1e25 times the weight 0 of the empty part went over infinity to NaN.
    some, nothing = Moments.of(torch.full((5, 3), size)), Moments.of(torch.empty(0, 3))
    assert_same(nothing.merge(some) if order == "before" else some.merge(nothing), some)


def test_pooling_the_rows_of_no_image_gives_the_neutral_element():
    # Regression: an IndexError, on the empty last batch of a per-sample reading.
    assert_same(Moments.of(torch.empty(0, 3, 4), per_sample=True).pooled(), Moments.of(torch.empty(0, 3, 4)))


def test_merging_leaves_both_sides_as_they_were():
    one, other = Moments.of(images(SHAPES[1])), Moments.of(images(SHAPES[1], seed=1))
    before = copy.deepcopy((one, other))
    one.merge(other)
    assert_same(one, before[0])
    assert_same(other, before[1])


def test_pooling_counts_beyond_float32s_whole_numbers_is_exact():
    million = Moments(torch.tensor([20_000_001]), *torch.tensor([[1.0], [2.0], [0.0], [3.0]]))
    assert Moments.pool([million] * 3).count.item() == 60_000_003


# --- moving -----------------------------------------------------------------------------------------------------------


def test_a_type_is_given_to_the_four_float_fields_only():
    ours = Moments.of(images(SHAPES[1])).to(torch.float64)
    assert [field.dtype for field in ours.fields()] == [torch.int64, *[torch.float64] * 4]
    assert_same(ours.to(torch.float32), Moments.of(images(SHAPES[1])))


def test_a_device_is_given_to_every_field():
    assert all(field.is_meta for field in Moments.of(images(SHAPES[1])).to("meta").fields())


def test_moments_survive_pickling():
    ours = Moments.of(images(SHAPES[1]))
    assert_same(pickle.loads(pickle.dumps(ours)), ours)


def test_moments_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Moments.of(images(SHAPES[1])).count = torch.zeros(3)


# --- several processes ------------------------------------------------------------------------------------------------


SHARES = [[5, 2], [4, 0, 7]]  # how many images each process has


def pool_over_processes(rank: int, results: str) -> None:
    """What one process does: measure its share of the images, pool over its group, write what it got."""
    pair = dist.new_group([0, 1])
    for shares, group in zip(SHARES, (pair, None), strict=True):
        if rank < len(shares):
            x = images((sum(shares), 3, 4), torch.float64)
            pooled = Moments.of(x.split(shares)[rank]).all_reduce(group)
            torch.save(pooled.fields(), f"{results}/{rank}-of-{len(shares)}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Run three processes once; return where each wrote its results."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(pool_over_processes, 3, folder, str(folder))
    return folder


@pytest.mark.parametrize("shares", SHARES, ids=["two of three processes", "three, one without an image"])
def test_every_process_gets_the_moments_of_all_images(processes, shares):
    whole = Moments.of(images((sum(shares), 3, 4), torch.float64))
    files = [processes / f"{rank}-of-{len(shares)}.pt" for rank in range(len(shares))]
    got = [Moments(*torch.load(file, weights_only=True)) for file in files]
    for ours in got:
        assert_same(ours, got[0])
        assert torch.equal(ours.count, whole.count)
        for mine, wanted in zip(ours.fields(), whole.fields(), strict=True):
            assert_equal_to(mine, wanted, 1e-12)


# --- errors say what came ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_fewer_than_two_axes_are_named_with_the_shape(shape):
    with pytest.raises(ShapeError) as caught:
        Moments.of(torch.zeros(shape))
    assert str(caught.value).startswith(f"Moments.of: expected at least 2 axes (batch, channel), got shape {shape}.")


@pytest.mark.parametrize("axis", [0, -3, 3, -4])
def test_a_channel_axis_that_is_the_batch_or_none_is_named(axis):
    with pytest.raises(ShapeError) as caught:
        Moments.of(torch.zeros(2, 3, 4), channel_axis=axis)
    assert f"got {axis} for shape (2, 3, 4)." in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool], ids=str)
def test_values_that_are_no_real_numbers_are_named_by_their_type(dtype):
    with pytest.raises(ShapeError, match=rf"real numbers, got {dtype}\."):
        Moments.of(torch.zeros(2, 3, dtype=dtype))


def test_a_mask_that_is_not_boolean_is_named_with_its_type():
    with pytest.raises(ShapeError, match=r"boolean tensor, got torch\.uint8\."):
        Moments.of(torch.zeros(2, 3), mask=torch.ones(2, 3, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(2,), (4, 5), (2, 3, 4, 6), (2, 4, 6)], ids=str)
def test_a_mask_that_does_not_fit_is_named_with_both_shapes(shape):
    with pytest.raises(ShapeError) as caught:
        Moments.of(torch.zeros(2, 3, 4, 5), mask=torch.ones(shape, dtype=torch.bool))
    assert "fits the input (2, 3, 4, 5)" in str(caught.value)
    assert f"got {shape}." in str(caught.value)


def test_pooling_nothing_is_refused():
    with pytest.raises(ShapeError, match=r"at least one Moments, got none\."):
        Moments.pool([])


def test_merging_different_numbers_of_channels_is_refused_with_both():
    with pytest.raises(ShapeError, match=r"one shape, got \[\(3,\), \(5,\)\]"):
        Moments.of(torch.zeros(2, 5)).merge(Moments.of(torch.zeros(2, 3)))
