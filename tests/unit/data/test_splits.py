import numpy as np
import pytest

from mednorm.data import Item
from mednorm.data.splits import check_patients, divide
from mednorm.errors import DataError


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
