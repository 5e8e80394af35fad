"""Charts along the depth keep the layers' order and average over seeds."""

import pytest

from mednorm.report.depth import gradient_chart, layer_chart
from mednorm.report.plot import plain
from tests.report_fixture import DEEPER, LAYERS, NORMS, make_results


def _base(results, norm):
    return [r for r in results.runs if (r.norm, r.regularizer, r.batch_size) == (norm, "none", 8)]


@pytest.mark.parametrize(("view", "which"), [(0, 0), (1, -1)])
def test_gradients_are_seed_means_of_the_first_and_of_the_last_epoch(view, which):
    results = make_results()
    chart = gradient_chart(results)
    assert chart.choices == ["first epoch", "last epoch"]
    drawn = {trace["meta"]["norm"]: trace for trace in chart.panels[0].views[view]}
    assert list(drawn) == NORMS
    for norm, trace in drawn.items():
        runs = _base(results, norm)
        wanted = [sum(run.epochs[which].gradient_norms[layer] for run in runs) / len(runs) for layer in LAYERS]
        assert trace["y"] == pytest.approx(wanted)


@pytest.mark.parametrize(("panel", "network", "layers"), [(0, "unet", LAYERS), (1, "deeper_unet", DEEPER)])
def test_each_network_has_its_panel_and_the_first_step_is_the_first_choice(panel, network, layers):
    results = make_results(more=True)
    chart = gradient_chart(results)
    assert chart.choices == ["first step", "first epoch", "last epoch"]
    assert chart.panels[panel].heading == f"gradient norm, {network}"
    assert chart.panels[panel].layout["xaxis"]["categoryarray"] == [plain(layer) for layer in layers]
    base = ("batch", "none", 8, network, 1.0)
    runs = [r for r in results.runs if (r.norm, r.regularizer, r.batch_size, r.network, r.train_share) == base]
    drawn = next(trace for trace in chart.panels[panel].views[0] if trace["meta"]["norm"] == "batch")
    assert drawn["y"] == pytest.approx([sum(run.initial_gradient_norms[name] for run in runs) / 3 for name in layers])
    assert {trace["meta"]["norm"] for trace in chart.panels[1].views[0]} == {"none", "batch"}


def test_with_folds_gradients_are_means_over_all_runs():
    results = make_results(more=True, seeds=[0], folds=2)
    chart = gradient_chart(results)
    assert "mean over seeds and folds" in chart.caption
    assert chart.panels[0].views[0][0]["customdata"][0][2] == "2 runs"
    assert "then over seeds and folds" in layer_chart(results).caption


def test_layer_statistics_are_those_of_the_base_network_alone():
    for panel in layer_chart(make_results(more=True)).panels:
        assert panel.layout["xaxis"]["categoryarray"] == [plain(layer) for layer in LAYERS]


def test_layers_stand_in_the_order_of_the_network_and_names_are_inert():
    chart = gradient_chart(make_results())
    axis = chart.panels[0].layout["xaxis"]
    assert axis["categoryarray"] == [plain(layer) for layer in LAYERS]
    assert axis["ticktext"] == ["down1", "down2", "down3", "&lt;b&gt;bottom&lt;/b&gt;", "up3", "up2", "up1", "head"]
    assert chart.panels[0].views[0][0]["customdata"][3][0] == "model.&lt;b&gt;bottom&lt;/b&gt;.conv.weight"


def test_a_layer_that_one_norm_lacks_keeps_the_order_of_the_others():
    results = make_results()
    runs = [
        run.model_copy(
            update={
                "epochs": [
                    epoch.model_copy(
                        update={"gradient_norms": {k: v for k, v in epoch.gradient_norms.items() if k != LAYERS[2]}}
                    )
                    for epoch in run.epochs
                ]
            }
        )
        if run.norm == "none"
        else run
        for run in results.runs
    ]
    axis = gradient_chart(results.model_copy(update={"runs": runs})).panels[0].layout["xaxis"]
    assert axis["categoryarray"] == [plain(layer) for layer in LAYERS]


def test_all_gradients_share_one_logarithmic_scale():
    first, deeper = gradient_chart(make_results(more=True)).panels
    assert first.layout["yaxis"] == deeper.layout["yaxis"]
    low, high = first.layout["yaxis"]["range"]
    values = [value for panel in (first, deeper) for view in panel.views for trace in view for value in trace["y"]]
    assert 10**low < min(values) < max(values) < 10**high


@pytest.mark.parametrize("view", [0, 1])
def test_layer_statistics_are_seed_means(view):
    results = make_results()
    chart = layer_chart(results)
    assert [panel.heading for panel in chart.panels] == ["mean", "variance", "range"]
    for panel in chart.panels:
        for trace in panel.views[view]:
            ends = [run.epochs[-view].layers for run in _base(results, trace["meta"]["norm"])]
            wanted = [sum(getattr(end[layer], panel.heading) for end in ends) / len(ends) for layer in LAYERS]
            assert trace["y"] == pytest.approx(wanted)


def test_a_statistic_nobody_has_leaves_out_its_panel():
    results = make_results()
    runs = [
        run.model_copy(
            update={
                "epochs": [
                    epoch.model_copy(
                        update={
                            "layers": {
                                name: layer.model_copy(update={"range": None}) for name, layer in epoch.layers.items()
                            }
                        }
                    )
                    for epoch in run.epochs
                ]
            }
        )
        for run in results.runs
    ]
    chart = layer_chart(results.model_copy(update={"runs": runs}))
    assert [panel.heading for panel in chart.panels] == ["mean", "variance"]


def test_no_finished_runs_make_no_charts_along_the_depth():
    results = make_results().model_copy(update={"runs": []})
    assert (gradient_chart(results), layer_chart(results)) == (None, None)
