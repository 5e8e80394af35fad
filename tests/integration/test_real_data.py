"""The readers on real images, which lie beside the repository and are not part of it."""

import csv
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mednorm.data import check_uniform, describe, load_mask, manifest_of_folders, read, read_image, write_mask

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not beside this repository")


def test_pneumoniamnist_has_its_official_counts_and_values():
    images = read(DATA / "lung" / "pneumoniamnist.npz", classes=["normal", "pneumonia"])
    with np.load(DATA / "lung" / "pneumoniamnist.npz") as stored:
        for split, count in (("train", 4708), ("val", 524), ("test", 624)):
            loaded = images.load(split)
            assert loaded.images.shape == (count, 1, 28, 28)
            np.testing.assert_array_equal(loaded.images[:, 0].numpy(), stored[f"{split}_images"])
            np.testing.assert_array_equal(loaded.targets.numpy(), stored[f"{split}_labels"][:, 0])


def test_pneumoniamnist_is_described_by_its_exact_moments():
    found = describe(read(DATA / "lung" / "pneumoniamnist.npz"))
    with np.load(DATA / "lung" / "pneumoniamnist.npz") as stored:
        train = stored["train_images"].astype(np.float64)
    assert found.intensity["train"].mean == pytest.approx((train.mean(),), rel=1e-12)
    assert found.intensity["train"].std == pytest.approx((train.std(),), rel=1e-12)
    assert (found.intensity["train"].minimum, found.intensity["train"].maximum) == ((0.0,), (255.0,))
    assert sum(found.per_class["train"].values()) == 4708
    assert found.dtypes == {"uint8": 5856}


def rows(name):
    with (DATA / name / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_heart_is_read_as_segmentation():
    images = read(DATA / "heart")
    assert (images.kind, len(images.items), images.classes) == ("segmentation", 805, ("background", "1"))
    assert [len({item.patient for item in images.split(split)}) for split in ("train", "val", "test")] == [15, 15, 15]
    loaded = images.load("val")
    val = [row for row in rows("heart") if row["split"] == "val"]
    assert loaded.images.shape == (len(val), 1, 256, 256)
    for index in (0, 100, len(val) - 1):
        with (
            Image.open(DATA / "heart" / val[index]["image"]) as image,
            Image.open(DATA / "heart" / val[index]["mask"]) as mask,
        ):
            np.testing.assert_array_equal(loaded.images[index, 0].numpy(), np.asarray(image))
            np.testing.assert_array_equal(loaded.targets[index].numpy() * 255, np.asarray(mask))
    assert images.items[0].metadata == {"epicardium": "", "label": "HF-I"}


def test_the_heart_is_read_as_classification():
    images = read(DATA / "heart", kind="classification")
    assert images.classes == ("HF-I", "HF-NI", "HYP", "N")
    expected = Counter(row["label"] for row in rows("heart"))
    assert Counter(images.classes[item.label] for item in images.items) == expected
    assert len({item.patient for item in images.items}) == 45


def test_the_brain_has_four_sites_three_channels_and_binary_masks():
    images = read(DATA / "brain")
    assert len(images.items) == 1155
    found = describe(images)
    assert found.images == {"train": 677, "val": 256, "test": 222}
    assert found.classes == ("background", "1")
    assert list(found.intensity_by_site) == ["CS", "DU", "EZ", "HT"]
    assert found.shapes == {"3×128×128": 1155}
    assert 0.005 < found.per_class["train"]["1"] < 0.2
    assert len(found.intensity["train"].mean) == 3
    with Image.open(DATA / "brain" / rows("brain")[0]["image"]) as first:
        np.testing.assert_array_equal(images.pixels(images.items[0])[0].numpy(), np.moveaxis(np.asarray(first), -1, 0))


def test_brain_volumes_are_read_from_a_manifest_of_absolute_paths(tmp_path):
    folders = sorted(path for path in (DATA / "brain3d").iterdir() if path.is_dir())
    lines = ["image,mask,patient,split"]
    for folder, split in zip(folders, ("train", "val"), strict=True):
        image, mask = folder / "Flair_subtrMeanDivStd.nii.gz", folder / "OTMultiClass.nii.gz"
        lines.append(f"{image},{mask},{folder.name},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    images = read(tmp_path, classes=["background", "1", "2", "3", "4"])
    loaded = images.load("train")
    assert loaded.images.shape == (1, 1, 240, 240, 155)
    flair = nibabel.load(folders[0] / "Flair_subtrMeanDivStd.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(loaded.images[0, 0].numpy(), flair)
    labels = np.asarray(nibabel.load(folders[0] / "OTMultiClass.nii.gz").dataobj)
    np.testing.assert_array_equal(loaded.targets[0].numpy(), labels)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4}
    assert labels.any()


def test_brain_volumes_of_two_modalities_are_collected_and_read_as_channels(tmp_path):
    patterns = ["Flair*.nii.gz", "T1c*.nii.gz"]
    assert manifest_of_folders(DATA / "brain3d", patterns, "OTMultiClass.nii.gz", tmp_path / "manifest.csv") == 2
    images = read(tmp_path, classes=["background", "1", "2", "3", "4"], divide=False)
    assert check_uniform(images) == ((1.0, 1.0, 1.0), "LPS")
    item = images.items[1]
    pixels, target = images.pixels(item)
    assert pixels.shape == (2, 240, 240, 155)
    for channel, path in enumerate(item.image):
        np.testing.assert_array_equal(pixels[channel].numpy(), nibabel.load(path).get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(target.numpy(), np.asarray(nibabel.load(item.mask).dataobj))


def test_a_mask_written_on_a_brain_volume_has_its_affine(tmp_path):
    folder = DATA / "brain3d" / "brats_2013_pat0005_1"
    image = read_image(folder / "Flair_subtrMeanDivStd.nii.gz")
    mask = load_mask(folder / "OTMultiClass.nii.gz")
    written = nibabel.load(write_mask(mask, image, tmp_path / "tumour"))
    original = nibabel.load(folder / "Flair_subtrMeanDivStd.nii.gz")
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.header.get_zooms() == original.header.get_zooms()
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
