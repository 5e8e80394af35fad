"""The table holds the summary's numbers, and sorts by them."""

from mednorm.report.table import arms_table
from tests.report_fixture import make_results


def _column(table, title):
    place = [column.title for column in table.columns].index(title)
    return [row[place] for row in table.rows]


def test_a_row_an_arm_in_the_order_of_the_file():
    results = make_results()
    table = arms_table(results)
    shown = [tuple(cell.text for cell in row[:3]) for row in table.rows]
    assert shown == [(arm.norm, arm.regularizer, str(arm.batch_size)) for arm in results.summary]


def test_every_test_metric_has_a_column_and_the_main_one_comes_first():
    titles = [column.title for column in arms_table(make_results()).columns]
    assert titles[4:7] == ["test dice", "test hausdorff 95", "difference to none"]


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
