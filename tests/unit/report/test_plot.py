"""Axes and names."""

import math

import pytest

from mednorm.report.plot import layer_axis, log_axis, span_of


def test_a_wide_log_axis_labels_whole_powers():
    axis = log_axis([2e-5, 0.5])
    assert axis["tickvals"] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert axis["ticktext"] == ["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"]


def test_a_narrow_log_axis_labels_one_two_and_five():
    axis = log_axis([1.5, 30.0])
    assert [tick for tick in axis["tickvals"] if 1.5 <= tick <= 30] == [2, 5, 10, 20]


@pytest.mark.parametrize("values", [[7.0], [7.0, 7.2], [3e-9, 3.1e-9]])
def test_a_log_axis_with_hardly_any_width_still_holds_its_values(values):
    low, high = log_axis(values)["range"]
    assert low < math.log10(min(values)) <= math.log10(max(values)) < high


def test_zero_and_nothing_have_no_place_on_a_log_axis():
    assert log_axis([0.0, None]) == {"type": "log"}


def test_a_span_has_width_even_for_one_value():
    assert span_of([0.0]) == [-0.1, 0.1]
    assert span_of([None]) is None


def test_many_layers_are_all_on_the_axis_but_not_all_labelled():
    names = [f"encoder.layer{i}.weight" for i in range(60)]
    axis = layer_axis(names)
    assert axis["categoryarray"] == names
    assert axis["tickvals"] == names[::3]
    assert axis["ticktext"][:2] == ["layer0", "layer3"]


def test_one_layer_keeps_its_name():
    assert layer_axis(["head.weight"])["ticktext"] == ["head.weight"]
