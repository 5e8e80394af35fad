"""Charts of the arms show the summary's numbers."""

import pytest

from mednorm.report import charts
from mednorm.report.plot import Panel
from tests.report_fixture import NORMS, make_results


def _by_norm(panel: Panel, view: int = 0):
    return {trace["meta"]["norm"]: trace for trace in panel.views[view]}


def _arm(results, norm, regularizer, size):
    return next(a for a in results.summary if (a.norm, a.regularizer, a.batch_size) == (norm, regularizer, size))


def test_the_batch_size_chart_shows_means_and_interval_ends():
    results = make_results()
    drawn = _by_norm(charts.batch_size_chart(results).panels[0])
    assert list(drawn) == NORMS
    for norm, trace in drawn.items():
        wanted = [_arm(results, norm, "none", size).metrics["test_dice"] for size in (2, 8, 32)]
        assert trace["y"] == [given.mean for given in wanted]
        ends = zip(trace["y"], trace["error_y"]["array"], trace["error_y"]["arrayminus"], strict=True)
        for (middle, up, down), given in zip(ends, wanted, strict=True):
            assert (middle + up, middle - down) == pytest.approx((given.high, given.low))


def test_batch_sizes_stand_near_their_true_place_and_are_named_exactly():
    for trace in charts.batch_size_chart(make_results()).panels[0].views[0]:
        assert [tip[0] for tip in trace["customdata"]] == [2, 8, 32]
        assert trace["x"] == pytest.approx([2, 8, 32], rel=0.11)


def test_one_batch_size_makes_no_batch_size_chart():
    results = make_results()
    kept = [arm for arm in results.summary if arm.batch_size == 8]
    assert charts.batch_size_chart(results.model_copy(update={"summary": kept})) is None


def test_one_seed_draws_no_bar_and_the_caption_says_why():
    chart = charts.batch_size_chart(make_results(seeds=[0]))
    for trace in chart.panels[0].views[0]:
        assert trace["error_y"]["array"] == [None, None, None]
    assert "one seed each, so there are no intervals" in chart.caption
    assert "95 %" not in chart.caption


def test_the_gap_chart_shows_every_arm_once():
    results = make_results()
    chart = charts.gap_chart(results)
    drawn = sorted(x for trace in chart.panels[0].views[0] for x in trace["x"])
    assert drawn == sorted(arm.generalization_gap.mean for arm in results.summary)


def test_each_gap_stands_in_the_row_of_its_condition():
    results = make_results()
    panel = charts.gap_chart(results).panels[0]
    labels = panel.layout["yaxis"]["ticktext"]
    for trace in panel.views[0]:
        for y, (regularizer, size, _) in zip(trace["y"], trace["customdata"], strict=True):
            named = "no regularizer" if regularizer == "none" else regularizer.replace("_", " ")
            assert labels[round(y)] == f"{named}<br>batch size {size}"


def test_the_regularizer_chart_compares_only_norms_that_were_regularized():
    results = make_results()
    chart = charts.regularizer_chart(results)
    assert chart.norms == ["none", "batch"]
    for norm, trace in _by_norm(chart.panels[0]).items():
        wanted = [_arm(results, norm, reg, 8).metrics["test_dice"].mean for reg in ("none", "dropout", "weight_decay")]
        assert trace["x"] == wanted


def test_one_regularizer_makes_no_regularizer_chart():
    results = make_results()
    kept = [arm for arm in results.summary if arm.regularizer == "none"]
    assert charts.regularizer_chart(results.model_copy(update={"summary": kept})) is None


def test_the_cost_chart_offers_each_batch_size_the_base_one_first():
    results = make_results()
    chart = charts.cost_chart(results)
    assert chart.choices == ["batch size 8", "batch size 2", "batch size 32"]
    for view, size in enumerate((8, 2, 32)):
        shown = {norm: trace["x"] for norm, trace in _by_norm(chart.panels[0], view).items()}
        assert shown == {norm: [_arm(results, norm, "none", size).seconds_per_step.mean] for norm in NORMS}


def test_a_norm_without_memory_has_no_memory_bar():
    memory = charts.cost_chart(make_results()).panels[1]
    assert list(_by_norm(memory)) == ["none", "batch", "group", "instance"]


def test_no_memory_at_all_leaves_out_its_panel():
    results = make_results()
    nothing = {"n": 0, "mean": None, "std": None, "low": None, "high": None}
    summary = [
        arm.model_copy(update={"peak_memory_mb": arm.peak_memory_mb.model_copy(update=nothing)})
        for arm in results.summary
    ]
    panels = charts.cost_chart(results.model_copy(update={"summary": summary})).panels
    assert [panel.heading for panel in panels] == ["seconds per training step"]


def test_a_summary_without_numbers_makes_no_charts():
    results = make_results().model_copy(update={"summary": []})
    makers = (charts.batch_size_chart, charts.gap_chart, charts.regularizer_chart, charts.cost_chart)
    assert [maker(results) for maker in makers] == [None] * 4


def test_a_study_in_which_every_arm_is_regularized_compares_norms_with_its_first_regularizer():
    results = make_results()
    study = results.study.model_copy(update={"regularizers": ["dropout", "weight_decay"]})
    kept = [
        arm if arm.regularizer != "none" else arm.model_copy(update={"regularizer": "dropout"})
        for arm in results.summary
        if arm.regularizer != "dropout"
    ]
    changed = results.model_copy(update={"study": study, "summary": kept})
    chart = charts.batch_size_chart(changed)
    wanted = charts.batch_size_chart(results)
    assert [trace["y"] for trace in chart.panels[0].views[0]] == [trace["y"] for trace in wanted.panels[0].views[0]]
    assert "with dropout" in chart.caption
