import numpy as np
import pytest

from mednorm.advise.fit import Measured, MemoryFit, cautious, fit

MB = 10**6


def points(sizes, peak):
    return [Measured(size, round(peak(size) * MB), 0.1) for size in sizes]


def test_a_line_is_found_and_predicts_sizes_beyond():
    found = fit(points((1, 2, 4, 8), lambda n: 300 + 25 * n))
    assert (found.fixed, found.per_image) == pytest.approx((300 * MB, 25 * MB))
    assert found.at(100) == pytest.approx(2800 * MB)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_small_sizes_where_the_optimizer_is_the_peak_do_not_bend_the_line():
    found = fit(points((1, 2, 4, 8, 16, 32), lambda n: max(500, 300 + 25 * n)))
    assert (found.fixed, found.per_image) == pytest.approx((300 * MB, 25 * MB))
    assert found.at(3) == 500 * MB


def test_noise_within_the_tolerance_leaves_every_size_in_the_fit():
    rng = np.random.default_rng(0)
    found = fit(points((1, 2, 4, 8, 16), lambda n: (300 + 25 * n) * (1 + 0.005 * rng.standard_normal())))
    assert found.at(64) == pytest.approx((300 + 25 * 64) * MB, rel=0.05)


def test_the_check_is_the_error_at_the_largest_size_of_a_fit_without_it():
    measured = [*points((1, 2, 4), lambda n: 300 + 25 * n), Measured(8, 550 * MB, 0.1)]
    assert fit(measured).error == pytest.approx(500 / 550 - 1)


def test_two_sizes_leave_nothing_to_check_with():
    assert fit(points((1, 2), lambda n: 300 + 25 * n)).error is None


def test_of_one_size_all_of_the_rise_is_taken_to_grow():
    found = cautious(Measured(2, 300 * MB, 0.1), 100 * MB)
    assert (found.at(2), found.at(4), found.at(8)) == (300 * MB, 500 * MB, 900 * MB)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_the_largest_batch_fits_with_the_margin_and_the_next_does_not(margin):
    found = MemoryFit(300.0 * MB, 25.0 * MB, 325.0 * MB)
    largest = found.largest(2000 * MB, margin)
    assert found.at(largest) * (1 + margin) <= 2000 * MB < found.at(largest + 1) * (1 + margin)


def test_nothing_fits_below_the_floor():
    assert MemoryFit(300.0 * MB, 25.0 * MB, 500.0 * MB).largest(499 * MB) == 0


def test_a_peak_that_does_not_rise_sets_no_largest_batch():
    assert MemoryFit(300.0 * MB, 0.0, 300.0 * MB).largest(400 * MB) == 2**20
