"""Sample images: pixels, labels, and files that are not what they should be."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mednorm.errors import RunError
from mednorm.report.samples import class_colour, galleries, grey_levels, overlay, read_samples
from tests.report_fixture import NORMS, make_results, sample_arrays, write_samples


def _pixels(picture):
    head, data = picture.source.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_grey_levels_run_between_the_percentiles():
    image = np.linspace(-50, 950, 1001, dtype=np.float32).reshape(1, 7, 143)
    grey = grey_levels(image)
    low, high = np.percentile(image, (1, 99))
    wanted = np.clip((image[0] - low) / (high - low), 0, 1) * 255
    assert np.abs(grey[..., 0] - wanted).max() <= 0.5
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()


def test_an_image_of_one_value_is_grey_not_a_division_by_zero():
    assert np.unique(grey_levels(np.full((1, 4, 4), 3.0, np.float32))).tolist() == [128]


def test_a_rare_bright_spot_in_a_constant_image_stays_visible():
    image = np.zeros((1, 64, 64), np.float32)
    image[0, 5, 5] = 1
    grey = grey_levels(image)
    assert (grey[5, 5, 0], grey[0, 0, 0]) == (255, 0)


def test_colour_images_keep_their_colours():
    image = np.zeros((3, 2, 2), np.float32)
    image[0] = 1
    assert (grey_levels(image) == [255, 0, 0]).all()


def test_an_overlay_leaves_background_alone_and_tints_labels_towards_their_colour():
    picture = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.int64)
    labels[2:7, 2:7] = 2
    tinted = overlay(picture, labels)
    colour = np.array([int(class_colour(2)[i : i + 2], 16) for i in (1, 3, 5)])
    assert (tinted[labels == 0] == 100).all()
    assert np.abs(tinted[4, 4] - (0.62 * 100 + 0.38 * colour)).max() <= 0.5
    assert np.abs(tinted[2, 4] - (0.15 * 100 + 0.85 * colour)).max() <= 0.5


def test_segmentation_shows_image_truth_and_prediction_side_by_side(tmp_path):
    results = make_results()
    write_samples(results, tmp_path)
    shown = galleries(results, tmp_path)
    assert [gallery.norm for gallery in shown] == ["none", "batch", "group", "instance"]
    arrays = sample_arrays()
    for gallery in shown:
        assert gallery.run == f"{gallery.norm}-none-b8-s0"
        assert [sample.name for sample in gallery.samples] == arrays["name"][:6].tolist()
        for i, sample in enumerate(gallery.samples):
            grey = grey_levels(arrays["image"][i])
            image, truth, prediction = (_pixels(picture) for picture in sample.pictures)
            assert (image == grey).all()
            assert (truth == overlay(grey, arrays["truth"][i])).all()
            assert (prediction == overlay(grey, arrays["prediction"][i])).all()


def test_the_text_beside_an_overlay_says_how_much_of_each_class_is_there(tmp_path):
    results = make_results()
    write_samples(results, tmp_path)
    truth = sample_arrays()["truth"][0]
    share = 100 * (truth == 1).mean()
    assert f"grey matter {share:.1f} % of pixels" in galleries(results, tmp_path)[0].samples[0].pictures[1].alt


def test_classification_says_truth_prediction_probability_and_whether_it_was_right(tmp_path):
    results = make_results("classification", seeds=[0])
    write_samples(results, tmp_path)
    samples = galleries(results, tmp_path)[0].samples
    assert [sample.right for sample in samples] == [True, True, False, True, True, True]
    assert (samples[2].truth, samples[2].prediction, samples[2].probability) == ("healthy", "pneumonia", "0.875")
    assert len(samples[2].pictures) == 1


def test_a_network_whose_probabilities_are_not_numbers_still_has_its_samples_shown(tmp_path):
    results = make_results("classification", seeds=[0])
    for path in write_samples(results, tmp_path):
        arrays = sample_arrays("classification")
        np.savez(path, **{**arrays, "probability": np.full_like(arrays["probability"], np.nan)})
    assert {sample.probability for sample in galleries(results, tmp_path)[0].samples} == {"–"}


def test_large_images_are_made_smaller(tmp_path):
    results = make_results(seeds=[0])
    results = results.model_copy(update={"runs": results.runs[:1]})
    write_samples(results, tmp_path, size=700, count=1)
    picture = galleries(results, tmp_path)[0].samples[0].pictures[0]
    assert (picture.width, picture.height) == (320, 320)


def test_only_the_first_seed_without_regularizer_at_the_base_batch_size_is_shown(tmp_path):
    results = make_results()
    write_samples(results, tmp_path)
    runs = [run for run in results.runs if run.seed != 0]
    assert galleries(results.model_copy(update={"runs": runs}), tmp_path) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=re.escape("runs/none-none-b8-s0/samples.npz")) as caught:
        galleries(make_results(), tmp_path)
    assert "none-none-b8-s0: expected a file, found none" in str(caught.value)


@pytest.mark.parametrize("escape", ["../outside.npz", "runs/../../outside.npz", "/etc/hostname"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, escape):
    folder = tmp_path / "results"
    folder.mkdir()
    np.savez(tmp_path / "outside.npz", **sample_arrays())
    results = make_results()
    runs = [run.model_copy(update={"samples": escape}) if run.samples else run for run in results.runs]
    with pytest.raises(RunError, match="expected samples inside") as caught:
        galleries(results.model_copy(update={"runs": runs}), folder)
    assert repr(escape) in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    np.savez(tmp_path / "outside.npz", **sample_arrays())
    (folder / "link.npz").symlink_to(tmp_path / "outside.npz")
    results = make_results()
    runs = [run.model_copy(update={"samples": "link.npz"}) if run.samples else run for run in results.runs]
    with pytest.raises(RunError, match="expected samples inside"):
        galleries(results.model_copy(update={"runs": runs}), folder)


def _damage(path, how):
    whole = path.read_bytes()
    if how == "text":
        path.write_text("not an npz")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "overwritten":
        path.write_bytes(whole[:200] + b"\x00" * 400 + whole[600:])
    elif how == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif how == "pickled":
        np.savez(path, image=np.array([{}], dtype=object))


@pytest.mark.parametrize("how", ["text", "empty", "cut", "overwritten", "one array", "pickled"])
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, **sample_arrays())
    _damage(path, how)
    with pytest.raises(RunError, match="expected an npz of plain arrays") as caught:
        read_samples(path, kind="segmentation", classes=4)
    assert str(path) in str(caught.value)
    assert "Delete the run's folder" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "change", "got"),
    [
        ("image", lambda a: a[:, 0], "(7, 48, 48)"),
        ("image", lambda a: np.repeat(a, 2, axis=1), "(7, 2, 48, 48)"),
        ("image", lambda a: a.astype(np.int64), "int64"),
        ("image", lambda a: np.where(a > a.mean(), np.nan, a), "NaN or infinity"),
        ("truth", lambda a: a[:, :5], "(7, 5, 48)"),
        ("truth", lambda a: a + 1, "1 to 4"),
        ("prediction", lambda a: a.astype(np.float32), "float32"),
        ("prediction", lambda a: a - 1, "-1 to 2"),
        ("name", lambda a: a[:3], "(3,)"),
        ("site", lambda a: np.zeros(7), "float64"),
        ("site", None, "none named site"),
    ],
)
def test_an_odd_array_is_reported_with_what_came(tmp_path, key, change, got):
    arrays = sample_arrays()
    if change is None:
        del arrays[key]
    else:
        arrays[key] = change(arrays[key])
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(RunError, match=re.escape(f"got {got}")):
        read_samples(tmp_path / "odd.npz", kind="segmentation", classes=4)


@pytest.mark.parametrize(
    ("change", "got"),
    [(lambda a: a[:, :1], "(7, 1)"), (lambda a: a + 1, "values outside it"), (None, "none named probability")],
)
def test_an_odd_probability_is_reported(tmp_path, change, got):
    arrays = sample_arrays("classification")
    if change is None:
        del arrays["probability"]
    else:
        arrays["probability"] = change(arrays["probability"])
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(RunError, match=re.escape(got)):
        read_samples(tmp_path / "odd.npz", kind="classification", classes=2)


def test_samples_of_other_networks_shares_and_folds_are_not_shown(tmp_path):
    results = make_results(more=True, folds=2)
    # The runs of other arms come first, and name files that are not there.
    others = [run.model_copy(update={"network": "deeper_unet", "samples": "none.npz"}) for run in results.runs[:2]] + [
        run.model_copy(update={"train_share": 0.5, "samples": "none.npz"}) for run in results.runs[:2]
    ]
    write_samples(results, tmp_path)
    shown = galleries(results.model_copy(update={"runs": [*others, *results.runs]}), tmp_path)
    assert [gallery.run for gallery in shown] == [f"{norm}-none-b8-s0-f1of2" for norm in NORMS[:4]]
