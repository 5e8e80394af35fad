import time

import pytest

from mednorm.bench.timing import milliseconds, over_rounds, quartiles


def test_quartiles_are_those_of_all_values_between_least_and_most():
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3, "low": 2, "high": 4}
    assert quartiles([7.0]) == {"median": 7, "low": 7, "high": 7}


def test_ratios_are_taken_round_by_round_so_that_a_slow_round_slows_both():
    rounds = [{"milliseconds": 2.0 * slow, "floor": slow, "relative_to": 4.0 * slow} for slow in (1.0, 5.0, 9.0)]
    found = over_rounds(rounds)
    assert found["ratio"] == {"median": 2, "low": 2, "high": 2}
    assert found["relative"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert found["milliseconds"] == {"median": 10, "low": 6, "high": 14}
    assert "relative_to" not in found


def test_a_call_takes_at_least_what_it_sleeps():
    assert 5 <= milliseconds(lambda: time.sleep(0.005), 0.01) < 50


def test_calls_that_differ_in_turn_are_measured_by_their_mean():
    naps = iter([0.0, 0.02] * 2)
    assert milliseconds(lambda: time.sleep(next(naps)), 0, steps=4) == pytest.approx(10, rel=0.3)
    assert next(naps, None) is None
