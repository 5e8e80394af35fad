import csv
import io
import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from mednorm.data import load_mask, read_image
from mednorm.errors import ConfigError, DataError, RunError
from mednorm.training import prediction
from mednorm.training.prediction import Prediction, predict_run, predictions_csv
from tests.unit.data.dicoms import OBLIQUE, dicom, series
from tests.unit.training.runs import ball, nifti, seen_ahead, volume_run, write_run

RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def loaded(path):
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def write_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return str(path)


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


# Slices


def test_the_mask_of_a_picture_has_its_size_and_the_classes_of_the_network(tmp_path):
    disc = ball((23, 31))
    path = write_png(tmp_path / "disc.png", disc)
    (found,) = predict_run(write_run(tmp_path / "run", image_size=[23, 31]), [path], tmp_path / "out")
    assert found.mask == tmp_path / "out" / "disc-mask.png"
    np.testing.assert_array_equal(load_mask(found.mask), disc > 50)
    inside = int((disc > 50).sum())
    assert found.voxels == {"background": 23 * 31 - inside, "1": inside}
    assert found.shares["1"] == inside / (23 * 31)
    assert (found.size, found.spacing, found.millilitres, found.resampled) == ((23, 31), None, None, ())


def test_a_picture_is_seen_in_the_size_of_the_training_and_its_mask_is_in_its_own(tmp_path):
    disc = ball((64, 96), radius=20)
    path = write_png(tmp_path / "disc.png", disc)
    (found,) = predict_run(write_run(tmp_path / "run", image_size=[32, 32]), [path], tmp_path / "out")
    mask = load_mask(found.mask)
    assert (mask.shape, found.resampled) == ((64, 96), ("to 32×32 pixels",))
    assert dice(mask, disc > 50) > 0.95


def test_the_probabilities_are_brought_back_rather_than_the_classes(tmp_path):
    """On a ramp the contour lies where it crosses the threshold; classes would put it midway between two pixels."""
    ramp = np.tile(2.0 * np.arange(128), (32, 1))
    path = write_png(tmp_path / "ramp.png", ramp)
    (found,) = predict_run(write_run(tmp_path / "run", image_size=[16, 16]), [path], tmp_path / "out")
    (first,) = {int(row.argmax()) for row in load_mask(found.mask)}
    crossing = np.arange(128).mean() + 0.5 * np.arange(128).std()
    assert abs(crossing - 79.5) > 2  # where the middle of the two pixels of the training is
    assert abs(first - crossing) <= 1


def test_a_dicom_slice_gives_a_volume_of_one_slice_in_its_place(tmp_path):
    path = dicom(tmp_path / "one.dcm", ImagePositionPatient=[1.0, 2.0, 3.0], ImageOrientationPatient=list(OBLIQUE))
    (found,) = predict_run(write_run(tmp_path / "run"), [str(path)], tmp_path / "out")
    mask, affine = loaded(found.mask)
    assert mask.shape == (4, 6, 1)
    np.testing.assert_allclose(affine, read_image(path).geometry.affine, atol=1e-6)
    voxel = 0.5 * 0.75 * 9 / 1000
    assert sum(found.millilitres.values()) == pytest.approx(24 * voxel)
    assert found.spacing == (0.5, 0.75)


def test_a_volume_of_one_slice_is_a_slice_and_keeps_its_axes(tmp_path):
    disc = ball((20, 24))
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    path = nifti(tmp_path / "one.nii.gz", disc[..., None], affine)
    (found,) = predict_run(write_run(tmp_path / "run", image_size=[20, 24]), [path], tmp_path / "out")
    mask, where = loaded(found.mask)
    np.testing.assert_array_equal(mask, disc[..., None] > 50)
    np.testing.assert_array_equal(where, affine)
    assert found.millilitres["1"] == pytest.approx((disc > 50).sum() * 24 / 1000)


def test_several_files_are_the_channels_in_their_order(tmp_path):
    """The network takes the second channel from the first: swapped, nothing is left."""
    disc, other = ball((20, 24)), ball((20, 24), centre=[14, 18])
    first, second = write_png(tmp_path / "a.png", disc), write_png(tmp_path / "b.png", other)
    run = write_run(tmp_path / "run", channels=2, image_size=[20, 24])
    found = predict_run(run, [f"{first};{second}", f"{second};{first}"], tmp_path / "out")
    np.testing.assert_array_equal(load_mask(found[0].mask), disc > 50)
    np.testing.assert_array_equal(load_mask(found[1].mask), other > 50)


# Volumes


def test_a_volume_seen_in_windows_gives_the_mask_known_by_hand(tmp_path):
    scan, affine = ball(), np.array([[0.0, -0.8, 0, 5], [0.9, 0, 0, -3], [0, 0, 1.5, 2], [0, 0, 0, 1]])
    path = nifti(tmp_path / "scan.nii.gz", scan, affine)
    (found,) = predict_run(volume_run(tmp_path / "run"), [path], tmp_path / "out")
    mask, where = loaded(found.mask)
    np.testing.assert_array_equal(mask, seen_ahead(scan))
    np.testing.assert_allclose(where, affine, atol=1e-6)
    assert nibabel.load(found.mask).header.get_zooms() == pytest.approx((0.9, 0.8, 1.5))
    assert found.millilitres["1"] == pytest.approx(seen_ahead(scan).sum() * 0.9 * 0.8 * 1.5 / 1000, rel=1e-5)


def test_a_series_is_seen_in_the_order_of_its_positions(tmp_path):
    folder = series(tmp_path / "ct", heights=(5, 0, 7.5, 2.5), orientation=OBLIQUE)
    image = read_image(folder)
    (found,) = predict_run(volume_run(tmp_path / "run", network="bright"), [str(folder)], tmp_path / "out")
    mask, affine = loaded(found.mask)
    values = image.pixels[0]
    np.testing.assert_array_equal(mask, values > values.mean() + 0.5 * values.std())
    np.testing.assert_allclose(affine, image.geometry.affine, atol=1e-6)
    assert found.mask.name == "ct-mask.nii.gz"


def reoriented(values, affine, codes):
    image = nibabel.Nifti1Image(values, affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


@pytest.mark.parametrize("codes", ["LAS", "LPI", "SAR", "PIL"])
@pytest.mark.parametrize("more", [{}, {"spacing": [1.0, 1.0, 1.0]}, {"image_size": [20, 18, 16]}])
def test_a_turned_copy_gives_the_turned_mask(tmp_path, codes, more):
    """The network looks along the first axis, so that it sees another image if the axes are left as they are."""
    scan = ball()
    plain = nifti(tmp_path / "plain.nii.gz", scan, RAS)
    turned, affine = reoriented(scan, RAS, codes)
    copy = nifti(tmp_path / "copy.nii.gz", turned, affine)
    run = volume_run(tmp_path / "run", orientation="RAS", **more)
    first, second = predict_run(run, [plain, copy], tmp_path / "out")
    np.testing.assert_array_equal(loaded(first.mask)[0], seen_ahead(scan))
    mask, where = loaded(second.mask)
    np.testing.assert_array_equal(mask, reoriented(seen_ahead(scan), RAS, codes)[0])
    np.testing.assert_allclose(where, affine, atol=1e-6)
    assert (first.resampled, second.resampled) == ((), ("to RAS",))
    without = volume_run(tmp_path / "without")
    (other,) = predict_run(without, [copy], tmp_path / "other")
    assert not np.array_equal(loaded(other.mask)[0], mask)


def test_a_copy_of_other_spacing_gives_the_mask_in_its_spacing(tmp_path):
    """Each voxel of the copy is a quarter as long along the first axis; the network looks 3 mm ahead, not 3 voxels."""
    scan = ball((32, 24, 24), radius=7)
    fine, affine = scan.repeat(4, 0), np.diag([0.25, 1.0, 1.0, 1.0])
    affine[0, 3] = -0.375  # the outer faces of the two grids lie in one place
    path = nifti(tmp_path / "fine.nii.gz", fine, affine)
    expected = seen_ahead(scan).repeat(4, 0)
    run = volume_run(tmp_path / "run", orientation="RAS", spacing=[1.0, 1.0, 1.0])
    (found,) = predict_run(run, [path], tmp_path / "out")
    mask, where = loaded(found.mask)
    assert (mask.shape, found.resampled) == ((128, 24, 24), ("to 1×1×1 mm",))
    np.testing.assert_allclose(where, affine, atol=1e-6)
    assert dice(mask, expected) > 0.95
    (other,) = predict_run(volume_run(tmp_path / "without"), [path], tmp_path / "other")
    assert dice(loaded(other.mask)[0], expected) < 0.85


def test_a_volume_is_resampled_to_the_size_of_the_training_where_there_is_one(tmp_path):
    scan = ball((40, 36, 32), radius=10)
    path = nifti(tmp_path / "scan.nii.gz", scan, RAS)
    (found,) = predict_run(volume_run(tmp_path / "run", network="bright", image_size=[20, 18, 16]), [path], tmp_path)
    assert found.resampled == ("to 20×18×16 voxels",)
    assert dice(loaded(found.mask)[0], scan > 50) > 0.92


# Probabilities


def test_probabilities_are_written_with_the_classes_last_and_sum_to_one(tmp_path):
    scan, affine = ball(), np.diag([1.0, 2.0, 3.0, 1.0])
    path = nifti(tmp_path / "scan.nii.gz", scan, affine)
    run = volume_run(tmp_path / "run", classes=["background", "a", "b"])
    (found,) = predict_run(run, [path], tmp_path / "out", probabilities=True)
    chances, where = loaded(found.probability_map)
    assert found.probability_map == tmp_path / "out" / "scan-probabilities.nii.gz"
    assert (chances.shape, chances.dtype) == ((*scan.shape, 3), np.float32)
    np.testing.assert_allclose(chances.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(chances.argmax(-1), loaded(found.mask)[0])
    np.testing.assert_array_equal(where, affine)


def test_the_probabilities_of_a_slice_lie_on_its_volume_of_one_slice(tmp_path):
    path = dicom(tmp_path / "one.dcm", ImagePositionPatient=[1.0, 2.0, 3.0], ImageOrientationPatient=list(OBLIQUE))
    (found,) = predict_run(write_run(tmp_path / "run"), [str(path)], tmp_path / "out", probabilities=True)
    chances, where = loaded(found.probability_map)
    mask, affine = loaded(found.mask)
    np.testing.assert_array_equal(chances.argmax(-1), mask)
    np.testing.assert_array_equal(where, affine)


def test_the_probabilities_of_a_picture_are_written_for_numpy(tmp_path):
    path = write_png(tmp_path / "disc.png", ball((23, 31)))
    (found,) = predict_run(write_run(tmp_path / "run"), [path], tmp_path / "out", probabilities=True)
    chances = np.load(found.probability_map)
    assert (found.probability_map.name, chances.shape) == ("disc-probabilities.npy", (23, 31, 2))
    np.testing.assert_array_equal(chances.argmax(-1), load_mask(found.mask))


# Classification


@pytest.fixture
def lung_run(tmp_path):
    return write_run(tmp_path / "lung", task="lung", network="classifier", classes=["normal", "ill"])


def halves(tmp_path, name, left, right):
    values = np.zeros((12, 12))
    values[:, :6], values[:, 6:] = left, right
    return write_png(tmp_path / name, values)


def test_each_image_gets_its_class_and_probabilities(lung_run, tmp_path):
    paths = [halves(tmp_path, "a.png", 200, 50), halves(tmp_path, "b.png", 50, 200)]
    found = predict_run(lung_run, paths, None)
    assert [each.predicted for each in found] == ["ill", "normal"]
    # The scaling of the run is that of no training: mean 0 and standard deviation 1.
    assert all(sum(each.probabilities.values()) == pytest.approx(1, abs=1e-12) for each in found)
    assert all(each.mask is None and each.voxels is None for each in found)


def test_an_image_is_predicted_alike_alone_and_among_others(lung_run, tmp_path):
    paths = [halves(tmp_path, f"{n}.png", 100 + n, 100) for n in range(4)]
    among = predict_run(lung_run, paths, None)
    for path, each in zip(paths, among, strict=True):
        assert predict_run(lung_run, [path], None) == [each]


# As data


def test_the_table_has_what_the_predictions_say(lung_run, tmp_path):
    found = predict_run(lung_run, [halves(tmp_path, f"{n}.png", 100 + n / 4, 100) for n in range(3)], None)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(found))))
    assert [row["image"] for row in rows] == [each.image for each in found]
    for row, each in zip(rows, found, strict=True):
        assert {name: float(row[f"probabilities/{name}"]) for name in ("normal", "ill")} == each.probabilities
        assert (row["predicted"], row["size"], row["spacing_mm"]) == (each.predicted, "12x12", "")


def test_the_table_of_masks_has_volumes_where_they_are_known(tmp_path):
    paths = [nifti(tmp_path / "a.nii.gz", ball((20, 24))[..., None], RAS), write_png(tmp_path / "b.png", ball((9, 7)))]
    found = predict_run(write_run(tmp_path / "run"), paths, tmp_path / "out")
    first, second = csv.DictReader(io.StringIO(predictions_csv(found)))
    assert float(first["millilitres/1"]) == found[0].millilitres["1"]
    assert second["millilitres/1"] == ""
    assert (first["mask"], int(second["voxels/1"])) == (str(found[0].mask), found[1].voxels["1"])
    assert [json.loads(json.dumps(each.to_dict()))["millilitres"] for each in found] == [found[0].millilitres, None]


def test_a_prediction_tells_each_kind_its_own():
    image = Prediction("a.png", (2, 2), None, (), probabilities={"x": 0.5, "y": 0.5})
    assert image.predicted == "x"
    assert set(image.to_dict()) == {"image", "size", "spacing_mm", "resampled", "notes", "predicted", "probabilities"}
    assert (image.shares, image.millilitres) == ({}, None)


# Mistakes


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_the_last_name_is_checked_before_the_first_image_is_predicted(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_predicted", lambda *_: pytest.fail("predicted"))
    path = write_png(tmp_path / "disc.png", ball((9, 9)))
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    with pytest.raises(DataError, match=r"got no file at .*typo\.png"):
        predict_run(run, [path, str(tmp_path / "typo.png")], out)
    scan = nifti(tmp_path / "scan.nii", ball(), RAS)
    with pytest.raises(RunError, match=r"scan\.nii: expected 2-D images.* got a 3-D image of size \(20, 18, 16\)"):
        predict_run(run, [path, scan], out)
    with pytest.raises(RunError, match=r"disc\.png: expected 3-D images.* got a 2-D image of size \(9, 9\)"):
        predict_run(volume_run(tmp_path / "volumes"), [scan, path], out)
    assert not out.exists()


@pytest.mark.parametrize("ending", ["mask.png", "mask.nii.gz", "probabilities.npy"])
def test_a_file_that_is_there_is_refused_before_anything_is_written(tmp_path, ending):
    paths = [write_png(tmp_path / f"{name}.png", ball((9, 9))) for name in "ab"]
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / f"b-{ending}").write_text("mine")
    with pytest.raises(DataError, match=rf"b-{ending}: expected no file there, got one\."):
        predict_run(run, paths, out, probabilities=True)
    assert listing(out) == {f"b-{ending}": b"mine"}
    predict_run(run, paths, out, probabilities=True, overwrite=True)
    assert {"a-mask.png", "b-mask.png"} <= set(listing(out))
    assert b"mine" not in (listing(out)["b-mask.png"], listing(out)["b-probabilities.npy"])


@pytest.mark.parametrize("linked", [False, True])
def test_an_input_is_never_overwritten(tmp_path, linked):
    """A mask drawn by hand beside its scan, both named by a pattern: the scan's mask would replace it."""
    folder, scan = tmp_path / "d", ball()
    paths = [nifti(folder / "scan.nii.gz", scan, RAS), nifti(folder / "scan-mask.nii.gz", scan, RAS)]
    if linked:
        (folder / "scan-mask.nii.gz").rename(folder / "4f2a.nii.gz")
        (folder / "scan-mask.nii.gz").symlink_to("4f2a.nii.gz")
    before = listing(folder)
    with pytest.raises(DataError, match=r"scan-mask\.nii\.gz: expected what is written to leave .* got .*scan-mask"):
        predict_run(volume_run(tmp_path / "run"), paths, folder, overwrite=True)
    assert listing(folder) == before


@pytest.mark.parametrize("within", [".", "masks"])
def test_nothing_is_written_among_the_slices_of_a_series(tmp_path, within):
    folder = series(tmp_path / "ct")
    before = listing(folder)
    with pytest.raises(DataError, match=r"ct: expected what is written to leave the images alone, got .*ct-mask"):
        predict_run(volume_run(tmp_path / "run"), [str(folder)], folder / within, overwrite=True)
    assert listing(folder) == before


def test_no_table_is_written_among_the_slices_of_a_series(tmp_path, lung_run):
    folder = tmp_path / "one"
    dicom(folder / "a.dcm")
    with pytest.raises(DataError, match=r"got .*one/predictions\.json"):
        predict_run(lung_run, [str(folder)], folder)


def test_a_volume_that_does_not_say_where_it_lies_is_taken_as_it_is_and_keeps_its_spacing(tmp_path):
    scan = ball()
    image = nibabel.Nifti1Image(scan, None)
    image.header.set_zooms((2.0, 1.0, 3.0))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    run = volume_run(tmp_path / "run", orientation="RAS")
    (found,) = predict_run(run, [str(tmp_path / "scan.nii.gz")], tmp_path / "out")
    assert found.resampled == ("orientation unknown, taken as it is",)
    assert (found.spacing, found.millilitres["1"]) == ((2, 1, 3), pytest.approx(seen_ahead(scan).sum() * 6 / 1000))
    header = nibabel.load(found.mask).header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_zooms()) == (0, 0, (2, 1, 3))
    np.testing.assert_array_equal(loaded(found.mask)[0], seen_ahead(scan))


def test_a_failure_names_its_image_and_keeps_the_masks_before_it(tmp_path):
    paths = [write_png(tmp_path / f"{name}.png", ball((9, 9))) for name in "abcd"]
    write_png(tmp_path / "c.png", np.zeros((9, 9, 3)))
    told, out = [], tmp_path / "out"
    with pytest.raises(RunError) as caught:
        predict_run(write_run(tmp_path / "run"), paths, out, progress=told.append)
    assert str(caught.value).startswith(f"{paths[2]}: expected 1 channel, ")
    assert "got 3." in str(caught.value)
    assert str(caught.value).endswith(f"The 2 of 4 images before it were predicted; their masks are in {out}.")
    assert [each.image for each in told] == paths[:2]
    assert sorted(listing(out)) == ["a-mask.png", "b-mask.png"]


def test_a_nifti_of_four_axes_has_its_channels_counted(tmp_path):
    path = nifti(tmp_path / "four.nii", np.zeros((8, 8, 8, 5), np.float32), RAS)
    with pytest.raises(RunError, match=r"four\.nii: expected 1 channel, .* got 5\."):
        predict_run(volume_run(tmp_path / "run"), [path], tmp_path / "out")


def test_nan_in_an_image_is_counted(tmp_path):
    values = ball()
    values[0, 0, :3] = np.nan
    path = nifti(tmp_path / "scan.nii", values, RAS)
    with pytest.raises(DataError, match=r"scan\.nii: expected finite numbers, got NaN or inf in 3 of 5760 voxels"):
        predict_run(volume_run(tmp_path / "run"), [path], tmp_path / "out")


def test_masks_need_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="out: expected a folder for the masks, got none"):
        predict_run(write_run(tmp_path / "run"), ["a.png"], None)
    path, taken = write_png(tmp_path / "disc.png", ball((9, 9))), tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(RunError, match="taken: expected a folder, or room for one, got: File exists"):
        predict_run(write_run(tmp_path / "other"), [path], taken)
    assert taken.read_text() == "mine"


def test_random_numbers_are_left_as_they_were(tmp_path):
    path = write_png(tmp_path / "disc.png", ball((16, 16)))
    before = torch.random.get_rng_state()
    with torch.random.fork_rng():
        run = write_run(tmp_path / "run", network="unet")
    predict_run(run, [path], tmp_path / "out")
    assert torch.equal(torch.random.get_rng_state(), before)
