"""Numbers as the page prints them."""

import pytest

from mednorm.report import wording
from mednorm.results import Estimate


def test_an_estimate_reads_as_mean_and_interval():
    given = Estimate(n=3, mean=0.91234, std=0.01, low=0.9046, high=0.91949)
    assert wording.estimate(given, "metric") == "0.912 [0.905, 0.919]"


def test_one_seed_has_no_interval_and_says_so():
    assert wording.estimate(Estimate(n=1, mean=0.5), "metric") == "0.500 (one seed)"


def test_nothing_is_a_dash():
    assert wording.estimate(Estimate(n=0, mean=None), "metric") == "–"


def test_a_difference_carries_its_sign_with_a_true_minus():
    given = Estimate(n=3, mean=0.012, low=-0.003, high=0.027)
    assert wording.estimate(given, "metric", signed=True) == "+0.012 [−0.003, +0.027]"


def test_zero_has_no_sign_even_after_rounding():
    assert wording.number(-0.0001, 3, signed=True) == "0.000"


@pytest.mark.parametrize(
    ("amount", "kind", "text"),
    [
        (0.0512345, "seconds", "0.0512"),
        (0.0, "seconds", "0.000"),
        (12.345, "seconds", "12.3"),
        (1234.56, "seconds", "1235"),
        (943.4, "megabytes", "943"),
        (4.3333, "epochs", "4.3"),
        (1234.5678, "metric", "1234.6"),
        (3.2e9, "metric", "3.20e+09"),
    ],
)
def test_each_kind_has_its_precision(amount, kind, text):
    assert wording.value(amount, kind) == text


def test_the_interval_has_as_many_decimals_as_the_mean():
    given = Estimate(n=3, mean=0.0512, low=0.009, high=0.11)
    assert wording.interval(given, "seconds") == "[0.0090, 0.1100]"


def test_a_long_list_says_how_many_more_there_are():
    assert wording.listed([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
