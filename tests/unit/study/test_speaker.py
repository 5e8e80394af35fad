import numpy as np
import pytest

from mednorm.results import Estimate
from mednorm.study.arms import Trial
from mednorm.study.speaker import Speaker, named, number, verdict
from mednorm.study.summary import summarize
from tests.unit.study.made import arms_of, run, study_of


def interval(low, high):
    return Estimate(n=3, mean=(low + high) / 2, std=0.1, low=low, high=high)


ABOVE, BELOW, ACROSS = interval(0.01, 0.05), interval(-0.05, -0.01), interval(-0.01, 0.05)
UNKNOWN = Estimate(n=1, mean=0.9)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([ABOVE, ABOVE], "better"),
        ([BELOW, BELOW], "worse"),
        ([ABOVE, ACROSS], "not distinguishable"),
        ([ACROSS, ABOVE], "not distinguishable"),
        ([ABOVE, BELOW], "not distinguishable"),
        ([ABOVE, None], "better"),
        ([ABOVE, UNKNOWN], "better"),
        ([UNKNOWN, BELOW], "worse"),
        ([UNKNOWN, None], "not distinguishable"),
        ([], "not distinguishable"),
    ],
)
def test_every_interval_there_is_has_to_leave_out_zero_on_the_same_side(intervals, expected):
    assert verdict(intervals, larger_is_better=True) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [("dice", "Dice"), ("auc", "AUC"), ("hd95", "HD95"), ("calibration_error", "calibration error")],
)
def test_metrics_are_named_as_people_write_them(name, words):
    assert named(name) == words


def test_a_number_has_a_true_minus_and_a_sign_where_asked_for():
    assert (number(-0.25, 2), number(0.25, 1, "+"), number(3, 0)) == ("−0.25", "+0.2", "3")


def speaker(pairs, draws, metric="auc", resampled="patients"):
    """Batch against none with these test metrics a seed, and these replicates over 40 patients."""
    runs, trials = [], {}
    for norm, side in (("none", 1), ("batch", 0)):
        for seed, pair in enumerate(pairs):
            metrics = {"train_auc": 1.0, "val_auc": 0.5, f"test_{metric}": pair[side]}
            runs.append(run(norm, seed, metrics=metrics))
            spread = np.array(draws[side]) + pair[side]
            trials[norm, seed] = Trial(runs[-1], (runs[-1].name,), {f"test_{metric}": spread}, 40)
    arms = {arm: {seed: trials[arm.norm, seed] for seed in seeds} for arm, seeds in arms_of(runs).items()}
    data = study_of(runs).data.model_copy(update={"resampled": resampled})
    study = study_of(runs, data=data, main_metric=metric)
    return Speaker(study, arms, summarize(arms, metric), [f"test_{metric}"])


def said(made, metric="auc"):
    return made.compare_metric("quality", made.arm("batch"), made.base, f"test_{metric}", "Batch against none")


NARROW = np.linspace(-0.01, 0.01, 100)
WIDE = np.linspace(-0.5, 0.5, 100)
CLEAR = [(0.90, 0.80), (0.91, 0.80), (0.92, 0.82)]


def test_a_sentence_says_the_interval_over_patients_beside_that_over_seeds():
    statement = said(speaker(CLEAR, (NARROW, NARROW)))
    low, high = statement.over_units.low, statement.over_units.high
    assert (statement.over_units.n, statement.over_units.mean) == (40, pytest.approx(0.31 / 3))
    assert f"over 3 paired seeds, [+{low:.3f}, +{high:.3f}] over 40 patients: better." in statement.text
    assert statement.verdict == "better"


def test_a_difference_that_patients_do_not_bear_out_is_not_distinguishable_though_seeds_agree():
    statement = said(speaker(CLEAR, (NARROW, WIDE)))
    assert statement.difference.low > 0 > statement.over_units.low
    assert statement.verdict == "not distinguishable"


def test_one_seed_is_judged_by_the_patients_alone():
    statement = said(speaker(CLEAR[:1], (NARROW, NARROW)))
    assert statement.verdict == "better"
    assert "difference +0.100 in one seed, [+0.100, +0.100] over 40 patients: better." in statement.text


@pytest.mark.parametrize("metric", ["hd95", "hd95_left", "calibration_error"])
def test_of_a_distance_and_of_an_error_the_smaller_is_better(metric):
    assert said(speaker(CLEAR, (NARROW, NARROW), metric), metric).verdict == "worse"


def test_nothing_is_said_where_an_arm_was_not_trained_or_is_compared_with_itself():
    made = speaker(CLEAR, (NARROW, NARROW))
    assert made.compare_metric("quality", made.arm("group"), made.base, "test_auc", "Group") is None
    assert made.compare_metric("quality", made.base, made.base, "test_auc", "None") is None
