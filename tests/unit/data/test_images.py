import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from mednorm.data import ImageSet, Item, read_manifest
from mednorm.errors import DataError

from .made import THREE, gradient, picture, segmentation, table


def labelled(shape=(1, 4, 6), label=1, **others):
    items = tuple(Item(f"image {n}", split, np.full(shape, n), label=label, **others) for n, split in enumerate(THREE))
    return ImageSet("made up", "classification", ("no", "yes"), items)


def masked(masks, classes=None):
    items = tuple(
        Item(f"image {n}", split, np.zeros((1, *np.shape(mask))), mask=np.array(mask))
        for n, (mask, split) in enumerate(zip(masks, THREE, strict=True))
    )
    return ImageSet("made up", "segmentation", classes, items)


def test_a_loaded_split_holds_float32_images_int64_targets_and_where_each_came_from():
    loaded = labelled(site="A", patient=None).load("val")
    assert (loaded.images.dtype, loaded.targets.dtype) == (torch.float32, torch.int64)
    assert torch.equal(loaded.images, torch.ones(1, 1, 4, 6))
    assert loaded.targets.tolist() == [1]
    assert (loaded.names, loaded.sites, loaded.patients) == (("image 1",), ("A",), (None,))


def test_loading_copies_so_that_the_source_stays_as_it_was():
    images = labelled()
    images.load("val").images.zero_()
    images.pixels(images.items[1])[0].zero_()
    assert (images.items[1].image == 1).all()


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match="made up: expected a split named train, val or test, got 'dev'"):
        labelled().split("dev")


def test_classes_are_counted_in_the_train_masks_only_when_asked_for(tmp_path):
    rows = segmentation(tmp_path, [np.array([[0, 2, 5]], np.uint8)] * 3, THREE)
    images = read_manifest(table(tmp_path, rows))
    picture(tmp_path / "mask0.png", np.array([[0, 1, 3]], np.uint8))  # read only now
    assert images.classes == ("background", "1", "2", "3")


def test_classes_given_for_segmentation_are_not_counted(tmp_path):
    rows = segmentation(tmp_path, [np.array([[0, 1, 0]], np.uint8)] * 3, THREE)
    images = read_manifest(table(tmp_path, rows), classes=["nothing", "ventricle", "scar"])
    (tmp_path / "mask0.png").unlink()
    assert images.classes == ("nothing", "ventricle", "scar")


def test_classes_are_counted_in_all_masks_where_none_is_said_to_be_train():
    """Folds divide images that no column split divides; such a manifest is all test."""
    items = tuple(replace(item, split="test") for item in masked([[[0, 1]], [[0, 3]], [[0, 2]]]).items)
    assert ImageSet("made up", "segmentation", None, items).classes == ("background", "1", "2", "3")


def test_train_masks_of_background_alone_are_refused():
    with pytest.raises(DataError, match="at least one train mask with a value above 0, got only background"):
        _ = masked([[[0, 0]], [[0, 1]], [[0, 1]]]).classes


def test_an_image_set_survives_pickle_and_copy_before_and_after_its_classes_are_counted():
    images = masked([[[0, 2]], [[0, 1]], [[0, 1]]])
    early = pickle.loads(pickle.dumps(images))
    assert images.classes == early.classes == copy.deepcopy(images).classes == ("background", "1", "2")


def test_an_unreadable_train_mask_is_named_when_classes_are_counted(tmp_path):
    images = read_manifest(table(tmp_path, segmentation(tmp_path, [gradient()] * 3, THREE)))
    (tmp_path / "mask0.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"mask of manifest\.csv row 2 \(0\.png\): expected an image, got an empty file"
    ):
        _ = images.classes


def test_a_mask_value_outside_the_classes_of_train_is_named():
    with pytest.raises(DataError, match=r"image 1: expected mask values from 0 to 1 .*background, 1, got 3"):
        masked([[[0, 1]], [[0, 3]], [[0, 1]]]).load("val")


def test_a_mask_value_outside_the_classes_given_is_named():
    with pytest.raises(DataError, match=r"image 0: expected mask values from 0 to 1 .*no, yes, got 2"):
        masked([[[0, 2]], [[0, 1]], [[0, 1]]], classes=("no", "yes")).load("train")


def test_a_mask_of_another_size_is_named():
    items = (Item("row 2", "train", np.zeros((1, 4, 6)), mask=np.ones((6, 4), int)),)
    with pytest.raises(DataError, match=r"row 2: expected a mask of the size of its image, \(4, 6\), got \(6, 4\)"):
        ImageSet("made up", "segmentation", ("a", "b"), items).load("train")


def test_an_image_without_its_target_is_named():
    bare = (Item("row 2", "train", np.zeros((1, 4, 6))),)
    with pytest.raises(DataError, match="row 2: expected a mask, got none"):
        ImageSet("made up", "segmentation", ("a", "b"), bare).load("train")
    with pytest.raises(DataError, match="row 2: expected a label from 0 to 1, got None"):
        ImageSet("made up", "classification", ("a", "b"), bare).load("train")


def test_a_label_outside_the_classes_is_named():
    with pytest.raises(DataError, match="image 0: expected a label from 0 to 1, got 2"):
        labelled(label=2).load("train")


def test_classification_needs_names():
    with pytest.raises(DataError, match="made up: expected names of classes for classification, got None"):
        _ = ImageSet("made up", "classification", None, labelled().items).classes


def test_an_array_without_a_channel_axis_is_named():
    with pytest.raises(
        DataError, match=r"image 0: expected an image .* one channel axis .*, got shape \(4, 6\) of int64"
    ):
        labelled(shape=(4, 6)).load("train")


def sizes(*shapes):
    items = tuple(Item(f"row {n + 2}", "train", np.full(shape, 7), label=0) for n, shape in enumerate(shapes))
    return ImageSet("made up", "classification", ("no", "yes"), items)


def test_images_of_different_sizes_are_named_with_a_way_out():
    with pytest.raises(DataError, match=r"got \(1, 4, 6\) in row 2 and \(1, 5, 6\) in row 4\. .*size=\(4, 6\)"):
        sizes((1, 4, 6), (1, 4, 6), (1, 5, 6), (1, 8, 8)).load("train")


def test_images_of_different_channels_are_named_and_size_is_not_offered():
    with pytest.raises(
        DataError, match=r"\(1, 4, 6\) in row 2 and \(3, 4, 6\) in row 3\. Save all with the same"
    ) as caught:
        sizes((1, 4, 6), (3, 4, 6)).load("train")
    assert "size=" not in str(caught.value)


def test_a_size_makes_images_of_different_sizes_stack():
    loaded = sizes((1, 4, 6), (1, 5, 6), (1, 8, 8)).load("train", size=(4, 4))
    assert torch.equal(loaded.images, torch.full((3, 1, 4, 4), 7.0))


def test_a_size_resamples_masks_to_values_they_had():
    images = masked([np.repeat([[0, 2]], 4, axis=0).repeat(3, axis=1)] * 3)
    loaded = images.load("train", size=(2, 2))
    assert torch.equal(loaded.targets, torch.tensor([[[0, 2], [0, 2]]]))


def test_the_repr_counts_the_splits_and_reads_nothing():
    assert repr(masked([[[0, 0]]] * 3)) == "ImageSet('made up', segmentation, train 1, val 1, test 1)"


def test_rows_are_taken_in_the_order_given_from_every_column():
    arrays = labelled(site="A", patient="p").load_items(labelled().items)
    taken = replace(arrays, sites=("A", "B", "C"), spacings=((1.0, 2.0), None, None)).take([2, 0, 2])
    assert taken.images[:, 0, 0, 0].tolist() == [2, 0, 2]
    assert (taken.names, taken.sites) == (("image 2", "image 0", "image 2"), ("C", "A", "C"))
    assert taken.spacings == (None, (1.0, 2.0), None)


@pytest.mark.parametrize(("rows", "copied"), [([0, 1], False), ([1, 2], False), ([2], False), ([0, 2], True)])
def test_neighbours_are_taken_without_a_copy(rows, copied):
    arrays = labelled().load_items(labelled().items)
    taken = arrays.take(rows)
    assert taken.images[:, 0, 0, 0].tolist() == rows
    assert (taken.images.untyped_storage().data_ptr() != arrays.images.untyped_storage().data_ptr()) == copied


def test_volumes_that_differ_in_size_are_loaded_apart_and_taken_by_row():
    images = sizes((1, 4, 6), (1, 5, 6), (1, 8, 8))
    arrays = images.load_items(images.items, stack=False)
    assert [tuple(image.shape) for image in arrays.images] == [(1, 4, 6), (1, 5, 6), (1, 8, 8)]
    taken = arrays.take([2, 0])
    assert [tuple(image.shape) for image in taken.images] == [(1, 8, 8), (1, 4, 6)]
    assert taken.names == ("row 4", "row 2")


def test_any_items_can_be_loaded_whatever_their_split():
    arrays = labelled().load_items(labelled().items[::-1])
    assert arrays.names == ("image 2", "image 1", "image 0")
    assert arrays.images[:, 0, 0, 0].tolist() == [2, 1, 0]
