"""Quantiles of Student's t, without SciPy."""

import pytest
from scipy import stats

from mednorm.examine.rules.student import student


@pytest.mark.parametrize("freedom", [1, 1.25, 1.9, 2, 3, 7.5, 33, 400, 999, 1001, 1e6])
def test_the_quantile_is_that_of_scipy(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_fewer_degrees_of_freedom_than_one_count_as_one():
    assert student(0.2) == student(1.0)
