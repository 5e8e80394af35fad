"""Charts of the arms show the summary's numbers."""

import pytest

from mednorm.report import charts
from mednorm.report.plot import Panel
from mednorm.results import Estimate
from tests.report_fixture import NORMS, SITES, make_results


def _by_norm(panel: Panel, view: int = 0):
    return {trace["meta"]["norm"]: trace for trace in panel.views[view]}


def _arm(results, norm, regularizer, size):
    return next(a for a in results.summary if (a.norm, a.regularizer, a.batch_size) == (norm, regularizer, size))


@pytest.mark.parametrize("more", [False, True])
def test_the_gap_chart_shows_every_arm_once(more):
    results = make_results(more=more)
    chart = charts.gap_chart(results)
    drawn = sorted(x for trace in chart.panels[0].views[0] for x in trace["x"])
    assert drawn == sorted(arm.generalization_gap.mean for arm in results.summary)


@pytest.mark.parametrize("more", [False, True])
def test_each_gap_stands_in_the_row_of_its_condition(more):
    results = make_results(more=more)
    panel = charts.gap_chart(results).panels[0]
    labels = [" ".join(label.split("<br>")) for label in panel.layout["yaxis"]["ticktext"]]
    gaps = {arm.generalization_gap.mean: arm for arm in results.summary}
    for trace in panel.views[0]:
        for x, y, (named, _) in zip(trace["x"], trace["y"], trace["customdata"], strict=True):
            arm = gaps[x]
            words = ["no regularizer" if arm.regularizer == "none" else arm.regularizer.replace("_", " ")]
            words.append(f"batch size {arm.batch_size}")
            words += ["deeper_unet"] * (arm.network == "deeper_unet")
            words += [f"{100 * arm.train_share:g} % of the training patients"] * (arm.train_share < 1)
            assert labels[round(y)] == " ".join(words)
            assert named == ", ".join(words)
            assert trace["meta"]["norm"] == arm.norm


def test_rows_are_high_enough_for_their_labels():
    panel = charts.gap_chart(make_results(more=True)).panels[0]
    labels = panel.layout["yaxis"]["ticktext"]
    assert panel.height / len(labels) > 17 * max(len(label.split("<br>")) for label in labels)


@pytest.mark.parametrize("more", [False, True])
def test_the_regularizer_chart_compares_only_norms_that_were_regularized(more):
    results = make_results(more=more)
    chart = charts.regularizer_chart(results)
    assert chart.norms == ["none", "batch"]
    for norm, trace in _by_norm(chart.panels[0]).items():
        wanted = [_arm(results, norm, reg, 8).metrics["test_dice"].mean for reg in ("none", "dropout", "weight_decay")]
        assert trace["x"] == wanted


def test_one_regularizer_makes_no_regularizer_chart():
    results = make_results()
    kept = [arm for arm in results.summary if arm.regularizer == "none"]
    assert charts.regularizer_chart(results.model_copy(update={"summary": kept})) is None


@pytest.mark.parametrize("more", [False, True])
def test_the_cost_chart_offers_each_batch_size_the_base_one_first(more):
    results = make_results(more=more)
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
    makers = (charts.gap_chart, charts.regularizer_chart, charts.sites_chart, charts.cost_chart)
    assert [maker(results) for maker in makers] == [None] * 4


def test_the_sites_chart_has_a_row_a_site_and_in_it_the_base_arm_of_each_norm():
    results = make_results(more=True)
    chart = charts.sites_chart(results)
    rows = sorted(SITES)
    assert chart.panels[0].layout["yaxis"]["ticktext"][1:] == ["&lt;b&gt;Bern&lt;/b&gt;", "Geneva"]
    drawn = _by_norm(chart.panels[0])
    assert list(drawn) == NORMS
    for norm, trace in drawn.items():
        wanted = [_arm(results, norm, "none", 8).sites[site]["test_dice"] for site in rows]
        assert trace["x"] == [given.mean for given in wanted]
        assert [round(y) for y in trace["y"]] == [0, 1, 2]
        assert trace["error_x"]["array"] == pytest.approx([given.high - given.mean for given in wanted])


def test_a_site_without_the_metric_has_no_row_and_a_single_site_makes_no_chart():
    results = make_results(more=True)
    nothing = {"test_dice": Estimate(n=0, mean=None)}

    def without(*sites):
        summary = [
            arm.model_copy(update={"sites": arm.sites | dict.fromkeys(sites, nothing)}) for arm in results.summary
        ]
        return charts.sites_chart(results.model_copy(update={"summary": summary}))

    assert len(without(SITES[0]).panels[0].layout["yaxis"]["ticktext"]) == 2
    assert without(*SITES[:2]) is None
    assert charts.sites_chart(make_results()) is None


def test_with_folds_the_cost_is_said_to_be_a_mean_over_them_too():
    assert "mean over seeds and folds" in charts.cost_chart(make_results(more=True, folds=2)).caption
    assert "mean over seeds;" in charts.cost_chart(make_results(more=True)).caption
