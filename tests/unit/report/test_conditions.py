"""Conditions: what may be compared, and how it is named."""

from mednorm.report.conditions import Condition, arms_like_base, base, over, seeds_of
from tests.report_fixture import NORMS, make_results


def test_arms_like_the_base_differ_in_the_norm_alone():
    results = make_results(more=True)
    found = arms_like_base(results)
    assert [arm.norm for arm in found] == NORMS
    assert {Condition.of(arm) for arm in found} == {Condition("none", 8, "unet", 1.0)}


def test_a_field_set_free_lets_its_arms_in_and_no_others():
    found = arms_like_base(make_results(more=True), "train_share")
    assert sorted({arm.train_share for arm in found}) == [0.125, 0.5, 1.0]
    assert {(arm.regularizer, arm.batch_size, arm.network) for arm in found} == {("none", 8, "unet")}


def test_a_condition_names_its_network_and_share_only_where_they_are_not_the_base_ones():
    study = make_results(more=True).study
    assert base(study).words(study) == ["no regularizer", "batch size 8"]
    other = Condition("l2", 2, "deeper_unet", 0.125)
    assert other.words(study) == ["l2", "batch size 2", "deeper_unet", "12.5 % of the training patients"]


def test_a_share_counts_images_where_patients_are_not_known():
    study = make_results(more=True).study
    study = study.model_copy(update={"data": study.data.model_copy(update={"patients": {}})})
    assert Condition("none", 8, "unet", 0.5).words(study)[-1] == "50 % of the training images"


def test_seeds_are_counted_once_however_many_folds_each_has():
    results = make_results(more=True, seeds=[0, 1], folds=3)
    assert {len(arm.runs) for arm in results.summary} == {6}
    assert {seeds_of(results, arm) for arm in results.summary} == {2}
    assert (over(results.study), over(make_results().study)) == ("seeds and folds", "seeds")


def test_a_study_that_names_no_network_has_a_base_without_name():
    study = make_results().study.model_copy(update={"networks": []})
    assert base(study) == Condition("none", 8, "", 1.0)
