"""Quantiles of Student's t, without SciPy."""

import math

import pytest
from scipy import stats

from mednorm.examine.rules.student import student


@pytest.mark.parametrize("level", [0.05, 0.01, 1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("freedom", [1, 1.25, 1.9, 2, 3, 7.5, 33, 400, 999, 1001, 1e6, math.inf])
def test_the_quantile_is_that_of_scipy(freedom, level):
    assert student(freedom, level) == pytest.approx(stats.t.ppf(1 - level / 2, freedom), rel=1e-4)


def test_fewer_degrees_of_freedom_than_one_count_as_one():
    assert student(0.2) == student(1.0)
