import numpy as np
import pytest
from scipy import stats

from mednorm.results import Estimate
from mednorm.study.arms import Arm, Trial
from mednorm.study.summary import (
    choose_target,
    estimate,
    generalization_gap,
    gradient_decades,
    gradient_ratio,
    metric,
    paired,
    pairs,
    summarize,
    with_target,
)
from tests.unit.study.made import arm, arms_of, epoch, run

BASE = Arm("none", "none", 8)


@pytest.mark.parametrize("values", [[0.9, 0.95], [0.81, 0.85, 0.9, 0.86, 0.79], [-3.0, 1e6, 2.5]])
def test_an_estimate_is_mean_sample_deviation_and_student_interval(values):
    shown = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (shown.n, shown.mean) == (len(values), pytest.approx(np.mean(values)))
    assert shown.std == pytest.approx(np.std(values, ddof=1))
    assert (shown.low, shown.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_a_mean_and_no_interval():
    assert estimate([0.75]) == Estimate(n=1, mean=0.75)


def test_no_value_has_nothing():
    assert estimate([]) == estimate([None, None]) == Estimate(n=0, mean=None)


def test_what_is_not_defined_is_left_out_of_the_count():
    assert estimate([0.5, None, 0.7]) == estimate([0.5, 0.7])
    assert estimate([0.5, None, 0.7]).n == 2


def test_values_that_all_agree_have_no_spread_to_build_an_interval_from():
    assert estimate([4, 4, 4]) == Estimate(n=3, mean=4, std=0, low=None, high=None)


def test_values_that_differ_by_rounding_alone_have_no_interval():
    """Seeds 0.1 apart each: 0.3 − 0.2 and 0.2 − 0.1 differ in the last digit, which once made any gap "better"."""
    values = [0.3 - 0.2, 0.2 - 0.1, 0.8 - 0.7]
    assert len(set(values)) == 3
    shown = estimate(values)
    assert (shown.n, shown.mean, shown.low, shown.high) == (3, pytest.approx(0.1), None, None)
    assert estimate([0.1, 0.1 + 1e-9, 0.1]).low is not None


def test_a_large_offset_does_not_spoil_the_deviation():
    assert estimate([1e9 + 1, 1e9 + 2, 1e9 + 3]).std == pytest.approx(1.0)


def test_seeds_are_paired_with_themselves_and_missing_ones_left_out():
    ours, theirs = (
        {seed: Trial(run(test=test), ()) for seed, test in tests.items()}
        for tests in ({0: 0.9, 1: 0.8, 2: 0.7, 4: None}, {4: 0.1, 2: 0.3, 1: 0.2, 3: 0.4})
    )
    assert pairs(ours, theirs, metric("test_auc")) == [(0.8, 0.2), (0.7, 0.3)]


def test_a_paired_difference_is_sharper_than_the_difference_of_means():
    none, batch = [0.6, 0.7, 0.8], [0.65, 0.752, 0.849]
    arms = arms_of([*arm("batch", batch), *arm("none", none)])
    shown = paired(arms[BASE._replace(norm="batch")], arms[BASE], metric("test_auc"))
    test = stats.ttest_rel(batch, none).confidence_interval(0.95)
    assert (shown.low, shown.high) == (pytest.approx(test.low), pytest.approx(test.high))
    assert shown.low > 0


def test_the_generalization_gap_is_train_minus_test():
    gap = generalization_gap("auc")
    assert gap(run(train=0.95, test=0.9)) == pytest.approx(0.05)
    assert gap(run(test=0.9, metrics={"train_auc": None, "test_auc": 0.9})) is None
    assert gap(run(metrics={"test_auc": 0.9})) is None


def test_the_gradient_ratio_is_first_layer_over_last_in_the_first_epoch():
    later = {"first": 9.0, "last": 1.0}
    first = {"first": 0.5, "middle": 7.0, "last": 2.0}
    assert gradient_ratio(run(epochs=[epoch(1, gradients=first), epoch(2, gradients=later)])) == 0.25


@pytest.mark.parametrize(
    "norms",
    [{}, {"only": 1.0}, {"first": None, "last": 1.0}, {"first": 1.0, "last": None}, {"first": 1.0, "last": 0.0}],
)
def test_without_two_gradients_there_is_no_ratio(norms):
    assert gradient_ratio(run(epochs=[epoch(1, gradients=norms)])) is None


def test_a_gradient_that_vanishes_between_two_strong_layers_is_seen_by_its_decades_and_not_by_its_ratio():
    hourglass = run(epochs=[epoch(1, gradients={"first": 2.0, "deepest": 2e-7, "last": 2.0})])
    assert gradient_ratio(hourglass) == 1.0
    assert gradient_decades(hourglass) == pytest.approx(7)


@pytest.mark.parametrize("norms", [{}, {"only": 1.0}, {"first": None, "last": 1.0}, {"first": 0.0, "last": 1.0}])
def test_without_two_gradients_above_zero_there_are_no_decades(norms):
    assert gradient_decades(run(epochs=[epoch(1, gradients=norms)])) is None


def test_a_given_target_is_taken_as_it_is():
    target = choose_target([run()], "auc", BASE, 0.65)
    assert (target.metric, target.value, target.source) == ("val_auc", 0.65, "given")


def test_a_target_of_zero_is_a_target():
    assert choose_target([run()], "auc", BASE, 0.0).value == 0.0


def test_the_target_is_what_the_worst_run_of_any_norm_reached_at_its_best():
    runs = [
        run("batch", 0, vals=(0.95, 0.75)), run("none", 0, vals=(0.6, 0.9, 0.7)), run("none", 1, vals=(0.5, 0.8)),
        run("batch", 0, vals=(0.1,), size=2), run("none", 0, vals=(0.1,), regularizer="l2"),
    ]  # fmt: skip
    target = choose_target(runs, "auc", BASE, None)
    assert target.value == 0.8
    assert "every run of every norm with regularizer none and batch size 8" in target.source


def test_where_a_run_has_no_validation_metric_there_is_no_target():
    runs = [run("none", 0, vals=(0.6, 0.9)), run("batch", 0, vals=(None, None))]
    assert choose_target(runs, "auc", BASE, None).value is None


def test_where_no_run_is_like_the_base_there_is_no_target():
    """The base cannot be trained at batch size 1, say, and the other batch sizes can."""
    assert choose_target([run("batch", 0, size=2)], "auc", BASE._replace(batch_size=1), None).value is None


def test_a_target_is_not_chosen_from_another_network_or_share():
    runs = [run("none", 0), run("none", 0, network="deep", vals=(0.1,)), run("none", 0, train_share=0.1, vals=(0.1,))]
    assert choose_target(runs, "auc", BASE, None).value == 0.8


def test_the_epochs_to_the_target_are_counted_to_the_first_that_reached_it():
    epochs = [epoch(1, 0.6, seconds=1), epoch(2, None, seconds=2), epoch(3, 0.8, seconds=4), epoch(4, 0.9, seconds=8)]
    timed = with_target(run(epochs=epochs), "auc", 0.8)
    assert (timed.epochs_to_target, timed.seconds_to_target) == (3, 7)


def test_a_target_that_was_not_reached_has_no_time_and_an_old_time_is_forgotten():
    timed = with_target(run(vals=(0.5, 0.6), epochs_to_target=1, seconds_to_target=2.0), "auc", 0.7)
    assert (timed.epochs_to_target, timed.seconds_to_target) == (None, None)
    assert with_target(run(vals=(0.5, 0.6)), "auc", None).epochs_to_target is None


def test_every_run_that_chose_the_target_reaches_it():
    rng = np.random.default_rng(0)
    runs = [run(norm, seed, vals=tuple(rng.random(6))) for seed in range(5) for norm in ("none", "batch")]
    target = choose_target(runs, "auc", BASE, None)
    assert all(with_target(each, "auc", target.value).epochs_to_target for each in runs)


def test_an_arm_is_summarized_over_its_seeds_in_the_order_of_the_runs():
    runs = [*arm("none", [0.8, 0.9]), *arm("batch", [0.9, 0.95]), *arm("none", [0.7, 0.6], size=4)]
    summary = summarize(arms_of(runs), "auc")
    assert [(each.norm, each.batch_size) for each in summary] == [("none", 8), ("batch", 8), ("none", 4)]
    assert summary[1].runs == ["batch-none-b8-s0", "batch-none-b8-s1"]
    assert summary[1].metrics["test_auc"] == estimate([0.9, 0.95])
    assert summary[2].metrics["test_auc"] == estimate([0.7, 0.6])


def test_an_arm_is_compared_with_its_twin_without_normalization_and_no_other():
    runs = [
        *arm("none", [0.8, 0.9]), *arm("batch", [0.85, 0.91]), *arm("none", [0.5, 0.6], regularizer="l2"),
        *arm("batch", [0.7, 0.7], regularizer="l2"), *arm("batch", [0.9, 0.9], size=4),
    ]  # fmt: skip
    none, batch, none_l2, batch_l2, small = summarize(arms_of(runs), "auc")
    assert none.versus_none == none_l2.versus_none == small.versus_none == {}
    assert batch.versus_none["test_auc"] == estimate([0.85 - 0.8, 0.91 - 0.9])
    assert batch_l2.versus_none["test_auc"] == estimate([0.7 - 0.5, 0.7 - 0.6])


def test_every_test_metric_and_every_cost_is_compared():
    metrics = {"train_auc": 0.9, "val_auc": 0.8, "test_auc": 0.7, "test_accuracy": 0.6}
    runs = [run("none", metrics=metrics), run("batch", metrics=metrics | {"test_accuracy": 0.75}, seconds_per_step=0.3)]
    compared = summarize(arms_of(runs), "auc")[1].versus_none
    assert set(compared) == {
        "test_auc", "test_accuracy", "generalization_gap", "epochs_to_target", "seconds_to_target", "gradient_ratio",
        "initial_gradient_ratio", "gradient_decades", "initial_gradient_decades", "seconds_per_step", "peak_memory_mb",
    }  # fmt: skip
    assert compared["test_accuracy"].mean == pytest.approx(0.15)
    assert compared["seconds_per_step"].mean == pytest.approx(0.2)
    assert compared["gradient_ratio"].mean == 0


def test_only_seeds_that_reached_the_target_count_in_the_time_to_it():
    runs = [
        run("none", 0, epochs_to_target=4),
        run("none", 1, epochs_to_target=None),
        run("batch", 1, epochs_to_target=2),
    ]
    none, batch = summarize(arms_of(runs), "auc")
    assert none.epochs_to_target == Estimate(n=1, mean=4)
    assert batch.versus_none["epochs_to_target"] == Estimate(n=0, mean=None)


def test_a_run_without_metrics_leaves_the_others_standing():
    lost = run("batch", 1, metrics=dict.fromkeys(["train_auc", "val_auc", "test_auc"]), peak_memory_mb=None)
    (summary,) = summarize(arms_of([run("batch", 0, test=0.9), lost]), "auc")
    assert summary.metrics["test_auc"] == Estimate(n=1, mean=0.9)
    assert summary.generalization_gap.n == 1
    assert summary.peak_memory_mb == Estimate(n=1, mean=100.0)
