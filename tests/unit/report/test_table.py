"""The table holds the summary's numbers, and sorts by them."""

import pytest

from mednorm.report.table import arms_table, metrics_table
from tests.report_fixture import make_results


def _column(table, title):
    place = [column.title for column in table.columns].index(title)
    return [row[place] for row in table.rows]


def test_a_row_an_arm_in_the_order_of_the_file():
    results = make_results()
    table = arms_table(results)
    shown = [tuple(cell.text for cell in row[:3]) for row in table.rows]
    assert shown == [(arm.norm, arm.regularizer, str(arm.batch_size)) for arm in results.summary]


def test_headline_metrics_have_a_column_and_the_main_one_comes_first():
    titles = [column.title for column in arms_table(make_results(more=True)).columns]
    assert titles == [
        "norm", "regularizer", "batch size", "network", "train share", "seeds", "test dice", "test hd95",
        "difference to none", "generalization gap", "epochs to target", "seconds to target",
        "gradient spread", "gradient ratio", "seconds per step", "peak memory",
    ]  # fmt: skip


def test_what_does_not_vary_and_what_nobody_measured_has_no_column():
    titles = [column.title for column in arms_table(make_results()).columns]
    assert titles[:5] == ["norm", "regularizer", "batch size", "seeds", "test dice"]
    assert "gradient spread" not in titles


def test_network_and_share_are_those_of_the_arm():
    results = make_results(more=True)
    table = arms_table(results)
    assert [cell.text for cell in _column(table, "network")] == [arm.network for arm in results.summary]
    assert [float(cell.sort) for cell in _column(table, "train share")] == [arm.train_share for arm in results.summary]
    assert {cell.text for cell in _column(table, "train share")} == {"100 %", "50 %", "12.5 %"}


def test_a_metric_and_its_difference_have_both_intervals():
    results = make_results(more=True)
    table = arms_table(results)
    for title, seeds, units in (
        ("test dice", results.summary[1].metrics["test_dice"], results.summary[1].over_units["test_dice"]),
        (
            "difference to none",
            results.summary[1].versus_none["test_dice"],
            results.summary[1].versus_none_over_units["test_dice"],
        ),
    ):
        over_seeds, over_units = _column(table, title)[1].notes
        for note, of, given in ((over_seeds, "seeds", seeds), (over_units, "patients", units)):
            low, high = (float(end.replace("−", "-")) for end in note.removesuffix(f" {of}").strip("[]").split(", "))
            assert (low, high) == pytest.approx((given.low, given.high), abs=5.1e-4)


def test_one_seed_has_the_interval_over_patients_alone():
    notes = _column(arms_table(make_results(more=True, seeds=[0])), "test dice")[1].notes
    assert notes[0] == "one seed"
    assert notes[1].endswith("] patients")


def test_with_folds_seeds_are_counted_and_not_runs():
    results = make_results(more=True, seeds=[0, 1], folds=3)
    table = arms_table(results)
    assert {cell.text for cell in _column(table, "seeds")} == {"2"}
    assert _column(table, "epochs to target")[1].notes[-1] == "2 of 2 seeds"
    assert ("3 diverged",) in {cell.notes for cell in _column(table, "seeds")}


def test_every_test_metric_stands_in_the_second_table_with_either_kind_of_statistics():
    results = make_results(more=True)
    table = metrics_table(results)
    assert [(column.title, column.note) for column in table.columns[5:]] == [
        ("test dice", ""), ("test dice", "batch statistics"), ("test dice <i>fluid</i>", ""), ("test hd95", ""),
    ]  # fmt: skip
    for row, arm in zip(table.rows, results.summary, strict=True):
        batch = arm.batch_metrics.get("test_dice")
        wanted = [arm.metrics["test_dice"], batch, arm.metrics["test_dice_<i>fluid</i>"], arm.metrics["test_hd95"]]
        means = [given.mean if given else None for given in wanted]
        assert [float(cell.sort) if cell.sort else None for cell in row[5:]] == means


def test_no_second_table_where_the_first_holds_every_metric():
    assert metrics_table(make_results()) is None


def test_cells_sort_by_the_full_number_not_by_the_printed_one():
    results = make_results()
    sorts = [float(cell.sort) for cell in _column(arms_table(results), "test dice")]
    assert sorts == [arm.metrics["test_dice"].mean for arm in results.summary]


def test_what_is_missing_is_a_dash_without_a_number_to_sort_by():
    table = arms_table(make_results())
    cell = _column(table, "peak memory")[4]
    assert (cell.text, cell.notes, cell.sort) == ("–", (), "")


def test_the_difference_to_none_is_the_paired_one_of_the_main_test_metric():
    results = make_results()
    arm = results.summary[1]
    cell = _column(arms_table(results), "difference to none")[1]
    assert cell.sort == repr(arm.versus_none["test_dice"].mean)
    assert cell.text.startswith("+")


def test_epochs_to_target_say_how_many_seeds_reached_it():
    cells = _column(arms_table(make_results()), "epochs to target")
    assert (cells[0].text, cells[0].notes) == ("6.0", ("1 of 3 seeds",))
    assert cells[1].notes[-1] == "3 of 3 seeds"


def test_an_arm_with_a_diverged_run_says_so():
    results = make_results()
    cells = _column(arms_table(results), "seeds")
    place = [(arm.norm, arm.batch_size) for arm in results.summary].index(("none", 2))
    assert [cell.notes for i, cell in enumerate(cells) if i != place] == [()] * (len(cells) - 1)
    assert cells[place].notes == ("1 diverged",)


def test_seconds_to_target_and_gradient_ratio_are_those_of_the_summary():
    results = make_results()
    table = arms_table(results)
    for title, field in (("seconds to target", "seconds_to_target"), ("gradient ratio", "gradient_ratio")):
        shown = [float(cell.sort) if cell.sort else None for cell in _column(table, title)]
        assert shown == [getattr(arm, field).mean for arm in results.summary]
