"""From a training to masks on images it never saw: DICOM, a series, NIfTI and PNG, by the command line."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from mednorm.cli.app import run
from mednorm.data import load_image, load_mask
from tests.studies import write_npz, write_volumes
from tests.unit.data.dicoms import OBLIQUE, series

BRAINS = Path(__file__).resolve().parents[3] / "shared" / "data" / "brain3d"

pytestmark = pytest.mark.slow


def predicted(folder, out, *arguments):
    """Predict into a folder; return what the table there says."""
    assert run(["predict", str(folder), *map(str, arguments), "--out", str(out)]) == 0
    return json.loads((out / "predictions.json").read_text())["predictions"]


@pytest.fixture(scope="module")
def tissue_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("tissue") / "run"
    assert run(["train", "tissue", "--image-size", "48,40", "--epochs", "1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    manifest = write_volumes(folder, ["train"] * 3 + ["val", "test"])
    options = ["--network", "unet", "--patch-size", "16,16,16", "--batch-size", "2", "--epochs", "8"]
    assert run(["train", "brain3d", "--data", str(manifest), *options, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_the_mask_of_a_dicom_slice_lies_where_its_tags_say(tissue_run, tmp_path, name):
    path = get_testdata_file(name)
    (found,) = predicted(tissue_run, tmp_path / "out", path)
    mask, tags = nibabel.load(found["mask"]), pydicom.dcmread(path)
    along_row, down_column = np.array(tags.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, tags.PixelSpacing)
    thick = float(tags.SliceThickness)
    # From (row, column, slice) to left, posterior, superior; then the first two the other way round.
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = down_column * between_rows, along_row * between_columns
    lps[:3, 2], lps[:3, 3] = np.cross(along_row, down_column) * thick, np.array(tags.ImagePositionPatient, float)
    np.testing.assert_allclose(mask.affine, np.diag([-1, -1, 1, 1]) @ lps, atol=1e-4)
    assert mask.shape == (tags.Rows, tags.Columns, 1)
    assert mask.header.get_zooms() == pytest.approx((between_rows, between_columns, thick), rel=1e-6)
    assert len(np.unique(mask.dataobj)) > 1
    total = tags.Rows * tags.Columns * between_rows * between_columns * thick / 1000
    assert sum(found["millilitres"].values()) == pytest.approx(total, rel=1e-6)


def test_the_mask_of_a_picture_has_its_size(tissue_run, tmp_path):
    path = tmp_path / "slice.png"
    values = load_image(get_testdata_file("MR_small.dcm"))[0]
    Image.fromarray(np.uint8(255 * values[:50] / values.max())).save(path)
    (found,) = predicted(tissue_run, tmp_path / "out", path, "--probabilities")
    assert load_mask(found["mask"]).shape == (50, 64)
    chances = np.load(found["probability_map"])
    np.testing.assert_allclose(chances.sum(-1), 1, atol=1e-5)
    # Two-class pictures are written as 0 and 255; of three classes the numbers are.
    np.testing.assert_array_equal(chances.argmax(-1), load_mask(found["mask"]))


def test_an_image_is_predicted_alike_alone_and_among_others(tissue_run, tmp_path):
    paths = [get_testdata_file(name) for name in ("CT_small.dcm", "MR_small.dcm")]
    among = predicted(tissue_run, tmp_path / "both", *paths)
    alone = [predicted(tissue_run, tmp_path / f"{n}", path)[0] for n, path in enumerate(paths)]
    for one, other in zip(among, alone, strict=True):
        assert one | {"mask": ""} == other | {"mask": ""}
        assert Path(one["mask"]).read_bytes() == Path(other["mask"]).read_bytes()


def test_the_mask_of_a_series_lies_on_its_slices(volume_run, tmp_path):
    heights = (4, 0, 6, 2)
    folder = series(tmp_path / "ct", heights=heights, orientation=OBLIQUE)
    (found,) = predicted(volume_run, tmp_path / "out", folder)
    mask = nibabel.load(found["mask"])
    assert mask.shape == (4, 6, 4)
    assert mask.header.get_zooms() == pytest.approx((0.5, 0.75, 2))
    for path in folder.iterdir():
        tags = pydicom.dcmread(path)
        number = sorted(heights).index(heights[tags.InstanceNumber - 1])
        left, back, up = tags.ImagePositionPatient
        np.testing.assert_allclose((mask.affine @ [0, 0, number, 1])[:3], [-left, -back, up], atol=1e-4)


def test_the_network_of_volumes_was_told_their_grid(volume_run, tmp_path):
    """A turned and a finer copy of a volume of the training give the turned and the finer mask."""
    scan = nibabel.load(volume_run.parent / "image0.nii.gz")
    plain = str(volume_run.parent / "image0.nii.gz")
    turned = scan.as_reoriented(nibabel.orientations.axcodes2ornt("SPL"))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    fine = np.asarray(scan.dataobj).repeat(2, 2)
    nibabel.save(nibabel.Nifti1Image(fine, np.diag([1, 1, 0.5, 1])), tmp_path / "fine.nii.gz")
    found = predicted(volume_run, tmp_path / "out", plain, tmp_path / "turned.nii.gz", tmp_path / "fine.nii.gz")
    assert [each["resampled"] for each in found] == [[], ["to RAS"], ["to 1×1×1 mm"]]
    masks = [nibabel.load(each["mask"]) for each in found]
    assert 0 < np.asarray(masks[0].dataobj).mean() < 0.5
    expected = masks[0].as_reoriented(nibabel.orientations.axcodes2ornt("SPL"))
    np.testing.assert_allclose(masks[1].affine, turned.affine, atol=1e-6)
    np.testing.assert_array_equal(masks[1].dataobj, expected.dataobj)
    doubled, mask = np.asarray(masks[0].dataobj).repeat(2, 2), np.asarray(masks[2].dataobj)
    assert mask.shape == fine.shape
    assert 2 * (mask & doubled).sum() / (mask.sum() + doubled.sum()) > 0.8


def test_pictures_of_the_test_images_get_the_probabilities_of_the_training(tmp_path):
    """Alone, read from a PNG, as in the batches in which the run itself was judged."""
    data = write_npz(tmp_path / "tiny.npz")
    options = ["--epochs", "2", "--batch-size", "16", "--out", str(tmp_path / "run")]
    assert run(["train", "lung", "--data", str(data), *options]) == 0
    with np.load(data) as stored:
        paths = [tmp_path / f"{n:02}.png" for n in range(len(stored["test_images"]))]
        for path, values in zip(paths, stored["test_images"], strict=True):
            Image.fromarray(values).save(path)
    found = predicted(tmp_path / "run", tmp_path / "out", *paths)
    rows = list(csv.DictReader((tmp_path / "run" / "outcomes.csv").read_text().splitlines()))
    assert len(found) == len(rows) == 20
    for each, row in zip(found, rows, strict=True):
        judged = {name: float(row[f"p_{name}"]) for name in ("normal", "pneumonia")}
        assert each["probabilities"] == pytest.approx(judged, abs=1e-5)


def test_a_larger_picture_is_seen_in_the_size_of_the_training(tmp_path):
    data = write_npz(tmp_path / "tiny.npz")
    options = ["--epochs", "1", "--batch-size", "16", "--out", str(tmp_path / "run")]
    assert run(["train", "lung", "--data", str(data), *options]) == 0
    with np.load(data) as stored:
        values = stored["test_images"][1]
    Image.fromarray(values).save(tmp_path / "small.png")
    Image.fromarray(values.repeat(3, 0).repeat(2, 1)).save(tmp_path / "large.png")
    small, large = predicted(tmp_path / "run", tmp_path / "out", tmp_path / "small.png", tmp_path / "large.png")
    assert (small["resampled"], large["resampled"]) == ([], ["to 12×12 pixels"])
    assert large["probabilities"] == pytest.approx(small["probabilities"], abs=1e-5)


@pytest.mark.skipif(not BRAINS.is_dir(), reason="the real images are not beside this repository")
def test_the_masks_of_real_volumes_of_two_modalities_lie_on_them(tmp_path):
    manifest = tmp_path / "manifest.csv"
    patterns = ["--image", "Flair*.nii.gz", "--image", "T1c*.nii.gz", "--mask", "OT*.nii.gz"]
    assert run(["data", "manifest", str(BRAINS), *patterns, "--out", str(manifest)]) == 0
    sizes = ["--image-size", "48,48,32", "--patch-size", "32,32,32", "--patches-per-volume", "1"]
    options = ["--data", str(manifest), *sizes, "--epochs", "1", "--folds", "2", "--batch-size", "2"]
    assert run(["train", "brain3d", *options, "--out", str(tmp_path / "run")]) == 0
    patients = sorted(folder for folder in BRAINS.iterdir() if folder.is_dir())[:2]
    inputs = [";".join(str(next(folder.glob(f"{name}*.nii.gz"))) for name in ("Flair", "T1c")) for folder in patients]
    found = predicted(tmp_path / "run", tmp_path / "out", *inputs)
    assert [Path(each["mask"]).name for each in found] == [
        f"{folder.name}-{next(folder.glob('Flair*')).name.removesuffix('.nii.gz')}-mask.nii.gz" for folder in patients
    ]
    for each, folder in zip(found, patients, strict=True):
        mask, scan = nibabel.load(each["mask"]), nibabel.load(next(folder.glob("Flair*.nii.gz")))
        np.testing.assert_array_equal(mask.affine, scan.affine)
        assert mask.shape == scan.shape
        assert mask.header.get_zooms() == scan.header.get_zooms()
        assert sum(each["voxels"].values()) == np.prod(scan.shape)
