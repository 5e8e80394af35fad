"""The article's network as an example: it says what it measured, and refuses what it cannot read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.keras.backends import once

ROOT = Path(__file__).resolve().parents[2]
LUNG = ROOT.parent / "shared" / "data" / "lung" / "pneumoniamnist.npz"
ROW = re.compile(r"^(\w+) +(\d+) +(\d\.\d{3}) +\d+\.\d$", re.MULTILINE)


def example(*arguments):
    command = [sys.executable, ROOT / "examples" / "article_cnn.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def printed(*arguments):
    done = example(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(text):
    found = {}
    for norm, _, accuracy in ROW.findall(text):
        found.setdefault(norm, []).append(float(accuracy))
    return found


def number(text, before):
    return float(re.search(re.escape(before) + r" ?([-+]?\d[\d.e+-]*)", text)[1])


def arrays(**changed):
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", 64), ("test", 32)):
        made[f"{split}_labels"] = np.arange(count)[:, None] % 2
        made[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
    return made | changed


@pytest.mark.slow
@once
def test_on_brain_patches_batch_normalization_learns_and_the_differences_are_those_of_the_table():
    text = printed("--epochs", 6, "--seeds", 2)
    found = accuracies(text)
    assert {norm: len(values) for norm, values in found.items()} == {"none": 2, "bn": 2}
    assert max(found["bn"]) > number(text, "images;") + 0.15
    differences = [b - a for a, b in zip(found["none"], found["bn"], strict=True)]
    assert number(text, "mean accuracy: none") == pytest.approx(np.mean(found["none"]), abs=1.1e-3)
    assert number(text, "difference:") == pytest.approx(np.mean(differences), abs=1.6e-3)
    assert number(text, "over seeds") == pytest.approx(min(differences), abs=1.6e-3)
    assert number(text, " to") == pytest.approx(max(differences), abs=1.6e-3)
    assert number(text, "at most") < 1e-4


@pytest.mark.slow
@once
def test_no_test_patch_is_a_training_patch_and_the_pytorch_side_is_not_imported():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import article_cnn; made = article_cnn.patches()\n"
        "train, test = ([image.tobytes() for image in made[f'{split}_images']] for split in ('train', 'test'))\n"
        "print(len(train), len(test), len({*train} & {*test}))\n"
        "print({*made['train_labels'][:, 0].tolist()} == {*made['test_labels'][:, 0].tolist()} == {0, 1})\n"
        "print('mednorm.layers' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, ROOT / "examples"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2648 1367 0", "True", "False"]


@pytest.mark.slow
@pytest.mark.skipif(not LUNG.exists(), reason="the real images are not beside this repository")
def test_on_chest_radiographs_batch_normalization_beats_the_larger_class():
    text = printed("--data", LUNG, "--epochs", 4, "--seeds", 1)
    assert "800 of 4708 training images, all 624 test" in text
    assert number(text, "images;") == 0.625
    found = accuracies(text)
    assert max(found["bn"] + found["none"]) > 0.625 + 0.1
    assert min(found["bn"]) > 0.625 + 0.03


@pytest.mark.slow
def test_a_file_of_colour_images_and_another_normalization_are_trained_on(tmp_path):
    colour = {name: np.repeat(images[..., None], 3, -1) for name, images in arrays().items() if "images" in name}
    np.savez(tmp_path / "colour.npz", **arrays(**colour))
    text = printed("--data", tmp_path / "colour.npz", "--epochs", 1, "--seeds", 1, "--normalization", "renorm")
    assert "28 × 28 × 3: 64 of 64 training images, all 32 test" in text
    assert set(accuracies(text)) == {"none", "renorm"}


@pytest.mark.parametrize(
    ("changed", "received"),
    [
        ({"test_labels": np.full((32, 1), 7)}, "got 7 to 7 in test_labels"),
        ({"train_labels": np.arange(64)[:, None] - 1}, "got -1 to 62 in train_labels"),
        ({"train_labels": np.zeros(64, int)}, "got train_labels of int64 (64,)"),
        ({"train_images": np.zeros((64, 28, 28))}, "got train_images of float64 (64, 28, 28)"),
        ({"test_images": np.zeros((32, 64, 64), np.uint8)}, "got (64, 64) in test_images"),
        ({"train_images": np.zeros((64, 4, 28), np.uint8)}, "got train_images of uint8 (64, 4, 28)"),
        ({"test_images": np.array([{}], object)}, "allow_pickle=False"),
    ],
    ids=["test label", "negative label", "flat labels", "float images", "two sizes", "flat images", "pickle"],
)
@once
def test_wrong_arrays_are_one_line_that_ends_in_what_was_received(tmp_path, changed, received):
    np.savez(tmp_path / "images.npz", **arrays(**changed))
    refused("--data", tmp_path / "images.npz", received=received)


@once
def test_a_missing_array_file_or_format_is_one_line(tmp_path):
    np.savez(tmp_path / "few.npz", train_images=np.zeros(3))
    (tmp_path / "text.npz").write_text("no images")
    refused("--data", tmp_path / "few.npz", received="train_labels")
    refused("--data", tmp_path / "none.npz", received="none.npz: expected an npz file, got no file")
    refused("--data", tmp_path / "text.npz", received="got another format")


@pytest.mark.parametrize("option", [("--epochs", 0), ("--seeds", 0), ("--images", -1), ("--normalization", "bm")])
@once
def test_a_wrong_option_is_one_line(option):
    refused(*option, received=option[0])


def refused(*arguments, received):
    done = example(*arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("article_cnn.py: ")]
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    assert received in lines[0]
    assert done.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in done.stderr
