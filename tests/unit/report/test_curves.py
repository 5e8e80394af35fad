"""Learning curves show means over seeds and the band between them."""

import pytest

from mednorm.report.curves import learning_chart
from tests.report_fixture import make_results


def _lines(view):
    return {trace["meta"]["norm"]: trace for trace in view if trace["mode"] == "lines+markers"}


def _seeds(results, norm, read, size=8):
    runs = [r for r in results.runs if (r.norm, r.regularizer, r.batch_size) == (norm, "none", size)]
    return [[read(epoch) for epoch in run.epochs] for run in runs if run.status == "finished"]


def test_the_first_choice_is_the_base_arm_without_regularizer():
    chart = learning_chart(make_results())
    assert chart.choices[0] == "no regularizer, batch size 8"
    assert "dropout, batch size 8" in chart.choices
    assert all(len(panel.views) == len(chart.choices) for panel in chart.panels)


def test_lines_are_means_over_seeds():
    results = make_results()
    for panel, read in zip(
        learning_chart(results).panels,
        (lambda e: e.val_metrics["dice"], lambda e: e.train_loss, lambda e: e.val_loss),
        strict=True,
    ):
        for norm, line in _lines(panel.views[0]).items():
            wanted = [sum(values) / 3 for values in zip(*_seeds(results, norm, read), strict=True)]
            assert line["y"] == pytest.approx(wanted)
            assert line["x"] == list(range(1, 13))


def test_the_band_reaches_from_the_lowest_to_the_highest_seed():
    results = make_results()
    view = learning_chart(results).panels[1].views[0]
    low, high = (trace for trace in view if trace["meta"]["norm"] == "batch" and trace["mode"] == "lines")
    seeds = list(zip(*_seeds(results, "batch", lambda epoch: epoch.train_loss), strict=True))
    assert low["y"] == [min(values) for values in seeds]
    assert high["y"] == [max(values) for values in seeds]
    assert high["fill"] == "tonexty"


def test_one_seed_has_a_line_and_no_band():
    view = learning_chart(make_results(seeds=[0])).panels[0].views[0]
    assert {trace["mode"] for trace in view} == {"lines+markers"}


def test_diverged_runs_are_left_out_and_the_caption_says_so():
    results = make_results()
    chart = learning_chart(results)
    view = chart.panels[1].views[chart.choices.index("no regularizer, batch size 2")]
    wanted = [sum(v) / 2 for v in zip(*_seeds(results, "none", lambda e: e.train_loss, size=2), strict=True)]
    assert _lines(view)["none"]["y"] == pytest.approx(wanted)
    assert chart.caption.endswith("Diverged runs (1) are left out.")


def test_both_losses_share_one_scale_that_holds_every_seed():
    panels = learning_chart(make_results()).panels
    assert panels[1].spans == panels[2].spans
    for view, (low, high) in enumerate(panels[1].spans):
        values = [value for panel in panels[1:] for trace in panel.views[view] for value in trace["y"]]
        assert low < min(values)
        assert max(values) < high


def test_the_target_is_drawn_only_across_the_metric_it_is_for():
    results = make_results()
    marked = [panel.layout.get("shapes", []) for panel in learning_chart(results).panels]
    assert [[line["y0"] for line in lines] for lines in marked] == [[0.8], [], []]
    target = results.study.target.model_copy(update={"metric": "val_loss"})
    study = results.study.model_copy(update={"target": target})
    other = learning_chart(results.model_copy(update={"study": study}))
    assert "shapes" not in other.panels[0].layout


def test_no_epochs_make_no_learning_curves():
    assert learning_chart(make_results().model_copy(update={"runs": []})) is None


def test_other_networks_and_shares_are_choices_of_their_own_and_stay_out_of_the_base_one():
    results = make_results(more=True)
    chart = learning_chart(results)
    assert chart.choices[0] == "no regularizer, batch size 8"
    assert "no regularizer, batch size 8, deeper_unet" in chart.choices
    assert "no regularizer, batch size 8, 12.5 % of the training patients" in chart.choices
    for view, (network, share) in (
        (0, ("unet", 1.0)),
        (chart.choices.index("no regularizer, batch size 8, 12.5 % of the training patients"), ("unet", 0.125)),
        (chart.choices.index("no regularizer, batch size 8, deeper_unet"), ("deeper_unet", 1.0)),
    ):
        runs = [
            run
            for run in results.runs
            if (run.norm, run.regularizer, run.batch_size, run.network, run.train_share)
            == ("batch", "none", 8, network, share)
        ]
        assert len(runs) == 3
        wanted = [sum(run.epochs[i].train_loss for run in runs) / 3 for i in range(12)]
        assert _lines(chart.panels[1].views[view])["batch"]["y"] == pytest.approx(wanted)


def test_with_folds_curves_are_means_over_all_runs_and_say_so():
    results = make_results(more=True, seeds=[0], folds=3)
    chart = learning_chart(results)
    assert "the mean over seeds and folds, its band the lowest and highest run;" in chart.caption
    line = _lines(chart.panels[0].views[0])["batch"]
    assert line["customdata"][0].endswith("3 runs)")
    assert "fill" in {key for trace in chart.panels[0].views[0] for key in trace}
    assert _lines(learning_chart(make_results()).panels[0].views[0])["batch"]["customdata"][0].endswith("3 seeds)")
