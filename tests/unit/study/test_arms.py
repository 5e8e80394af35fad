"""Runs gathered: the folds of a seed as one trial, the seeds of an arm beside each other."""

import csv

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mednorm.errors import RunError
from mednorm.study.arms import Arm, Trial, mean, trials
from mednorm.study.summary import metric, mode_gap, over_units, pairs, summarize
from mednorm.tasks.outcomes import ClassificationOutcomes
from mednorm.training.disk import BATCH_OUTCOMES, OUTCOMES
from tests.unit.study.made import arms_of, epoch, run

CHANCES = {"1of2": [0.2, 0.6, 0.4, 0.9, 0.1, 0.7], "2of2": [0.75, 0.8, 0.3, 0.35, 0.95, 0.99]}
TARGETS = {"1of2": [0, 0, 1, 1, 0, 1], "2of2": [0, 0, 0, 1, 1, 1]}


def outcomes(fold, chances, *, patients=True):
    count = len(chances)
    who = tuple(f"{fold} p{number // 2}" if patients else None for number in range(count))
    p = np.array(chances)
    return ClassificationOutcomes(
        ("well", "ill"), tuple(f"{fold} image {number}" for number in range(count)), who,
        tuple("north" if number % 3 else "south" for number in range(count)),
        np.array(TARGETS[fold]), np.stack([1 - p, p], 1),
    )  # fmt: skip


def of_fold(folder, fold, norm="batch", seed=0, shift=0.0, **changed):
    """A run of a fold, its outcomes in its folder."""
    made = run(norm, seed, fold=fold, name=f"{norm}-s{seed}-f{fold}", **changed)
    place = folder / "runs" / made.name
    place.mkdir(parents=True)
    table = outcomes(fold, np.array(CHANCES[fold]) * (1 - shift), patients=False)
    (place / "outcomes.csv").write_text(table.to_csv())
    batch = outcomes(fold, np.array(CHANCES[fold])[::-1] * 0.5, patients=False)
    (place / "outcomes-batch-statistics.csv").write_text(batch.to_csv())
    return made


def test_runs_are_grouped_by_arm_and_seed():
    runs = [
        run("none", 0), run("batch", 0), run("batch", 1), run("batch", 0, size=4), run("batch", 0, regularizer="l2"),
        run("batch", 0, network="deep"), run("batch", 0, train_share=0.1),
    ]  # fmt: skip
    grouped = arms_of(runs)
    assert {arm: sorted(seeds) for arm, seeds in grouped.items()} == {
        Arm("none", "none", 8): [0],
        Arm("batch", "none", 8): [0, 1],
        Arm("batch", "none", 4): [0],
        Arm("batch", "l2", 8): [0],
        Arm("batch", "none", 8, "deep"): [0],
        Arm("batch", "none", 8, "", 0.1): [0],
    }
    assert grouped[Arm("batch", "none", 8)][1].run == runs[2]


def both_folds(folder, **second):
    first = of_fold(folder, "1of2", seconds_per_step=0.1, train=0.9, epochs_to_target=2, seconds_to_target=4.0)
    values = {"seconds_per_step": 0.3, "train": 0.7, "epochs_to_target": 4, "seconds_to_target": 2.0} | second
    return [first, of_fold(folder, "2of2", **values)]


def test_the_test_metrics_of_folds_are_those_of_all_their_test_images_together(tmp_path):
    ((seeds),) = trials(both_folds(tmp_path), tmp_path, "image", "").values()
    together, rows = seeds[0].run, []
    for fold in ("1of2", "2of2"):
        with (tmp_path / "runs" / f"batch-s0-f{fold}" / "outcomes.csv").open(newline="") as file:
            rows += list(csv.DictReader(file))
    targets, chances = [int(row["target"]) for row in rows], [float(row["p_ill"]) for row in rows]
    assert len(rows) == 12
    assert together.metrics["test_auc"] == pytest.approx(roc_auc_score(targets, chances))
    apart = [roc_auc_score(TARGETS[fold], CHANCES[fold]) for fold in TARGETS]
    assert together.metrics["test_auc"] != pytest.approx(np.mean(apart)), "not the mean of the folds"
    backwards = [p * 0.5 for fold in ("1of2", "2of2") for p in CHANCES[fold][::-1]]
    assert together.batch_metrics["test_auc"] == pytest.approx(roc_auc_score(targets, backwards))
    north = [row for row in rows if row["site"] == "north"]
    right = [(float(row["p_ill"]) > 0.5) == (row["target"] == "1") for row in north]
    assert together.sites["north"]["test_accuracy"] == pytest.approx(np.mean(right))
    assert set(together.sites) == {"north", "south"}


def test_the_other_numbers_of_folds_are_their_means(tmp_path):
    runs = both_folds(tmp_path, initial_gradient_norms={"a": 3.0})
    runs[0] = runs[0].model_copy(update={"initial_gradient_norms": {"a": 1.0}})
    runs[1] = runs[1].model_copy(update={"epochs": [epoch(1, 0.5, gradients={"first": 1.5, "last": 4.0})]})
    ((seeds),) = trials(runs, tmp_path, "image", "").values()
    together = seeds[0].run
    assert (together.metrics["train_auc"], together.seconds_per_step) == (pytest.approx(0.8), pytest.approx(0.2))
    assert (together.epochs_to_target, together.seconds_to_target) == (3, 3.0)
    assert together.epochs[0].gradient_norms == {"first": 1.0, "last": 3.0}
    assert together.initial_gradient_norms == {"a": 2.0}
    assert (together.fold, together.status, seeds[0].runs) == ("", "finished", ("batch-s0-f1of2", "batch-s0-f2of2"))


def test_folds_that_did_not_all_reach_the_target_reached_it_not_at_all(tmp_path):
    ((seeds),) = trials(both_folds(tmp_path, epochs_to_target=None), tmp_path, "image", "").values()
    assert seeds[0].run.epochs_to_target is None


def test_one_diverged_fold_makes_the_trial_diverged(tmp_path):
    ((seeds),) = trials(both_folds(tmp_path, status="diverged"), tmp_path, "image", "").values()
    assert seeds[0].run.status == "diverged"


def test_a_fold_whose_outcomes_are_gone_is_named(tmp_path):
    runs = both_folds(tmp_path)
    (tmp_path / "runs" / "batch-s0-f2of2" / "outcomes.csv").unlink()
    with pytest.raises(RunError, match=r"expected outcomes\.csv .* every fold, got none in batch-s0-f2of2\. Remove"):
        trials(runs, tmp_path, "image", "")


def test_a_single_run_is_its_own_trial_and_brings_its_bootstrap(tmp_path):
    made = of_fold(tmp_path, "1of2")
    ((seeds),) = trials([made], tmp_path, "image", "images").values()
    trial = seeds[0]
    assert (trial.run, trial.units) == (made, 6)
    assert np.nanmean(trial.draws["test_accuracy"]) == pytest.approx(4 / 6, abs=0.05)
    ((unsampled),) = trials([made], tmp_path, "image", "").values()
    assert unsampled[0].draws == {}


def test_two_arms_on_the_same_images_are_resampled_alike(tmp_path):
    """A network whose every probability is a little lower never differs from its twin in the order of images."""
    runs = [of_fold(tmp_path, "1of2", norm, shift=shift) for norm, shift in (("none", 0), ("batch", 0.1))]
    ours, theirs = (seeds[0].draws["test_auc"] for seeds in trials(runs, tmp_path, "image", "images").values())
    np.testing.assert_array_equal(ours, theirs)


def trial(test, draws, seed=0, units=12):
    return Trial(run(seed=seed, test=test), (), {"test_auc": np.array(draws)}, units)


def test_the_interval_over_patients_is_that_of_the_mean_over_seeds_in_each_resample():
    """Percentiles 2.5 and 97.5 of the numbers 0 to 1000 are 25 and 975."""
    ramp = np.arange(1001) / 1000
    seeds = {0: trial(0.4, ramp), 1: trial(0.6, ramp[::-1].copy() + 0.2)}
    flat = over_units(seeds, "test_auc")
    assert (flat.n, flat.mean, flat.std) == (12, pytest.approx(0.5), None)
    assert (flat.low, flat.high) == (pytest.approx(0.6), pytest.approx(0.6)), "what one seed lost the other won"
    alone = over_units({0: seeds[0]}, "test_auc")
    assert (alone.low, alone.high) == (pytest.approx(0.025), pytest.approx(0.975))


def test_a_difference_over_patients_is_paired_in_each_resample():
    ramp = np.arange(1001) / 1000
    ours, theirs = {0: trial(0.7, ramp + 0.1)}, {0: trial(0.6, ramp), 1: trial(0.1, 0 * ramp)}
    found = over_units(ours, "test_auc", theirs)
    assert (found.n, found.mean, found.low, found.high) == (12, *(pytest.approx(0.1),) * 3)


def test_without_a_bootstrap_in_every_seed_there_is_no_interval_over_patients():
    lost = Trial(run(test=0.5), (), {}, 12)
    assert over_units({0: trial(0.5, [0.5] * 20), 1: lost}, "test_auc") is None
    assert over_units({0: trial(0.5, [0.5] * 20)}, "test_auc", {1: lost}) is None


def test_a_seed_that_lacks_the_metric_is_left_out_as_it_is_of_the_pairs():
    """It once took the interval over patients away, and the verdict rested on the other seeds alone."""
    draws = np.linspace(-0.5, 0.5, 101)
    ours = {0: trial(0.7, draws + 0.7), 1: trial(None, draws)}
    found = over_units(ours, "test_auc", {0: trial(0.6, 0 * draws), 1: trial(0.5, draws)})
    assert (found.mean, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.225), pytest.approx(1.175))


def test_sites_and_batch_mode_have_draws_of_their_own(tmp_path):
    """From the tables of what each run predicted: 12 patients at two sites, batch statistics right once more."""
    truth = np.arange(12) % 2
    rows = {
        "names": tuple(f"i{k}" for k in range(12)), "patients": tuple(f"p{k}" for k in range(12)),
    }  # fmt: skip
    rows["sites"] = tuple("A" if k < 6 else "B" for k in range(12))
    chance = np.where(np.arange(12) == 3, 0.1, truth * 0.8 + 0.1)  # patient 3 is wrong with running statistics
    folder = tmp_path / "runs" / "it"
    folder.mkdir(parents=True)
    for name, p in ((OUTCOMES, chance), (BATCH_OUTCOMES, truth * 0.8 + 0.1)):
        table = ClassificationOutcomes(("a", "b"), **rows, targets=truth, probabilities=np.stack([1 - p, p], 1))
        (folder / name).write_text(table.to_csv())
    metrics = {"test_accuracy": 11 / 12}
    it = run("batch", metrics=metrics, name="it", batch_metrics={"test_accuracy": 1.0},
             sites={"A": {"test_accuracy": 5 / 6}, "B": {"test_accuracy": 1.0}})  # fmt: skip
    ((only,),) = (list(seeds.values()) for seeds in trials([it], tmp_path, "patient", "patients").values())
    assert only.draws["test_accuracy"].mean() == pytest.approx(11 / 12, abs=0.02)
    assert set(only.batch.draws["test_accuracy"]) == {1.0}
    assert set(only.sites["B"].draws["test_accuracy"]) == {1.0}
    assert only.sites["A"].draws["test_accuracy"].mean() == pytest.approx(5 / 6, abs=0.03)
    assert (only.units, only.batch.units, only.sites["A"].units) == (12, 12, 6)


def test_draws_that_are_mostly_not_defined_give_a_mean_without_an_interval():
    found = over_units({0: trial(0.5, [np.nan] * 10 + [0.5] * 90)}, "test_auc")
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_a_summary_pairs_modes_sites_and_patients_with_their_seeds():
    def made(norm, seed, test, draws):
        batch, sites = {"test_auc": test + 0.1}, {"A": {"test_auc": test - 0.1}}
        it = run(norm, seed, test=test, batch_metrics=batch, sites=sites, initial_gradient_norms={"a": test, "b": 2.0})
        return Trial(it, (it.name,), {"test_auc": np.array(draws) + test}, 12)

    spread = np.linspace(-0.1, 0.1, 101)
    arms = {
        Arm(norm, "none", 8): {seed: made(norm, seed, test + seed / 10, spread) for seed in (0, 1)}
        for norm, test in (("none", 0.5), ("batch", 0.75))
    }
    none, batch = summarize(arms, "auc")
    assert none.versus_none_over_units == none.versus_none == {}
    assert batch.batch_metrics["test_auc"].mean == pytest.approx(0.9)
    assert (batch.mode_gap["test_auc"].mean, batch.mode_gap["test_auc"].n) == (pytest.approx(-0.1), 2)
    assert batch.sites["A"]["test_auc"].mean == pytest.approx(0.7)
    assert (batch.over_units["test_auc"].low, batch.over_units["test_auc"].n) == (pytest.approx(0.705), 12)
    paired = batch.versus_none_over_units["test_auc"]
    assert (paired.mean, paired.low, paired.high) == (pytest.approx(0.25),) * 3
    assert batch.initial_gradient_ratio.mean == pytest.approx(0.4)
    assert batch.versus_none["initial_gradient_ratio"].mean == pytest.approx(0.125)
    assert (batch.network, batch.train_share) == ("", 1.0)


def test_an_arm_is_compared_with_none_of_its_own_network_and_share():
    runs = [
        run("none", test=0.5), run("batch", test=0.9, train_share=0.1), run("none", test=0.6, train_share=0.1),
        run("batch", test=0.8, network="deep"),
    ]  # fmt: skip
    _, batch, _, deep = summarize(arms_of(runs), "auc")
    assert batch.versus_none["test_auc"].mean == pytest.approx(0.3)
    assert deep.versus_none == {}


def test_the_mode_gap_is_running_minus_batch_and_not_there_where_either_is_not():
    gap = mode_gap("test_auc")
    assert gap(run(test=0.9, batch_metrics={"test_auc": 0.8})) == pytest.approx(0.1)
    assert gap(run(test=0.9)) is gap(run(test=None, batch_metrics={"test_auc": 0.8})) is None


def test_seeds_are_paired_by_number_and_not_by_place():
    ours = {1: Trial(run(test=0.9), ()), 0: Trial(run(test=0.8), ())}
    theirs = {0: Trial(run(test=0.5), ()), 1: Trial(run(test=0.4), ())}
    assert pairs(ours, theirs, metric("test_auc")) == [(0.8, 0.5), (0.9, 0.4)]


@pytest.mark.parametrize(
    ("values", "every", "expected"),
    [
        ([1.0, None, 3.0], False, 2.0),
        ([1.0, None], True, None),
        ([2, 4], True, 3.0),
        ([None], False, None),
        ([], True, None),
    ],
)
def test_a_mean_is_of_what_is_there_or_of_all_or_nothing(values, every, expected):
    assert mean(values, every=every) == expected
