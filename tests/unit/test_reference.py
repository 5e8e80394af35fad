"""The range constant against an independent quadrature, published values, and Gaussian samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mednorm.reference import range_over_std, range_over_std_knots
from tests.oracle import keras_norm


@pytest.mark.parametrize("count", [2, 3, 7, 50, 999, 1000, 10**6, 10**9])
def test_the_constant_is_the_oracles_quadrature(count):
    assert range_over_std(count) == pytest.approx(keras_norm.range_over_std(count), rel=1e-10)


# d2 and c4 of the tables of quality control charts; c4 is of the unbiased variance.
@pytest.mark.parametrize(
    ("count", "d2", "c4"), [(2, 1.128, 0.7979), (5, 2.326, 0.9400), (10, 3.078, 0.9727), (25, 3.931, 0.9896)]
)
def test_the_constant_is_that_of_published_tables(count, d2, c4):
    assert range_over_std(count) == pytest.approx(d2 / (c4 * math.sqrt((count - 1) / count)), rel=5e-4)


@pytest.mark.parametrize("count", [2, 3, 8, 100])
def test_the_range_over_the_constant_is_the_deviation_on_average(count):
    samples = np.random.default_rng(0).normal(5, 3, (400_000 // count, count))
    estimated = np.ptp(samples, axis=1).mean() / range_over_std(count)
    assert estimated == pytest.approx(samples.std(axis=1).mean(), rel=0.01)


def test_two_values_have_their_range_for_twice_their_deviation():
    assert range_over_std(2) == pytest.approx(2, rel=1e-12)


def test_straight_lines_between_the_knots_are_within_the_tolerance_of_the_table():
    knots, values = range_over_std_knots()
    for count in [*range(2, 400), *(int(1.21**power) for power in range(33, 140))]:
        assert np.interp(math.log(count), knots, values) == pytest.approx(range_over_std(count), rel=3e-6)


@pytest.mark.parametrize("count", [1, 0, -3, math.inf, math.nan])
def test_a_count_without_a_range_is_refused_and_named(count):
    with pytest.raises(ValueError, match=f"got {count}"):
        range_over_std(count)
