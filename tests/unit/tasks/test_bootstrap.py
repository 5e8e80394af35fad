import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from mednorm.tasks import bootstrap
from mednorm.tasks.bootstrap import (
    interval,
    resampled,
    weighted_auc,
    weighted_calibration_error,
    weighted_confusion,
    weighted_mean,
)

NAMES = tuple(f"patient {number:02}" for number in range(12))


def counts(names=NAMES, resamples=30, seed=0, width=0):
    return np.concatenate(list(resampled(names, resamples, seed, width)))


def weights_for(rows, seed):
    return np.random.default_rng(seed).integers(0, 4, (6, rows)).astype(float)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=25), st.integers(0, 99))
def test_the_weighted_auc_is_that_of_scikit_learn_whatever_ties(pairs, seed):
    scores, positive = np.array([score / 5 for score, _ in pairs]), np.array([side for _, side in pairs])
    weights = weights_for(len(pairs), seed)
    for found, row in zip(weighted_auc(scores, positive, weights), weights, strict=True):
        if row[positive].sum() == 0 or row[~positive].sum() == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(roc_auc_score(positive, scores, sample_weight=row))


def test_the_weighted_confusion_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    targets, said, weights = random.integers(0, 3, 40), random.integers(0, 3, 40), weights_for(40, 1)
    expected = [confusion_matrix(targets, said, labels=[0, 1, 2], sample_weight=row) for row in weights]
    assert weighted_confusion(targets, said, 3, weights).tolist() == np.array(expected).tolist()


def test_the_calibration_error_is_that_of_torchmetrics_away_from_the_edges_of_bins():
    probabilities = torch.randn(200, 3, dtype=torch.float64).mul(2).softmax(1)
    targets = torch.arange(200) % 3
    expected = multiclass_calibration_error(probabilities, targets, 3, n_bins=15)
    correct = (probabilities.argmax(1) == targets).numpy()
    found = weighted_calibration_error(probabilities.amax(1).numpy(), correct, np.ones((1, 200)))
    assert found == pytest.approx([expected.item()], abs=1e-6)  # it counts in float32


def test_the_calibration_error_of_weights_is_that_of_repeated_rows_bin_by_bin():
    random = np.random.default_rng(5)
    confidence, correct, weights = random.random(50), random.random(50) < 0.5, weights_for(50, 2)
    for found, row in zip(weighted_calibration_error(confidence, correct, weights), weights, strict=True):
        sure, right = (np.repeat(values, row.astype(int)) for values in (confidence, correct))
        error = 0.0
        for lower in range(15):
            held = (sure > lower / 15) & (sure <= (lower + 1) / 15)
            if held.any():
                error += held.mean() * abs(right[held].mean() - sure[held].mean())
        assert found == pytest.approx(error)


def test_a_confidence_of_exactly_one_shares_the_last_bin():
    """torchmetrics has a sixteenth bin for it: there 0.98, right, and 1, wrong, would not make up for each other."""
    confidence, correct = np.array([0.98, 1.0]), np.array([True, False])
    assert weighted_calibration_error(confidence, correct, np.ones((1, 2))) == pytest.approx([0.98 / 2])


def test_the_weighted_mean_leaves_out_what_is_not_defined():
    values = np.array([[1.0, np.nan], [4.0, 2.0], [np.nan, np.nan]])
    weights = np.array([[1.0, 0, 5], [2, 1, 0], [0, 0, 1]])
    expected = np.array([[1, np.nan], [2, 2], [np.nan, np.nan]])
    assert weighted_mean(values, weights) == pytest.approx(expected, nan_ok=True)


def test_each_resample_draws_as_many_clusters_as_there_are_each_equally_often():
    drawn = counts(resamples=4000)
    assert (drawn.sum(1) == len(NAMES)).all()
    assert drawn.mean(0) == pytest.approx(np.ones(len(NAMES)), abs=0.08)
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 12) ** 12, abs=0.01)


def test_the_draws_depend_on_names_and_seed_alone(monkeypatch):
    assert (counts() == counts()).all()
    assert (counts(resamples=30) == counts(resamples=70)[:30]).all()
    assert (counts() != counts(seed=1)).any()
    assert (counts() != counts(names=tuple(f"other {name}" for name in NAMES))).any()
    whole = counts()
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 40)  # blocks of three resamples, then of two
    assert [len(block) for block in resampled(NAMES, 7, 0)] == [3, 3, 1]
    assert (counts() == whole).all()
    assert (counts(width=20) == whole).all()


def test_the_interval_holds_the_middle_95_percent():
    shuffled = np.random.default_rng(0).permutation(2001) / 2000
    assert interval(shuffled) == pytest.approx((0.025, 0.975))


@pytest.mark.parametrize(("undefined", "given"), [(0, True), (50, True), (51, False), (1000, False)])
def test_there_is_no_interval_where_more_than_five_percent_are_not_defined(undefined, given):
    values = np.linspace(0, 1, 1000)
    values[:undefined] = np.nan
    assert (interval(values) is not None) == given


def test_there_is_no_interval_of_nothing():
    assert interval(np.empty(0)) is None


def test_the_interval_of_a_mean_covers_the_true_mean_about_95_times_in_100():
    """200 samples of 40 normal numbers: 2.2 % standard error, and a percentile interval of 40 is a little narrow."""
    random = np.random.default_rng(11)
    names = tuple(f"{number:02}" for number in range(40))
    covered = 0
    for sample in range(200):
        values = random.normal(3.0, 2.0, (40, 1))
        low, high = interval(weighted_mean(values, counts(names, 400, seed=sample))[:, 0])
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.98
