from dataclasses import replace

import numpy as np
import pytest

from mednorm.advise.fit import Measured, MemoryFit, cautious, fit

MB = 10**6


BEFORE = 300 * MB


def points(sizes, tensors, overhead=1.0, before=BEFORE):
    """Steps whose tensors take so many MB, and whose peak is what was held before and the overhead times these."""
    return [Measured(n, round(before + overhead * tensors(n) * MB), round(tensors(n) * MB), 0.1) for n in sizes]


@pytest.mark.parametrize("overhead", [1.0, 1.9])
def test_a_line_is_found_and_predicts_sizes_beyond(overhead):
    found = fit(points((1, 2, 4, 8), lambda n: 25 * n, overhead), BEFORE)
    assert (found.fixed, found.per_image) == pytest.approx((300 * MB, overhead * 25 * MB))
    assert found.overhead == pytest.approx(overhead)
    assert found.at(100) == pytest.approx((300 + overhead * 2500) * MB)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_small_sizes_where_the_optimizer_is_the_peak_do_not_bend_the_line():
    found = fit(points((1, 2, 4, 8, 16, 32), lambda n: max(200, 25 * n)), BEFORE)
    assert (found.fixed, found.per_image) == pytest.approx((300 * MB, 25 * MB))
    assert found.at(3) == 500 * MB


def test_peaks_that_scatter_as_those_of_a_heap_do_move_a_prediction_far_beyond_by_less_than_a_line_through_them():
    rng = np.random.default_rng(0)
    off, of_line = [], []
    for _ in range(200):
        exact = points((1, 2, 4, 8), lambda n: 64 * n, 1.7)
        peaks = [each.peak + rng.normal(0, 32 * MB) + 0.1 * 1.7 * each.tensors * rng.normal() for each in exact]
        seen = [replace(each, peak=round(peak)) for each, peak in zip(exact, peaks, strict=True)]
        true = (300 + 1.7 * 64 * 24) * MB
        off.append(fit(seen, BEFORE + rng.normal(0, 64 * MB)).at(24) / true - 1)
        of_line.append(np.polyval(np.polyfit([1, 2, 4, 8], peaks, 1), 24) / true - 1)
    assert np.std(off) < 0.9 * np.std(of_line)
    assert np.std(off) < 0.1
    assert abs(np.mean(off)) < 0.02


def test_a_byte_of_tensors_takes_a_byte_at_least():
    seen = [replace(each, peak=each.peak - each.tensors // 2) for each in points((1, 2, 4, 8), lambda n: 64 * n)]
    assert fit(seen, BEFORE).overhead == 1.0


def test_the_check_is_the_error_at_the_largest_size_of_a_fit_without_it():
    *first, last = points((1, 2, 4, 8), lambda n: 25 * n)
    assert fit([*first, replace(last, peak=550 * MB)], BEFORE).error == pytest.approx(500 / 550 - 1)


def test_two_sizes_leave_nothing_to_check_with():
    assert fit(points((1, 2), lambda n: 25 * n), BEFORE).error is None


def test_of_one_size_all_of_the_rise_is_taken_to_grow():
    found = cautious(Measured(2, 300 * MB, 150 * MB, 0.1), 100 * MB)
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
