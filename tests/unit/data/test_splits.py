import itertools

import numpy as np
import pytest

from mednorm.data import Item, cross_validation, hold_out_site, own_splits, share_of
from mednorm.data.splits import check_patients, divide
from mednorm.errors import ConfigError, DataError


@pytest.mark.parametrize("patients", [3, 4, 5, 7, 8, 10, 45, 101])
def test_every_split_is_filled_and_val_and_test_are_a_fifth_each(patients):
    drawn = divide(map(str, range(patients)), 0, "set")
    counts = [list(drawn.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [patients - 2 * max(1, round(patients / 5)), *[max(1, round(patients / 5))] * 2]
    assert min(counts) >= 1


def test_repeated_patients_and_their_order_change_nothing():
    assert divide("cabbage", 1, "set") == divide("egbca", 1, "set")


def test_over_many_seeds_every_patient_is_in_test_about_as_often():
    often = np.zeros(10)
    for seed in range(500):
        often += [name == "test" for name in divide("abcdefghij", seed, "set").values()]
    assert often.min() > 70  # 100 expected, standard deviation 9
    assert often.max() < 130


def test_images_without_a_patient_never_clash():
    items = [Item(f"row {split}", split, np.zeros((1, 2, 2))) for split in ("train", "val")]
    check_patients(items)


def test_a_patient_in_two_splits_is_named():
    items = [Item(f"row {split}", split, np.zeros((1, 2, 2)), patient="p") for split in ("train", "val")]
    with pytest.raises(DataError, match=r"^row val: expected patient 'p' in split 'train' like row train, got 'val'"):
        check_patients(items)


def slices(patients=13, images=3, *, labels=(0, 1), sites=("A", "B", "C"), named=True):
    """Images of patients with a label and a site each; patient p3 is labels[3 % 2] and sites[3 % 3]."""
    return [
        Item(
            f"p{patient} image {number}",
            "val" if patient == 1 else "train" if patient else "test",
            np.zeros((1, 2, 2)),
            label=labels[patient % len(labels)],
            patient=f"p{patient}" if named else None,
            site=sites[patient % len(sites)],
        )
        for patient in range(patients)
        for number in range(images)
    ]


def patients_of(items, fold):
    return {split: {items[row].patient for row in rows} for split, rows in fold.rows.items()}


@pytest.mark.parametrize("folds", [2, 3, 5, 13])
def test_every_patient_is_tested_on_exactly_once(folds):
    items = slices()
    divided = cross_validation(items, folds, 0, "set")
    tested = [patient for fold in divided for patient in patients_of(items, fold)["test"]]
    assert sorted(tested) == sorted({item.patient for item in items})
    assert [fold.name for fold in divided] == [f"{number}of{folds}" for number in range(1, folds + 1)]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_no_patient_is_in_two_splits_of_a_fold_and_every_image_is_in_one(folds):
    items = slices()
    for fold in cross_validation(items, folds, 0, "set"):
        parts = list(patients_of(items, fold).values())
        assert sum(map(len, parts)) == len(set.union(*parts)) == 13
        assert sorted(row for rows in fold.rows.values() for row in rows) == list(range(len(items)))


def test_the_next_folds_test_patients_are_this_ones_validation():
    items = slices()
    divided = cross_validation(items, 4, 0, "set")
    for fold, following in zip(divided, [*divided[1:], divided[0]], strict=True):
        assert fold.rows["val"] == following.rows["test"]


def test_of_two_folds_there_is_no_validation():
    for fold in cross_validation(slices(), 2, 0, "set"):
        assert set(fold.rows) == {"train", "test"}


def test_each_fold_tests_about_as_many_patients_of_each_label():
    items = slices(patients=30, labels=(0, 0, 1))
    for fold in cross_validation(items, 5, 3, "set"):
        labels = [next(i.label for i in items if i.patient == p) for p in patients_of(items, fold)["test"]]
        assert (labels.count(0), labels.count(1)) == (4, 2)


def test_another_seed_makes_other_folds_and_the_same_seed_the_same():
    items = slices()
    first, again, other = (
        [fold.rows["test"] for fold in cross_validation(items, 3, seed, "set")] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_folds_depend_on_the_patients_and_not_on_the_order_of_the_images():
    items = slices()
    backwards = items[::-1]
    found = [
        [patients_of(order, fold)["test"] for fold in cross_validation(order, 3, 0, "set")]
        for order in (items, backwards)
    ]
    assert found[0] == found[1]


def test_images_without_a_patient_are_divided_one_by_one():
    divided = cross_validation(slices(named=False), 3, 0, "set")
    assert [len(fold.rows["test"]) for fold in divided] == [13, 13, 13]


def test_a_label_rarer_than_the_folds_does_not_keep_them_from_being_made():
    items = slices(patients=6, labels=(0, 1, 2, 3, 4, 5))
    assert [len(fold.rows["test"]) for fold in cross_validation(items, 3, 0, "set")] == [6, 6, 6]


@pytest.mark.parametrize("folds", [1, 14, 100])
def test_more_folds_than_patients_or_fewer_than_two_are_refused_with_both_numbers(folds):
    with pytest.raises(DataError, match=rf"^set: expected from 2 to 13 folds, the number of patients .*, got {folds}"):
        cross_validation(slices(), folds, 0, "set")


def test_a_negative_seed_of_folds_is_refused():
    with pytest.raises(ConfigError, match="set: expected a seed of 0 or more, got -1"):
        cross_validation(slices(), 3, -1, "set")


def test_the_splits_the_images_name_are_one_fold_without_a_name():
    items = slices()
    fold = own_splits(items)
    assert fold.name == ""
    assert fold.rows == {"train": tuple(range(6, 39)), "val": (3, 4, 5), "test": (0, 1, 2)}


def test_splits_without_validation_have_none():
    fold = own_splits([item for item in slices() if item.split != "val"])
    assert list(fold.rows) == ["train", "test"]


def test_a_site_held_out_is_the_test_and_the_others_keep_their_validation():
    items = slices(patients=9)
    (fold,) = hold_out_site(items, "C", "set")
    assert fold.name == "site-C"
    assert patients_of(items, fold) == {
        "train": {"p0", "p3", "p4", "p6", "p7"},
        "val": {"p1"},
        "test": {"p2", "p5", "p8"},
    }


def test_each_site_is_held_out_once():
    items = slices(patients=9)
    divided = hold_out_site(items, "each", "set")
    assert [fold.name for fold in divided] == ["site-A", "site-B", "site-C"]
    for fold, site in zip(divided, "ABC", strict=True):
        assert {items[row].site for row in fold.rows["test"]} == {site}
        assert site not in {items[row].site for split in ("train", "val") for row in fold.rows.get(split, ())}


def test_validation_images_of_the_site_held_out_are_tested_on():
    items = slices(patients=9)
    (fold,) = hold_out_site(items, "B", "set")  # p1, the only validation patient, is of site B
    assert set(fold.rows) == {"train", "test"}
    assert "p1" in patients_of(items, fold)["test"]


def test_an_unknown_site_is_named_with_those_there_are():
    with pytest.raises(DataError, match=r"^set: expected the site to hold out to be each or one of A, B, C, got 'HT'"):
        hold_out_site(slices(), "HT", "set")


def test_images_that_name_no_site_have_none_to_hold_out():
    with pytest.raises(DataError, match="one of none: the images name no site, got 'A'"):
        hold_out_site(slices(sites=(None,)), "A", "set")


@pytest.mark.parametrize(
    ("sites", "site", "got"), [(("A",), "A", "A"), ((None,), "each", "none"), (("A",), "each", "A")]
)
def test_a_single_site_cannot_be_held_out(sites, site, got):
    with pytest.raises(DataError, match=rf"^set: expected at least 2 sites to hold one out, got {got}\.$"):
        hold_out_site(slices(sites=sites), site, "set")


UNITS = [f"p{patient}" for patient in range(10) for _ in range(3)]
LABELS = [int(patient < 2) for patient in range(10) for _ in range(3)]


def share(part, seed=0, units=UNITS, labels=LABELS):
    return share_of(units, labels, part, seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_share_is_part_of_a_larger_one(seed):
    shares = [set(share(part, seed)) for part in (0.01, 0.2, 0.5, 0.7, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(shares))
    assert shares[-1] == set(range(30))


@pytest.mark.parametrize("seed", range(5))
def test_every_label_is_kept_however_small_the_share(seed):
    rows = share(0.01, seed)
    assert {LABELS[row] for row in rows} == {0, 1}
    assert len({UNITS[row] for row in rows}) == 2


def test_a_share_is_of_patients_and_takes_all_images_of_each():
    taken = [UNITS[row] for row in share(0.5)]
    assert [taken.count(patient) for patient in set(taken)] == [3] * 5  # four of eight, and one of two
    assert sorted(share(0.5)) == share(0.5), "in the order of the images"


def test_another_seed_takes_other_patients():
    assert len({tuple(share(0.3, seed)) for seed in range(6)}) > 1


def test_images_without_labels_are_one_group():
    assert len(share(0.5, units=[f"image {n}" for n in range(8)], labels=[None] * 8)) == 4


def test_a_patient_with_images_at_two_sites_cannot_be_kept_apart():
    items = [Item(f"row {i}", "train", np.zeros((1, 2, 2)), patient="p1", site=site) for i, site in enumerate("AB")]
    with pytest.raises(DataError, match=r"^row 1: expected patient 'p1' at site 'A' like row 0, got 'B': holding out"):
        hold_out_site(items, "A", "set")


def test_an_image_that_names_no_site_among_others_may_be_of_the_one_held_out():
    pixels = np.zeros((1, 2, 2))
    items = [Item(f"row {i}", "train", pixels, patient=f"p{i}", site=site) for i, site in enumerate(["A", "B", None])]
    with pytest.raises(DataError, match=r"^row 2: expected a site, got none"):
        hold_out_site(items, "each", "set")
