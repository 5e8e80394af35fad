"""The sentences beyond one batch size, one amount of data, one depth and one hospital, number by number."""

import pytest

from mednorm.study.summary import estimate
from tests.unit.study.made import epoch, run, said, study_of

SEEDS = range(3)


def near(value, seed):
    """Something close to a value, another for each seed."""
    return value + seed**2 / 1000


def test_running_statistics_are_compared_with_batch_statistics_at_every_batch_size():
    def judged(size, running, batch):
        return [
            run("batch", seed, size=size, test=running, batch_metrics={"test_auc": near(batch, seed)}) for seed in SEEDS
        ]

    small, base = said([*judged(8, 0.9, 0.9), *judged(1, 0.6, 0.85)], "modes")
    label = "Batch normalization trained at batch size {}, running against batch statistics in evaluation: test AUC "
    assert small.text.startswith(label.format(1) + "0.600 against 0.852, difference −0.252 [")
    assert small.verdict == "worse"
    assert base.text.startswith(label.format(8) + "0.900 against 0.902")
    assert small.difference == estimate(0.6 - near(0.85, seed) for seed in SEEDS)


def test_nothing_is_said_of_modes_where_no_arm_has_two():
    assert said([run(norm, seed) for norm in ("none", "batch") for seed in SEEDS], "modes") == []


def shared(norm, share, train, test):
    return [run(norm, seed, train_share=share, train=train, test=near(test, seed)) for seed in SEEDS]


def test_gap_and_quality_are_compared_on_less_data_and_the_whole_is_left_to_other_sentences():
    runs = [
        *shared("none", 1.0, 0.9, 0.8), *shared("batch", 1.0, 0.9, 0.85),
        *shared("none", 0.1, 0.99, 0.6), *shared("batch", 0.1, 0.97, 0.75),
    ]  # fmt: skip
    runs[-1] = run("batch", 2, train_share=0.1, train=0.97, test=0.76)
    gap, quality = [s for s in said(runs, "overfitting") if "10%" in s.text]
    assert gap.text.startswith(
        "With 10% of the training images, generalization gap of batch normalization against none: "
        "training minus test AUC 0.216 against 0.388, difference −0.172 ["
    )
    assert (gap.verdict, gap.text.rpartition(": ")[2]) == ("info", "smaller.")
    assert quality.text.startswith(
        "With 10% of the training images, batch normalization against none: test AUC 0.754 against 0.602, "
        "difference +0.152 ["
    )
    assert quality.verdict == "better"
    assert len(said(runs, "overfitting")) == 3


def test_a_share_is_of_patients_where_they_are_known():
    runs = [*shared("none", 1.0, 0.9, 0.8), *shared("none", 0.3, 0.9, 0.7), *shared("batch", 0.3, 0.9, 0.7)]
    data = study_of(runs).data.model_copy(update={"patients": {"train": 30, "test": 10}})
    assert all("30% of the training patients" in s.text for s in said(runs, "overfitting", data=data))


def deep(norm, network, initial, first, test):
    return [
        run(
            norm, seed, network=network, test=near(test, seed),
            initial_gradient_norms={"a": near(initial, seed), "b": 1.0},
            epochs=[epoch(1, 0.5, gradients={"a": near(first, seed), "b": 2.0})],
        )
        for seed in SEEDS
    ]  # fmt: skip


def test_gradients_at_the_start_and_later_and_quality_are_compared_in_the_deeper_network():
    runs = [
        *deep("none", "net", 0.1, 0.2, 0.8), *deep("batch", "net", 0.1, 0.2, 0.8),
        *deep("none", "net_deep", 0.001, 0.04, 0.6), *deep("batch", "net_deep", 0.5, 1.0, 0.9),
    ]  # fmt: skip
    runs[-1] = runs[-1].model_copy(update={"initial_gradient_norms": {"a": 0.51, "b": 1.0}})
    runs[-2] = run(
        "batch", 1, network="net_deep", test=0.905, initial_gradient_norms={"a": 0.5, "b": 1.0},
        epochs=[epoch(1, 0.5, gradients={"a": 1.1, "b": 2.0})],
    )  # fmt: skip
    start, later, quality = [s for s in said(runs, "gradients") if "net_deep" in s.text]
    place = "In net_deep, weakest to strongest layer's gradient norm, "
    assert start.text.startswith(f"{place}first step, batch normalization against none: orders of magnitude 0.29")
    assert later.text.startswith(f"{place}first epoch, batch normalization against none: orders of magnitude 0.28")
    assert (start.verdict, start.text.rpartition(": ")[2]) == ("info", "smaller.")
    assert quality.text.startswith(
        "In net_deep, batch normalization against none: test AUC 0.903 against 0.602, difference +0.301 ["
    )
    assert quality.verdict == "better"


def test_a_study_of_one_network_says_nothing_of_depth():
    runs = [*deep("none", "net", 0.1, 0.2, 0.8), *deep("batch", "net", 0.1, 0.2, 0.8)]
    assert not [s for s in said(runs) if s.text.startswith("In ")]
    assert len(said(runs, "gradients")) == 2


def at_sites(norm, **sites):
    return [
        run(norm, seed, sites={name: {"test_auc": near(value, seed)} for name, value in sites.items()})
        for seed in SEEDS
    ]


def test_every_norm_is_compared_at_every_site():
    runs = [*at_sites("none", A=0.8, B=0.7), *at_sites("batch", A=0.9, B=0.7), *at_sites("group", A=0.6, B=0.7)]
    runs[3] = run("batch", 0, sites={"A": {"test_auc": 0.905}, "B": {"test_auc": 0.69}})
    texts = [s.text for s in said(runs, "sites")]
    assert [text.split(":")[0] for text in texts] == [
        f"At site {site}, {norm} normalization against none" for norm in ("batch", "group") for site in "AB"
    ]
    assert "test AUC 0.903 against 0.802" in texts[0]
    assert texts[0].endswith(": better.")
    assert texts[1].endswith(": not distinguishable.")


def test_of_one_site_nothing_more_is_said_than_of_all_images():
    assert said([*at_sites("none", A=0.8), *at_sites("batch", A=0.9)], "sites") == []


def test_a_site_that_only_some_runs_were_tested_at_is_compared_where_both_were():
    runs = [*at_sites("none", A=0.8, B=0.7), *at_sites("batch", A=0.9)]
    assert [s.text.split(",")[0] for s in said(runs, "sites")] == ["At site A"]


@pytest.mark.parametrize("size", [1, 8])
def test_batch_normalization_is_compared_with_group_normalization_at_every_size(size):
    runs = [run(n, seed, size=s, test=near(0.8, seed)) for n in ("batch", "group") for s in (8, 1) for seed in SEEDS]
    label = f"Batch normalization against group normalization at batch size {size}: "
    assert [s.text for s in said(runs, "batch_size") if s.text.startswith(label)]


def test_each_norm_is_compared_with_itself_at_the_base_batch_size():
    runs = [run("batch", seed, size=s, test=near(v, seed)) for s, v in ((8, 0.9), (1, 0.6)) for seed in SEEDS]
    (only,) = [s for s in said(runs, "batch_size") if " against 8: " in s.text]
    assert only.text.startswith("Batch normalization at batch size 1 against 8: test AUC 0.602 against 0.902")


def test_arms_that_could_not_be_trained_are_said_with_the_reason():
    (only,) = said([run()], "data", left_out={"batch, batch size 1": "more than 1 value per channel is needed"})
    assert only.text == "Left out: batch, batch size 1: more than 1 value per channel is needed"


def test_a_norm_that_could_not_be_trained_at_the_base_batch_size_reached_no_target():
    """The other arm's count was once said to be its."""
    runs = [run("none", seed, vals=(0.1,)) for seed in SEEDS]
    assert said(runs, "speed", target=0.8, norms=["none", "batch"]) == []
    assert said([run("group", size=8)], "speed", target=0.8, norms=["batch", "group"], base_batch_size=1) == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("none", "All arms share one learning rate"),
        ("sqrt", "grows with the square root of"),
        ("linear", "grows with the batch size,"),
    ],
)
def test_how_the_learning_rate_grows_is_said(rule, words):
    assert words in said([run()], "caution", settings={"scale_learning_rate": rule})[-1].text


def test_a_diverged_fold_is_named_by_its_run():
    from mednorm.study.arms import Arm, Trial
    from mednorm.study.statements import statements
    from mednorm.study.summary import summarize

    lost = run("none", status="diverged", metrics=dict.fromkeys(["train_auc", "val_auc", "test_auc"]))
    arms = {Arm("none", "none", 8): {0: Trial(lost, ("fold one", "fold two"), diverged=("fold two",))}}
    texts = [s.text for s in statements(study_of([lost]), arms, summarize(arms, "auc"), ["test_auc"])]
    assert [text for text in texts if "stopped being a number in fold two." in text]
