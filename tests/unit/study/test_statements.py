import re

import pytest

from mednorm.results import Estimate
from mednorm.study.speaker import NAMES, verdict
from mednorm.study.statements import statements
from mednorm.study.summary import estimate, summarize
from mednorm.training.settings import Norm
from tests.unit.study.made import arm, arms_of, epoch, run, said, study_of

CLEAR = [0.90, 0.91, 0.92], [0.80, 0.81, 0.825]


def interval(low, high):
    return Estimate(n=3, mean=(low + high) / 2, std=0.1, low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "larger_is_better", "expected"),
    [
        (0.01, 0.05, True, "better"),
        (0.01, 0.05, False, "worse"),
        (-0.05, -0.01, True, "worse"),
        (-0.05, -0.01, False, "better"),
        (-0.01, 0.05, True, "not distinguishable"),
        (0.0, 0.05, True, "not distinguishable"),
        (-0.05, 0.0, False, "not distinguishable"),
    ],
)
def test_only_an_interval_without_zero_distinguishes(low, high, larger_is_better, expected):
    assert verdict([interval(low, high)], larger_is_better) == expected


def test_a_single_seed_distinguishes_nothing_however_large_the_difference():
    assert verdict([Estimate(n=1, mean=0.9), None], True) == "not distinguishable"
    (only,) = said([run("none", test=0.2), run("batch", test=0.99)], "quality")
    assert only.verdict == "not distinguishable"
    assert only.text.endswith("difference +0.790 in one seed: not distinguishable.")


def test_a_better_norm_is_said_with_both_means_the_difference_and_its_interval():
    batch, none = CLEAR
    (only,) = said([*arm("none", none), *arm("batch", batch)], "quality")
    difference = estimate(a - b for a, b in zip(batch, none, strict=True))
    assert only.verdict == "better"
    assert only.difference == difference
    assert only.text == (
        "Batch normalization against none at batch size 8: test AUC 0.910 against 0.812, difference "
        f"+{difference.mean:.3f} [+{difference.low:.3f}, +{difference.high:.3f}] over 3 paired seeds: better."
    )


def test_a_worse_norm_is_said_to_be_worse_with_a_true_minus():
    none, batch = CLEAR
    (only,) = said([*arm("none", none), *arm("batch", batch)], "quality")
    assert only.verdict == "worse"
    assert only.text.endswith(": worse.")
    assert "difference −0.098 [−0." in only.text


def test_no_statement_writes_a_minus_as_a_hyphen():
    runs = [
        *arm("none", [0.9, 0.7, 0.8], train=0.6), *arm("batch", [0.5, 0.4, 0.6], train=0.1, seconds_per_step=0.01),
        *arm("none", [0.9, 0.7, 0.8], size=2), *arm("batch", [0.5, 0.4, 0.6], size=2),
        *arm("none", [0.9, 0.7, 0.8], regularizer="dropout+l2"),
        *arm("batch", [0.4, 0.4, 0.6], regularizer="dropout+l2"),
    ]  # fmt: skip
    texts = [statement.text for statement in said(runs, target=-0.5)]
    assert sum("−" in text for text in texts) > 5
    assert [text for text in texts if re.search(r"-\d", text)] == []


def test_every_norm_that_was_trained_gets_a_sentence_and_no_other():
    runs = [*arm("none", [0.8, 0.8]), *arm("group", [0.9, 0.8]), *arm("instance", [0.7, 0.8])]
    texts = [statement.text for statement in said(runs, "quality")]
    assert [text.split(" against")[0] for text in texts] == ["Group normalization", "Instance normalization"]
    assert not any("atch normalization" in statement.text for statement in said(runs))


def test_every_headline_metric_gets_a_sentence_the_main_one_first_and_single_classes_none():
    def with_metrics(norm, seed, value):
        metrics = {"test_accuracy": value / 2, "val_auc": 0.5, "test_auc": value, "test_auc_left": 0.1}
        return run(norm, seed, metrics=metrics | {"train_auc": value})

    runs = [with_metrics(n, s, v + s / 100) for n, v in (("none", 0.8), ("batch", 0.9)) for s in range(2)]
    texts = [statement.text for statement in said(runs, "quality")]
    assert [text.split(": ")[1].split(" against")[0] for text in texts] == ["test AUC 0.905", "test accuracy 0.453"]


def test_a_study_without_the_reference_compares_nothing_with_it():
    statements = said([*arm("batch", [0.8, 0.9]), *arm("group", [0.9, 0.8])])
    assert not any("against" in statement.text for statement in statements)
    assert {statement.topic for statement in statements} == {"caution"}


def test_a_study_of_the_reference_alone_compares_nothing():
    assert {statement.topic for statement in said(arm("none", [0.8, 0.9]))} == {"caution"}


def test_every_norm_of_the_settings_has_a_name():
    assert set(NAMES) == set(Norm.__args__)


def timed(norm, epochs, **changed):
    """One run a seed that reaches 0.8 in this epoch (None: never)."""
    return [
        run(norm, seed, vals=tuple(0.9 if reached and number >= reached else 0.1 for number in range(1, 9)), **changed)
        for seed, reached in enumerate(epochs)
    ]


def test_fewer_epochs_to_the_target_are_better_and_so_are_fewer_seconds():
    epochs, seconds = said([*timed("none", [6, 7, 6]), *timed("batch", [2, 2, 3])], "speed", target=0.8)
    assert (epochs.verdict, seconds.verdict) == ("better", "better")
    assert epochs.text.startswith(
        "To reach validation AUC 0.800, batch normalization against none: epochs 2.3 against 6.3, "
        "difference −4.0 [−6.5, −1.5] over 3 paired seeds"
    )
    # Each of these epochs takes two seconds.
    assert "seconds 4.7 against 12.7, difference −8.0 [−13.0, −3.0]" in seconds.text


def test_more_epochs_to_the_target_are_worse():
    epochs, _ = said([*timed("none", [2, 2, 3]), *timed("batch", [6, 7, 6])], "speed", target=0.8)
    assert epochs.verdict == "worse"


def test_where_a_seed_missed_the_target_it_is_said_and_not_judged():
    (only,) = said([*timed("none", [2, None, 3]), *timed("batch", [1, 1, 1])], "speed", target=0.8)
    assert (only.verdict, only.difference) == ("info", None)
    assert only.text == (
        "To reach validation AUC 0.800: batch normalization did in 3 of 3 seeds, no normalization in 2. "
        "Epochs cannot be compared fairly."
    )


def test_without_the_reference_only_a_missed_target_is_said():
    assert said(timed("batch", [1, 2]), "speed", target=0.8) == []
    (only,) = said(timed("batch", [1, None]), "speed", target=0.8)
    assert only.text == "To reach validation AUC 0.800: batch normalization did in 1 of 2 seeds."


def test_seeds_that_all_agree_give_no_interval_and_are_not_distinguished():
    epochs, _ = said([*timed("none", [4, 4, 4]), *timed("batch", [2, 2, 2])], "speed", target=0.8)
    assert epochs.verdict == "not distinguishable"
    assert "difference −2.0 over 3 paired seeds, the same in all: not distinguishable." in epochs.text


def test_without_a_target_nothing_is_said_of_speed():
    runs = [run("none", 0, vals=(None,)), run("batch", 0, vals=(0.9,))]
    assert said(runs, "speed") == []


@pytest.mark.parametrize(("norm", "word", "difference"), [("batch", "smaller", "−0.139"), ("none", "larger", "+0.139")])
def test_the_generalization_gap_is_told_as_a_size_and_not_as_a_merit(norm, word, difference):
    other = "none" if norm == "batch" else "batch"
    runs = [
        *(run(other, seed, train=0.99, test=0.80 + 0.001 * seed) for seed in range(3)),
        *(run(norm, seed, train=0.95, test=0.90 - 0.001 * seed) for seed in range(3)),
    ]
    (only,) = said(runs, "overfitting")
    assert only.verdict == "info"
    assert only.text.startswith("Generalization gap of batch normalization against none: training minus test AUC")
    assert only.text.endswith(f"over 3 paired seeds: {word}.")
    assert only.difference.mean == pytest.approx(float(difference.replace("−", "-")), abs=2e-3)


def test_gaps_that_cannot_be_told_apart_are_said_to_be_so():
    runs = [*arm("none", [0.8, 0.9, 0.7], train=0.95), *arm("batch", [0.9, 0.7, 0.8], train=0.95)]
    (only,) = said(runs, "overfitting")
    assert only.verdict == "not distinguishable"


def test_a_longer_step_is_worse_and_a_shorter_one_better():
    def with_steps(batch):
        return [
            run(norm, seed, seconds_per_step=seconds)
            for norm, steps in (("none", [0.0100, 0.0101, 0.0102]), ("batch", batch))
            for seed, seconds in enumerate(steps)
        ]

    (slower,) = said(with_steps([0.0151, 0.0152, 0.0150]), "cost")
    (faster,) = said(with_steps([0.0051, 0.0052, 0.0050]), "cost")
    assert (slower.verdict, faster.verdict) == ("worse", "better")
    assert "milliseconds 15.1 against 10.1, difference +5.0 [" in slower.text


def test_relatives_of_batch_normalization_are_compared_with_it_wherever_both_were_trained():
    runs = [
        *arm("batch", [0.80, 0.81]), *arm("moving", [0.80, 0.82]), *arm("domain", [0.7, 0.7]),
        *arm("batch", [0.60, 0.61], size=2), *arm("moving", [0.70, 0.711], size=2),
    ]  # fmt: skip
    found = [s for s in said(runs, "batch_size") if "against batch normalization" in s.text]
    assert [s.text.split(":")[0] for s in found] == [
        "Moving batch normalization against batch normalization at batch size 2",
        "Moving batch normalization against batch normalization at batch size 8",
        "Batch normalization by site against batch normalization at batch size 8",
    ]
    assert found[0].difference.mean == pytest.approx(0.1005)
    assert [s.verdict for s in found] == ["better", "not distinguishable", "worse"]


def test_the_batch_size_is_chosen_by_validation_and_not_by_test():
    runs = [
        *arm("none", [0.5, 0.5]), *arm("batch", [0.99, 0.99], vals=(0.6,)),
        *arm("none", [0.5, 0.5], size=2), *arm("batch", [0.70, 0.70], vals=(0.9,), size=2),
    ]  # fmt: skip
    texts = [statement.text for statement in said(runs, "batch_size")]
    expected = "With batch normalization, validation chooses batch size 2 of 2, 8; test AUC there is 0.700."
    assert expected in texts
    assert [text for text in texts if text.startswith("Batch normalization against none at batch size 2:")]
    assert not [text for text in texts if "at batch size 8" in text]


def test_one_batch_size_gives_no_sentence_about_batch_sizes():
    assert said([*arm("none", [0.8, 0.9]), *arm("batch", [0.8, 0.9])], "batch_size") == []


def test_batch_normalization_is_compared_with_each_regularizer_and_with_both():
    runs = [
        *arm("none", [0.5, 0.5, 0.5]), *arm("batch", [0.80, 0.81, 0.82]),
        *arm("none", [0.70, 0.70, 0.71], regularizer="l2"), *arm("batch", [0.60, 0.61, 0.60], regularizer="l2"),
    ]  # fmt: skip
    against, adding = said(runs, "regularizer")
    assert against.text.startswith("Batch normalization against l2: test AUC 0.810 against 0.703, difference +0.107")
    assert against.verdict == "better"
    assert adding.text.startswith("Adding l2 to batch normalization: test AUC 0.603 against 0.810, difference −0.207")
    assert adding.verdict == "worse"


def test_the_spread_of_gradients_is_compared_as_a_size_and_not_as_a_merit():
    def with_ratio(norm, seed, ratio):
        return run(norm, seed, epochs=[epoch(1, 0.5, gradients={"a": ratio, "b": 1.0})])

    runs = [with_ratio(n, s, r + s / 1000) for n, r in (("none", 0.01), ("batch", 0.25)) for s in range(3)]
    runs[0] = with_ratio("none", 0, 0.0105)
    (only,) = said(runs, "gradients")
    assert only.verdict == "info"
    # log10 of 1/0.25, 1/0.251, 1/0.252 and of 1/0.0105, 1/0.011, 1/0.012
    assert "orders of magnitude 0.600 against 1.953, difference −1.352 [" in only.text
    assert only.text.endswith(": smaller.")


def test_without_gradients_nothing_is_said_of_them():
    assert said([run(norm, epochs=[epoch(1, 0.5, gradients={})]) for norm in ("none", "batch")], "gradients") == []


def test_a_diverged_run_is_named():
    lost = run("none", 1, status="diverged", metrics=dict.fromkeys(["train_auc", "val_auc", "test_auc"]))
    cautions = said([run("none", 0), lost, *arm("batch", [0.8, 0.9])], "caution")
    (about,) = [statement for statement in cautions if "stopped being a number" in statement.text]
    assert about.verdict == "worse"
    assert "in none-none-b8-s1." in about.text
    assert not [s for s in said([run("none", 0), run("batch", 0)], "caution") if "stopped being" in s.text]


def test_a_diverged_seed_leaves_the_pair_out_and_says_how_many_are_left():
    lost = run("none", 1, status="diverged", metrics=dict.fromkeys(["train_auc", "val_auc", "test_auc"]))
    (only,) = said([run("none", 0), lost, run("none", 2), *arm("batch", [0.8, 0.9, 0.85])], "quality")
    assert only.difference.n == 2
    assert "over 2 paired seeds" in only.text


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed is too few"), (2, "2 seeds are too few")])
def test_few_seeds_are_cautioned_about(seeds, words):
    assert [s for s in said([*arm("none", [0.8] * seeds)], "caution") if s.text.startswith(words)]


def test_three_seeds_are_not_too_few():
    assert not [s for s in said(arm("none", [0.8] * 3), "caution") if "too few" in s.text]


def test_many_comparisons_are_cautioned_about():
    few = [*arm("none", [0.8, 0.9]), *arm("batch", [0.8, 0.9])]
    many = [
        each for size in (8, 2, 4) for norm in ("none", "batch", "group") for each in arm(norm, [0.8, 0.9], size=size)
    ]
    assert not [s for s in said(few, "caution") if "of twenty comparisons" in s.text]
    assert [s for s in said(many, "caution") if s.text.startswith("6 arms are compared with no normalization")]


def test_the_note_of_the_data_is_told():
    study = study_of([run()])
    study = study.model_copy(update={"data": study.data.model_copy(update={"note": "One head, no patient."})})
    arms = arms_of([run()])
    texts = [(s.topic, s.text) for s in statements(study, arms, summarize(arms, "auc"), ["test_auc"])]
    assert ("data", "One head, no patient.") in texts


def test_the_shared_learning_rate_is_always_cautioned_about():
    assert said([run()], "caution")[-1].text.startswith("All arms share one learning rate")


def test_several_batch_sizes_are_cautioned_about_with_their_steps():
    runs = [*arm("none", [0.8, 0.9]), *arm("none", [0.8, 0.9], size=32)]
    text = said(runs, "caution")[-1].text  # 800 images, two epochs
    assert text.endswith("A larger batch means fewer steps in as many epochs: 200 at 8, 50 at 32.")


def test_running_statistics_that_had_too_few_steps_are_cautioned_about():
    """After k updates with momentum 0.1, 0.9^k of the initial statistics is left."""
    runs = [*arm("batch", [0.8, 0.9]), *arm("batch", [0.8, 0.9], size=80)]
    (about,) = [s.text for s in said(runs, "caution") if "running statistics" in s.text]
    assert f"({0.9**20:.0%} at batch size 80)" in about
    assert not [s for s in said(arm("batch", [0.8, 0.9]), "caution") if "running statistics" in s.text]
    none = [*arm("none", [0.8, 0.9]), *arm("none", [0.8, 0.9], size=80)]
    assert not [s for s in said(none, "caution") if "running statistics" in s.text]


def test_spreads_of_gradients_that_cannot_be_told_apart_are_said_to_be_so():
    runs = [
        run(norm, seed, epochs=[epoch(1, 0.5, gradients={"a": ratio, "b": 1.0})])
        for norm, ratios in (("none", [0.1, 0.3, 0.2]), ("batch", [0.3, 0.1, 0.25]))
        for seed, ratio in enumerate(ratios)
    ]
    (only,) = said(runs, "gradients")
    assert only.verdict == "not distinguishable"
    assert only.text.endswith("over 3 paired seeds: not distinguishable.")


@pytest.mark.parametrize(("steps", "cautioned"), [(43, True), (44, False)])
def test_the_caution_about_running_statistics_ends_where_one_percent_is_left(steps, cautioned):
    """0.9^43 is 1.08 %, 0.9^44 is 0.97 %."""
    runs = arm("batch", [0.8, 0.9])
    data = study_of(runs).data.model_copy(update={"images": {"train": 15, "val": 1, "test": 1}})  # one step an epoch
    texts = [s.text for s in said(runs, "caution", epochs=steps, data=data) if "running statistics" in s.text]
    assert [("(1% at batch size 8)" in text) for text in texts] == [True] * cautioned


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_sentence_about_a_difference_holds_it_with_its_interval(seeds):
    """The page and the command line print the sentence alone."""
    none, batch = ([value + seed**2 / 100 for seed in range(seeds)] for value in (0.5, 0.8))
    runs = [
        *arm("none", none, train=0.7), *arm("batch", [v + v**2 / 50 for v in batch], train=0.9),
        *arm("none", none, size=2), *arm("batch", [v + v**2 / 50 for v in batch], size=2),
        *arm("none", none, regularizer="l2"), *arm("batch", [v + v**2 / 50 for v in batch], regularizer="l2"),
    ]  # fmt: skip
    told = [statement for statement in said(runs, target=0.7) if statement.difference is not None]
    assert {s.topic for s in told} == {
        "quality", "speed", "batch_size", "regularizer", "overfitting", "gradients", "cost",
    }  # fmt: skip
    for statement in told:
        digits = 1 if statement.topic in ("speed", "cost") else 3
        assert f"difference {statement.difference.text(digits, signed=True)} " in statement.text
