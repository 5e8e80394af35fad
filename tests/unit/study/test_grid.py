"""The arms of a study and the runs that follow from them."""

import pytest

from mednorm.study.arms import Arm
from mednorm.tasks import find_task
from tests.studies import prepared_lung, write_patients
from tests.unit.study.made import settings


@pytest.fixture(scope="module")
def prepared(lung_npz):
    return prepared_lung(lung_npz)


def arm(norm, regularizer="none", size=8, network="article_cnn", share=1.0):
    return Arm(norm, regularizer, size, network, share)


def names(made, prepared, left_out=()):
    return [run.name for run in made.runs(prepared, dict.fromkeys(left_out, "why"))]


def test_the_star_varies_one_thing_at_a_time():
    assert settings().arms() == [
        arm("none"), arm("batch"), arm("group"), arm("none", "l2"), arm("batch", "l2"),
        arm("none", size=2), arm("batch", size=2), arm("group", size=2),
    ]  # fmt: skip


def test_the_star_with_every_axis_has_each_arm_once():
    """Three norms; two more regularizers, two more shares and the deeper network for two norms each; two sizes."""
    arms = settings(
        regularizers=["none", "l1", "l2"], train_shares=[0.1, 0.3, 1.0], deeper=True, batch_sizes=[1, 8, 32]
    ).arms()
    assert len(arms) == len(set(arms)) == 3 + 2 * 2 + 2 * 2 + 1 * 2 + 2 * 3
    base = arm("none")
    apart = [sum(mine != theirs for mine, theirs in zip(each[1:], base[1:], strict=True)) for each in arms]
    assert max(apart) == 1, "but for the norm, an arm differs from the base in one thing"
    assert {each.norm for each in arms if each.train_share < 1 or each.network != "article_cnn"} == {"none", "batch"}


def test_other_batch_sizes_are_trained_with_the_norms_asked_for():
    arms = settings(batch_sizes=[1, 8, 32], batch_size_norms=["batch", "group"]).arms()
    assert {each.norm for each in arms if each.batch_size != 8} == {"batch", "group"}
    assert {each.norm for each in arms if each.batch_size == 8} == {"none", "batch", "group"}


def test_norms_of_the_batch_sizes_need_not_be_among_those_of_the_base():
    arms = settings(norms=["none"], regularizers=["none"], batch_size_norms=["batch"]).arms()
    assert arms == [arm("none"), arm("batch", size=2)]


def test_the_full_grid_is_every_combination_once_and_begins_with_the_star():
    arms = settings(grid="full").arms()
    every = {arm(n, r, b) for n in ("none", "batch", "group") for r in ("none", "l2") for b in (2, 8)}
    assert (set(arms), len(arms)) == (every, 12)
    assert arms[:8] == settings().arms()


def test_without_an_arm_free_of_regularizers_the_first_takes_its_place():
    arms = settings(regularizers=["l2", "dropout"], norms=["batch"], batch_sizes=[8]).arms()
    assert arms == [arm("batch", "l2"), arm("batch", "dropout")]


def test_the_star_applies_regularizers_to_all_norms_where_neither_none_nor_batch_is_studied():
    arms = settings(norms=["group", "instance"], batch_sizes=[8]).arms()
    assert arms == [arm("group"), arm("instance"), arm("group", "l2"), arm("instance", "l2")]


def test_a_network_with_a_deeper_variant_is_trained_as_both():
    made = settings(deeper=True)
    assert made.networks() == ["article_cnn", "article_cnn_deep"]
    assert [each.norm for each in made.arms() if each.network == "article_cnn_deep"] == ["none", "batch"]


def test_a_network_without_a_deeper_variant_is_trained_alone():
    made = settings(deeper=True, network="article_cnn_deep")
    assert made.networks() == ["article_cnn_deep"]
    assert {each.network for each in made.arms()} == {"article_cnn_deep"}


def test_the_deeper_variant_is_trained_only_where_it_is_asked_for():
    assert settings().networks() == ["article_cnn"]


def test_all_arms_run_with_one_seed_before_the_next(prepared):
    made = settings(norms=["none", "batch"], regularizers=["none"], seeds=[5, 3])
    assert names(made, prepared) == [
        "none-none-b8-s5", "batch-none-b8-s5", "none-none-b2-s5", "batch-none-b2-s5",
        "none-none-b8-s3", "batch-none-b8-s3", "none-none-b2-s3", "batch-none-b2-s3",
    ]  # fmt: skip


def test_all_arms_run_on_one_fold_before_the_next(tmp_path):
    prepared = find_task("heart").prepare(str(write_patients(tmp_path)), folds=2)
    made = settings(
        task="heart", norms=["none", "batch"], regularizers=["none"], batch_sizes=[8], folds=2, seeds=[0, 1]
    )
    assert names(made, prepared) == [
        f"{norm}-none-b8-s{seed}-f{fold}of2" for seed in (0, 1) for fold in (1, 2) for norm in ("none", "batch")
    ]


def test_every_run_of_a_study_has_a_name_of_its_own(prepared):
    made = settings(train_shares=[0.1, 0.3, 1.0], deeper=True, grid="full")
    found = names(made, prepared)
    assert len(found) == len(set(found)) == 2 * len(made.arms())


def test_arms_that_are_left_out_do_not_run(prepared):
    made = settings(regularizers=["none"], seeds=[0])
    left = names(made, prepared, left_out=[arm("batch", size=2)])
    assert left == [name for name in names(made, prepared) if name != "batch-none-b2-s0"]


def test_every_run_shares_the_settings_of_the_study_and_knows_its_classes_and_data(prepared):
    shared = {"learning_rate": 0.5, "optimizer": "sgd", "dropout": 0.125, "l1": 0.5, "epochs": 9}
    for run in settings(**shared).runs(prepared, {}):
        assert {key: getattr(run, key) for key in shared} == shared
        assert (run.classes, run.image_size, run.digest) == (["normal", "pneumonia"], [12, 12], prepared.digest)
        assert (run.network, run.train_share, run.fold, run.deeper) == ("article_cnn", 1.0, "", False)


def test_a_run_of_the_deeper_network_says_so(prepared):
    made = settings(deeper=True, norms=["none"], regularizers=["none"], batch_sizes=[8], seeds=[0])
    plain, deep = made.runs(prepared, {})
    assert (plain.network, plain.deeper, deep.network, deep.deeper) == ("article_cnn", False, "article_cnn_deep", True)


@pytest.mark.parametrize(
    ("rule", "rates"),
    [
        ("none", {2: 0.1, 8: 0.1, 32: 0.1}),
        ("sqrt", {2: 0.05, 8: 0.1, 32: 0.2}),
        ("linear", {2: 0.025, 8: 0.1, 32: 0.4}),
    ],
)
def test_the_learning_rate_grows_with_the_batch_size_from_the_base_on(prepared, rule, rates):
    made = settings(batch_sizes=[2, 8, 32], learning_rate=0.1, scale_learning_rate=rule)
    runs = made.runs(prepared, {})
    assert {run.batch_size: run.learning_rate for run in runs} == pytest.approx(rates)
    assert {run.learning_rate for run in runs if run.batch_size == 8} == {0.1}, "not changed by a rounding error"
