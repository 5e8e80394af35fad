import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from mednorm.errors import DataError
from mednorm.tasks.bootstrap import interval, resampled
from mednorm.tasks.outcomes import ClassificationOutcomes, SegmentationOutcomes, join

CLASSES = ("well", "ill")


def outcomes(patients, targets, chances, names=None, sites=None):
    """Two classes, from the probability of the second."""
    count, chances = len(targets), np.array(chances, dtype=float)
    names = names or tuple(f"image {number:03}" for number in range(count))
    who = names, tuple(patients or [None] * count), tuple(sites or [None] * count)
    return ClassificationOutcomes(CLASSES, *who, np.array(targets), np.stack([1 - chances, chances], 1))


def random_outcomes(seed, patients=8, images=3):
    """Images of a patient share a target, and know of it by half."""
    random = np.random.default_rng(seed)
    owners = [f"patient {number}" for number in range(patients) for _ in range(images)]
    targets = [number % 2 for number in range(patients) for _ in range(images)]
    return outcomes(owners, targets, 0.5 * random.random(len(targets)) + 0.25 * np.array(targets))


def columns_of(rows):
    values = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def test_the_clusters_are_patients_where_every_row_names_one():
    assert outcomes(["a", "b", "a"], [0, 1, 0], [0, 1, 0]).clusters == ("patients", 2)
    assert outcomes(["a", None, "a"], [0, 1, 0], [0, 1, 0]).clusters == ("images", 3)
    assert outcomes(None, [0, 1], [0, 1], names=("same", "same")).clusters == ("images", 1)
    assert outcomes([], [], []).clusters == ("images", 0)


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_a_replicate_is_the_metric_of_the_rows_that_were_drawn(unit):
    """Brute force: repeat the images, or the patients, as often as they were drawn, and ask scikit-learn."""
    rows = random_outcomes(4)
    found = rows.replicates(unit, 25, seed=3)
    patients = sorted(set(rows.patients))
    (draws,) = resampled(patients, 25, 3)
    for number, drawn in enumerate(draws):
        targets, chances = [], []
        for patient, times in zip(patients, drawn.astype(int), strict=True):
            held = np.array([owner == patient for owner in rows.patients])
            said = rows.probabilities[held, 1]
            said = [said.mean()] if unit == "patient" else said
            targets += [*rows.targets[held][: len(said)]] * times
            chances += [*said] * times
        assert found["accuracy"][number] == pytest.approx(accuracy_score(targets, np.array(chances) > 0.5))
        if len(set(targets)) == 2:
            assert found["auc"][number] == pytest.approx(roc_auc_score(targets, chances))
        else:
            assert np.isnan(found["auc"][number])


def test_two_networks_judged_on_the_same_images_get_the_same_resamples():
    """Both are right about the same images, in another order: every replicate of their accuracy is the same."""
    first = random_outcomes(0)
    right = (first.probabilities[:, 1] > 0.5) == first.targets
    second = outcomes(first.patients, first.targets, np.where(right == (first.targets == 1), 0.9, 0.2))
    second = second.take(np.random.default_rng(1).permutation(len(right)))
    difference = first.replicates("image", 200)["accuracy"] - second.replicates("image", 200)["accuracy"]
    assert np.abs(difference).max() < 1e-12
    assert first.replicates("image", 200)["accuracy"].std() > 0.02
    other_seed = first.replicates("image", 200, seed=1)["accuracy"]
    assert (first.replicates("image", 200)["accuracy"] != other_seed).any()


@given(st.integers(0, 10_000))
def test_patients_whose_images_agree_make_the_interval_wider_than_images_would(seed):
    """Four copies of each patient's image: resampling images counts every patient as four witnesses."""
    random = np.random.default_rng(seed)
    right = np.repeat(random.permutation([True] * 8 + [False] * 4), 4)
    targets = np.repeat(np.arange(12) % 2, 4)
    chances = np.where(right == (targets == 1), 0.9, 0.1)
    by_patient = outcomes([f"patient {number // 4}" for number in range(48)], targets, chances)
    by_image = dataclasses.replace(by_patient, patients=(None,) * 48)
    wide, narrow = (rows.replicates("image", 300)["accuracy"].std() for rows in (by_patient, by_image))
    assert wide / narrow == pytest.approx(2, rel=0.35)  # √4
    assert by_patient.metrics("image") == by_image.metrics("image")


def test_a_resample_without_a_class_has_no_auc_and_too_many_of_them_no_interval():
    rows = outcomes(None, [0] * 11 + [1], np.linspace(0, 1, 12))
    found = rows.replicates("image", 500)
    assert np.isnan(found["auc"]).mean() == pytest.approx((11 / 12) ** 12, abs=0.06)
    assert interval(found["auc"]) is None
    assert interval(found["accuracy"]) is not None


@pytest.mark.parametrize(("patients", "known"), [(1, False), (4, False), (5, True)])
def test_fewer_than_five_clusters_give_no_interval(patients, known):
    found = random_outcomes(0, patients, images=6).replicates("image", 50)["accuracy"]
    assert len(found) == 50
    assert (interval(found) is not None) == known


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_nothing_and_what_is_no_number_have_neither_metrics_nor_replicates(unit):
    nothing, broken = outcomes([], [], []), random_outcomes(0)
    broken.probabilities[2] = np.nan
    for rows in (nothing, broken):
        assert set(rows.metrics(unit).values()) == {None}
        found = rows.replicates(unit, 20)
        assert list(found) == list(rows.metrics(unit))
        assert all(np.isnan(values).all() and len(values) == 20 for values in found.values())


def test_rows_of_one_class_have_an_accuracy_with_an_interval_and_no_auc():
    rows = outcomes(None, [0] * 10, np.linspace(0, 1, 10))
    found = rows.replicates("image", 100)
    assert (rows.metrics("image")["auc"], rows.metrics("image")["accuracy"]) == (None, 0.5)
    assert np.isnan(found["auc"]).all()
    low, high = interval(found["accuracy"])
    assert 0.1 <= low < 0.5 < high <= 0.9


def test_take_chooses_rows_in_the_order_given_by_number_or_by_mask():
    rows = outcomes(["a", "b", "c"], [0, 1, 0], [0.1, 0.2, 0.3], sites=["x", "y", None])
    chosen = rows.take([2, 0])
    assert (chosen.names, chosen.patients, chosen.sites) == (("image 002", "image 000"), ("c", "a"), (None, "x"))
    assert (chosen.targets.tolist(), chosen.probabilities[:, 1].tolist()) == ([0, 0], [0.3, 0.1])
    assert rows.take(np.array([False, True, False])).names == ("image 001",)
    assert rows.take([]).names == ()


def test_by_site_sorts_the_sites_and_leaves_out_rows_without_one():
    rows = outcomes(None, [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.9], sites=["oslo", None, "kyiv", "oslo"])
    parts = rows.by_site()
    assert {site: part.names for site, part in parts.items()} == {
        "kyiv": ("image 002",),
        "oslo": ("image 000", "image 003"),
    }
    assert list(parts) == ["kyiv", "oslo"]
    assert parts["oslo"].metrics("image")["auc"] == 1.0
    assert outcomes(None, [0, 1], [0, 1]).by_site() == {}


def test_join_puts_the_parts_of_a_whole_back_together():
    whole = random_outcomes(2)
    parts = [whole.take(range(5)), whole.take([]), whole.take(range(5, 24))]
    assert columns_of(join(parts)) == columns_of(whole)


def test_join_refuses_what_does_not_belong_together():
    first = random_outcomes(0)
    with pytest.raises(DataError, match="'well', 'sick'"):
        join([first, dataclasses.replace(first, classes=("well", "sick"))])
    with pytest.raises(DataError, match="got nothing"):
        join([])
    one = np.ones((1, 1))
    near = SegmentationOutcomes(CLASSES, ("a",), (None,), (None,), one, one, one, one, np.array([True]))
    with pytest.raises(DataError, match="no distances"):
        join([near, dataclasses.replace(near, distances=None)])
