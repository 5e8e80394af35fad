import json

import numpy as np
import pytest

from mednorm.data import ImageSet, Item, describe
from mednorm.errors import DataError

RANDOM = np.random.default_rng(0)


def item(split, shape, target, dtype=np.uint8, **others):
    image = RANDOM.integers(0, 200, shape).astype(dtype)
    key = "label" if isinstance(target, int) else "mask"
    return Item(f"{split} image", split, image, **{key: target}, **others)


def of_different_sizes():
    return (
        item("train", (1, 4, 6), 0, site="A", patient="p"),
        item("train", (1, 9, 5), 1, site="A", patient="p"),
        item("train", (1, 4, 6), 1, np.int16, site="B", patient="q"),
        item("test", (1, 4, 6), 1, site="B", patient="r"),
        item("test", (1, 4, 6), 1),
    )


@pytest.fixture(scope="module")
def items():
    return of_different_sizes()


@pytest.fixture(scope="module")
def found(items):
    return describe(ImageSet("made up", "classification", ("no", "yes"), items, note="look"))


def test_images_classes_sites_and_patients_are_counted_in_each_split(found):
    assert (found.source, found.kind, found.classes, found.note) == ("made up", "classification", ("no", "yes"), "look")
    assert found.images == {"train": 3, "test": 2}
    assert found.per_class == {"train": {"no": 1, "yes": 2}, "test": {"no": 0, "yes": 2}}
    assert found.sites == {"train": {"A": 2, "B": 1}, "test": {"B": 1, "unknown": 1}}
    assert found.patients == {"train": 2, "test": None}


def test_shapes_and_stored_types_are_counted_from_the_most_frequent(found):
    assert list(found.shapes.items()) == [("1×4×6", 4), ("1×9×5", 1)]
    assert found.dtypes == {"uint8": 4, "int16": 1}


def measured(values):
    values = np.concatenate([value.astype(np.float64).ravel() for value in values])
    return (values.mean(), values.std(), values.min(), values.max(), np.ptp(values))


def test_intensities_are_pooled_exactly_over_images_of_different_sizes(items, found):
    for split in ("train", "test"):
        got = found.intensity[split]
        images = [item.image for item in items if item.split == split]
        assert got.count == (sum(image.size for image in images),)
        assert [*got.mean, *got.std, *got.minimum, *got.maximum, *got.range] == pytest.approx(
            measured(images), rel=1e-12
        )


def test_intensities_are_pooled_by_site_over_all_splits(items, found):
    assert list(found.intensity_by_site) == ["A", "B", "unknown"]
    got = found.intensity_by_site["B"]
    assert [*got.mean, *got.std] == pytest.approx(measured([items[2].image, items[3].image])[:2], rel=1e-12)


def test_each_channel_is_pooled_over_the_images_that_have_it():
    grey, colour = item("train", (1, 4, 4), 0), item("train", (3, 2, 2), 1)
    got = describe(ImageSet("made up", "classification", ("no", "yes"), (grey, colour))).intensity["train"]
    assert got.count == (20, 4, 4)
    assert got.mean[0] == pytest.approx(measured([grey.image, colour.image[0]])[0])
    assert got.mean[2] == pytest.approx(colour.image[2].mean())


def test_the_classes_of_masks_are_shares_of_voxels():
    masks = (np.array([[0, 0, 0, 2]]), np.array([[0, 1], [1, 2]]))
    items = tuple(item("train", (1, *mask.shape), mask) for mask in masks)
    found = describe(ImageSet("made up", "segmentation", None, items))
    assert found.per_class == {"train": {"background": 0.5, "1": 0.25, "2": 0.25}}


def test_a_description_goes_through_json(found):
    again = json.loads(json.dumps(found.to_dict()))
    assert again["intensity"]["train"]["mean"] == list(found.intensity["train"].mean)
    assert again["patients"] == {"train": 2, "test": None}


def test_an_image_that_cannot_be_used_is_named():
    broken = Item("row 7", "train", np.full((1, 2, 2), np.nan), label=0)
    with pytest.raises(DataError, match="row 7: expected finite numbers, got NaN or inf in 4 of 4"):
        describe(ImageSet("made up", "classification", ("no", "yes"), (broken,)))
