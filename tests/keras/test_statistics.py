"""Mean, variance, range and count of a batch, against the oracle's exact sums."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mednorm.keras import batch_statistics
from mednorm.keras.statistics import interpolate
from mednorm.reference import range_over_std, range_over_std_knots
from tests.keras.backends import to_numpy
from tests.keras.harness import SHAPES, assert_equal_to, images, moved, some_mask
from tests.oracle import batch_norm


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_the_oracles(shape, masked, axis):
    x, mask = images(shape), some_mask(shape) if masked else None
    found = batch_statistics(moved(x, axis).astype("float32"), axis, mask)
    expected = batch_norm.forward(np.float32(x), mask=mask)
    axes = (0, *range(2, len(shape)))
    assert_equal_to(to_numpy(found.mean), expected.mean, 1e-6)
    assert_equal_to(to_numpy(found.variance), expected.variance, 1e-6)
    kept = expected.kept
    extent = np.where(kept, expected.x, -np.inf).max(axes) - np.where(kept, expected.x, np.inf).min(axes)
    assert_equal_to(to_numpy(found.range), extent, 1e-6)
    assert int(found.count) == expected.count[0]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "bfloat16"])
def test_statistics_of_narrow_types_are_taken_in_float32(dtype):
    x = np.arange(4 * 50 * 50 * 2).reshape(4, 50, 50, 2) % 251
    given = keras.ops.cast(x, dtype)
    found, exact = batch_statistics(given), to_numpy(given)
    assert keras.backend.standardize_dtype(found.variance.dtype) == "float32"
    assert_equal_to(to_numpy(found.variance), exact.var((0, 1, 2)), 1e-5)
    assert int(found.count) == 10_000


def test_far_from_zero_the_variance_keeps_its_digits():  # E[x²] − E[x]² in float32 has none left here
    x = np.random.default_rng(0).normal(1e4, 1, (32, 10, 10, 3)).astype("float32")
    assert_equal_to(to_numpy(batch_statistics(x).variance), x.astype(np.float64).var((0, 1, 2)), 2e-4)


def test_a_mask_that_keeps_nothing_gives_zeros():
    found = batch_statistics(np.ones((2, 5, 3)), mask=np.zeros((2, 5), bool))
    assert [to_numpy(value).tolist() for value in found] == [[0, 0, 0], [0, 0, 0], [0, 0, 0], 0]


def test_a_mask_with_the_channels_counts_each():
    mask = np.array([[True, False], [True, True]])  # of samples and channels, for input of channels first
    found = batch_statistics(np.ones((2, 2, 5)), axis=1, mask=np.array(mask))
    assert to_numpy(found.count).tolist() == [10, 5]


def test_the_table_is_within_its_tolerance_between_its_knots_and_exact_at_small_counts():
    counts = np.array([2, 3, 4, 10, 50, 63, 64, 70, 100, 777, 10**4, 123_456, 10**7, 3 * 10**9], np.float32)
    found = to_numpy(interpolate(keras.ops.log(keras.ops.convert_to_tensor(counts)), *range_over_std_knots()))
    assert_equal_to(found / [range_over_std(float(count)) for count in counts], np.ones(len(counts)), 6e-6)
