import io
import pickle
import zipfile

import numpy as np
import pytest

from mednorm.data import read_npz
from mednorm.errors import DataError

from .made import text

COUNTS = {"train": 5, "val": 2, "test": 3}


def arrays(shape=(4, 6), labels=(0, 1, 1, 0, 1), dtype=np.uint8):
    made = {}
    for offset, (split, count) in enumerate(COUNTS.items()):
        size = (count, *shape)
        made[f"{split}_images"] = (np.arange(np.prod(size)).reshape(size) % 200 + offset).astype(dtype)
        made[f"{split}_labels"] = np.array(labels[:count], np.uint8)[:, None]
    return made


def saved(path, **changes):
    made = arrays() | changes
    np.savez_compressed(path, **{name: value for name, value in made.items() if value is not None})
    return path


def test_every_image_and_label_comes_through_in_its_split_and_order(tmp_path):
    images = read_npz(saved(tmp_path / "lung.npz"))
    for split, count in COUNTS.items():
        loaded = images.load(split)
        assert len(images.split(split)) == count
        np.testing.assert_array_equal(loaded.images.numpy(), arrays()[f"{split}_images"][:, None].astype(np.float32))
        np.testing.assert_array_equal(loaded.targets.numpy(), arrays()[f"{split}_labels"].ravel())
    assert images.split("test")[1].where == "lung.npz test[1]"
    assert (images.kind, images.classes, images.note) == ("classification", ("0", "1"), "")


def test_pixels_stay_in_eight_bits_until_they_are_loaded(tmp_path):
    images = read_npz(saved(tmp_path / "lung.npz"))
    assert {item.image.dtype for item in images.items} == {np.dtype(np.uint8)}
    assert images.items[0].image.base is not None  # a view, not a copy for each image


def test_colour_comes_channels_first(tmp_path):
    colour = arrays(shape=(4, 6, 3))
    loaded = read_npz(saved(tmp_path / "a.npz", **colour)).load("val")
    np.testing.assert_array_equal(loaded.images.numpy(), np.moveaxis(colour["val_images"], -1, 1))


def test_volumes_get_one_channel(tmp_path):
    volumes = arrays(shape=(2, 4, 6))
    loaded = read_npz(saved(tmp_path / "a.npz", **volumes)).load("val")
    np.testing.assert_array_equal(loaded.images.numpy(), volumes["val_images"][:, None])


def test_labels_without_a_second_axis_are_read(tmp_path):
    flat = {name: value.ravel() for name, value in arrays().items() if name.endswith("labels")}
    assert read_npz(saved(tmp_path / "a.npz", **flat)).load("train").targets.tolist() == [0, 1, 1, 0, 1]


def test_classes_are_counted_in_train_or_named_as_given(tmp_path):
    path = saved(tmp_path / "a.npz", train_labels=np.array([0, 3, 1, 0, 1]))
    assert read_npz(path).classes == ("0", "1", "2", "3")
    assert read_npz(path, classes=list("abcd")).classes == ("a", "b", "c", "d")


def test_arrays_that_are_not_used_are_named(tmp_path):
    assert read_npz(saved(tmp_path / "a.npz", ages=np.zeros(3))).note == "Arrays not used: ages."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, r"got train_images, .*: val_labels missing"),
        ({"val_labels": np.zeros((3, 1), int)}, r"one label for each of 2 val_images, got 3 val_labels"),
        ({"test_labels": np.zeros((28, 28), int)}, r"test_labels of shape \(3,\) or \(3, 1\).* got \(28, 28\)"),
        ({"test_labels": np.zeros((3, 14), int)}, r"got \(3, 14\)"),
        ({"train_labels": np.zeros(5)}, "expected whole numbers in train_labels, got float64"),
        ({"train_images": np.zeros((5, 4, 6), complex)}, "expected numbers in train_images, got complex128"),
        ({"train_images": np.zeros((5, 24))}, r"got \(5, 24\)"),
        ({"train_images": np.zeros((5, 2, 4, 6, 3))}, r"got \(5, 2, 4, 6, 3\)"),
        ({"train_images": np.zeros((5, 0, 6))}, r"got \(5, 0, 6\)"),
        (
            {"test_labels": np.array([0, 7, 1])},
            r"a\.npz test\[1\]: expected a label from 0 to 1 .*train_labels.*, got 7",
        ),
        ({"val_labels": np.array([0, -1])}, r"a\.npz val\[1\]: .*, got -1"),
        ({"train_labels": np.zeros(5, int)}, r"at least two classes with different names, got \('0',\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_what_came(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        read_npz(saved(tmp_path / "a.npz", **changes))
    assert str(caught.value).startswith("a.npz")
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_names_given_is_named(tmp_path):
    path = saved(tmp_path / "a.npz", train_labels=np.array([0, 1, 2, 0, 1]))
    with pytest.raises(DataError, match=r"a\.npz train\[2\]: expected a label from 0 to 1 \(the names given\), got 2"):
        read_npz(path, classes=["no", "yes"])


def test_nan_is_found_when_its_image_is_loaded(tmp_path):
    floats = np.zeros((2, 4, 6), np.float32)
    floats[1, 2, 3] = np.nan
    images = read_npz(saved(tmp_path / "a.npz", val_images=floats))
    assert len(images.load("train").names) == 5
    with pytest.raises(DataError, match=r"a\.npz val\[1\]: expected finite numbers, got NaN or inf in 1 of 24"):
        images.load("val")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_array_is_refused_and_not_unpickled(tmp_path):
    harm = tmp_path / "harm"
    path = tmp_path / "a.npz"
    np.savez(path, **arrays() | {"train_labels": np.array([Payload(harm)] * 5, dtype=object)})
    with pytest.raises(DataError, match="numbers in train_labels, got an array that cannot be read without unpickling"):
        read_npz(path)
    assert not harm.exists()
    with np.load(path, allow_pickle=True) as loaded:  # the payload is real
        for file in loaded["train_labels"]:
            file.close()
    assert harm.exists()


def test_a_pickle_named_npz_is_refused_and_not_unpickled(tmp_path):
    harm = tmp_path / "harm"
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Payload(harm)))
    with pytest.raises(DataError, match=r"a\.npz: expected an npz archive, got another file"):
        read_npz(tmp_path / "a.npz")
    assert not harm.exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = saved(tmp_path / "a.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"^a\.npz: expected a complete npz archive, got \w+: "):
        read_npz(path)


def test_a_damaged_member_is_named(tmp_path):
    path = saved(tmp_path / "a.npz")
    damaged = bytearray(path.read_bytes())
    damaged[60:90] = bytes(30)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"^a\.npz: expected "):
        read_npz(path)


def test_text_and_a_single_array_are_no_archive(tmp_path):
    with pytest.raises(DataError, match="expected an npz archive, got another file"):
        read_npz(text(tmp_path / "a.npz", "image,label\n"))
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    (tmp_path / "b.npz").write_bytes(single.getvalue())
    with pytest.raises(DataError, match=r"b\.npz: expected an npz archive, got another file"):
        read_npz(tmp_path / "b.npz")


def test_a_zip_of_other_things_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"got readme\.txt: train_images, .* missing"):
        read_npz(tmp_path / "a.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: expected a MedMNIST file, got no file at .*none\.npz"):
        read_npz(tmp_path / "none.npz")
