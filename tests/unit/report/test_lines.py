"""Charts against a size show the summary's numbers, of arms that differ in nothing else."""

import pytest

from mednorm.report import lines
from mednorm.report.plot import Panel
from tests.report_fixture import NORMS, make_results


def _by_norm(panel: Panel, view: int = 0):
    return {trace["meta"]["norm"]: trace for trace in panel.views[view]}


def _arm(results, norm, regularizer="none", size=8, network="unet", share=1.0):
    wanted = (norm, regularizer, size, share)
    found = [a for a in results.summary if (a.norm, a.regularizer, a.batch_size, a.train_share) == wanted]
    return next(a for a in found if a.network in (network, ""))


@pytest.mark.parametrize("more", [False, True])
def test_the_batch_size_chart_shows_means_and_interval_ends(more):
    results = make_results(more=more)
    drawn = _by_norm(lines.batch_size_chart(results).panels[0])
    assert list(drawn) == NORMS
    for norm, trace in drawn.items():
        wanted = [_arm(results, norm, "none", size).metrics["test_dice"] for size in (2, 8, 32)]
        assert trace["y"] == [given.mean for given in wanted]
        ends = zip(trace["y"], trace["error_y"]["array"], trace["error_y"]["arrayminus"], strict=True)
        for (middle, up, down), given in zip(ends, wanted, strict=True):
            assert (middle + up, middle - down) == pytest.approx((given.high, given.low))


def test_batch_sizes_stand_near_their_true_place_and_are_named_exactly():
    for trace in lines.batch_size_chart(make_results()).panels[0].views[0]:
        assert [tip[0] for tip in trace["customdata"]] == ["2", "8", "32"]
        assert trace["x"] == pytest.approx([2, 8, 32], rel=0.11)


def test_one_batch_size_makes_no_batch_size_chart():
    results = make_results()
    kept = [arm for arm in results.summary if arm.batch_size == 8]
    assert lines.batch_size_chart(results.model_copy(update={"summary": kept})) is None


def test_one_seed_draws_no_bar_and_the_caption_says_why():
    chart = lines.batch_size_chart(make_results(seeds=[0]))
    for trace in chart.panels[0].views[0]:
        assert trace["error_y"]["array"] == [None, None, None]
    assert "one seed each, so there are no intervals" in chart.caption
    assert "95 %" not in chart.caption


def test_a_study_in_which_every_arm_is_regularized_compares_norms_with_its_first_regularizer():
    results = make_results()
    study = results.study.model_copy(update={"regularizers": ["dropout", "weight_decay"]})
    kept = [
        arm if arm.regularizer != "none" else arm.model_copy(update={"regularizer": "dropout"})
        for arm in results.summary
        if arm.regularizer != "dropout"
    ]
    changed = results.model_copy(update={"study": study, "summary": kept})
    chart = lines.batch_size_chart(changed)
    wanted = lines.batch_size_chart(results)
    assert [trace["y"] for trace in chart.panels[0].views[0]] == [trace["y"] for trace in wanted.panels[0].views[0]]
    assert "with dropout" in chart.caption


def test_evaluation_modes_stand_beside_each_other_for_norms_that_keep_running_statistics():
    results = make_results(more=True)
    chart = lines.modes_chart(results)
    drawn = _by_norm(chart.panels[0])
    assert list(drawn) == chart.norms
    assert chart.norms == [
        "none", "batch", "batch, batch statistics", "group", "instance", "renorm", "renorm, batch statistics",
    ]  # fmt: skip
    for norm in ("batch", "renorm"):
        arms = [_arm(results, norm, size=size) for size in (2, 8, 32)]
        assert drawn[norm]["y"] == [arm.metrics["test_dice"].mean for arm in arms]
        assert drawn[f"{norm}, batch statistics"]["y"] == [arm.batch_metrics["test_dice"].mean for arm in arms]
        assert drawn[f"{norm}, batch statistics"]["marker"]["symbol"].endswith("-open")
    assert set(chart.styles) == {"batch, batch statistics", "renorm, batch statistics"}


def test_the_second_panel_shows_the_paired_difference_with_its_interval():
    results = make_results(more=True)
    panel = lines.modes_chart(results).panels[1]
    drawn = _by_norm(panel)
    assert list(drawn) == ["batch", "renorm"]
    wanted = [_arm(results, "batch", size=size).mode_gap["test_dice"] for size in (2, 8, 32)]
    assert drawn["batch"]["y"] == [given.mean for given in wanted]
    assert drawn["batch"]["error_y"]["array"] == pytest.approx([given.high - given.mean for given in wanted])
    assert drawn["batch"]["customdata"][0][1].startswith("−0.0")


def test_no_batch_statistics_make_no_chart_of_modes():
    assert lines.modes_chart(make_results()) is None


def test_a_single_batch_size_is_still_a_chart_of_modes_and_its_points_stay_together():
    results = make_results(more=True)
    kept = [arm for arm in results.summary if arm.batch_size == 8]
    chart = lines.modes_chart(results.model_copy(update={"summary": kept}))
    low, high = chart.panels[0].layout["xaxis"]["range"]
    xs = [x for trace in chart.panels[0].views[0] for x in trace["x"]]
    assert 10**low < 8 / 1.5 < min(xs) < max(xs) < 8 * 1.5 < 10**high


def test_less_training_data_is_drawn_for_the_norms_that_have_it():
    results = make_results(more=True)
    chart = lines.shares_chart(results)
    assert [panel.heading for panel in chart.panels] == ["test dice", "generalization gap"]
    assert chart.norms == ["none", "batch"]
    for norm in chart.norms:
        arms = [_arm(results, norm, share=share) for share in (0.125, 0.5, 1.0)]
        metric, gap = (_by_norm(panel)[norm] for panel in chart.panels)
        assert metric["y"] == [arm.metrics["test_dice"].mean for arm in arms]
        assert gap["y"] == [arm.generalization_gap.mean for arm in arms]
        assert [text for text, _ in metric["customdata"]] == ["12.5 %", "50 %", "100 %"]
    assert chart.panels[0].layout["xaxis"]["title"]["text"].startswith("share of the training patients")


def test_one_share_makes_no_chart_of_shares():
    results = make_results(more=True)
    kept = [arm for arm in results.summary if arm.train_share == 1]
    assert lines.shares_chart(results.model_copy(update={"summary": kept})) is None
    assert lines.shares_chart(make_results()) is None


def test_of_a_single_seed_the_bars_are_those_over_patients_and_the_caption_says_so():
    results = make_results(more=True, seeds=[0])
    chart = lines.batch_size_chart(results)
    assert "one seed each, so bars are 95 % bootstrap intervals over patients" in chart.caption
    given = _arm(results, "batch", size=2).over_units["test_dice"]
    trace = _by_norm(chart.panels[0])["batch"]
    assert trace["error_y"]["array"][0] == pytest.approx(given.high - given.mean)
    assert trace["customdata"][0][1].endswith("]")


def test_no_summary_makes_no_lines():
    results = make_results().model_copy(update={"summary": []})
    assert [make(results) for make in (lines.batch_size_chart, lines.modes_chart, lines.shares_chart)] == [None] * 3
