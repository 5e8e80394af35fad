"""Sample images with truth and prediction, from a run's npz to pictures inside the page."""

from __future__ import annotations

import base64
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mednorm.errors import RunError
from mednorm.report import wording
from mednorm.report.conditions import Condition, base
from mednorm.report.palette import CLASS_COLOURS, looks
from mednorm.results import Results, Run

MOST_NORMS, MOST_IMAGES, MOST_PIXELS = 4, 6, 320
# All that numpy and zipfile raise at a file cut short, overwritten, or of another kind; numpy parses headers as Python.
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SyntaxError, TokenError)
_ADVICE = "Delete the run's folder and run the study again, or set the run's `samples` to null."


@dataclass(frozen=True)
class Samples:
    """A samples file, checked."""

    image: NDArray[np.float32]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    probability: NDArray[np.float32] | None
    name: NDArray[np.str_]
    site: NDArray[np.str_]


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it."""

    source: str
    alt: str
    title: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image: its pictures, where it is from, and for classification what was said of it."""

    name: str
    site: str
    pictures: list[Picture]
    truth: str = ""
    prediction: str = ""
    probability: str = ""
    right: bool = False


@dataclass(frozen=True)
class Gallery:
    """The samples of one norm's run."""

    norm: str
    run: str
    samples: list[Sample]


def _find(relative: str, folder: Path, run: str) -> Path:
    root = folder.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise RunError(f"run {run}: expected samples inside {folder}, got {relative!r}. Make the path relative to it.")
    if not path.is_file():
        raise RunError(f"{path}: samples of run {run}: expected a file, found none. {_ADVICE}")
    return path


def _check(path: Path, holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise RunError(f"{path}: samples: expected {expected}, got {got}. {_ADVICE}")


def read_samples(path: Path, *, kind: str, classes: int) -> Samples:
    """Read a samples npz and check everything the page relies on.

    Args:
        path: the file: `image` (K, C, H, W), `truth` and `prediction` (K, H, W) or (K,), `name`, `site`, and for
            classification `probability` (K, classes).
        kind: "classification" or "segmentation".
        classes: how many classes there are; labels run from 0.

    Raises:
        RunError: the file cannot be read, or holds something else; the message names the file and what it held.

    """
    wanted = ["image", "truth", "prediction", "name", "site"] + ["probability"] * (kind == "classification")
    try:
        # Opened here, as numpy leaves a file that it cannot read open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            missing = [key for key in wanted if key not in loaded]
            arrays: dict[str, NDArray[Any]] = {key: loaded[key] for key in wanted if key in loaded}
    except _DAMAGE as error:
        raise RunError(f"{path}: samples: expected an npz of plain arrays, got: {error}. {_ADVICE}") from None
    _check(path, not missing, f"arrays {', '.join(wanted)}", f"none named {', '.join(missing)}")

    image, truth, prediction = arrays["image"], arrays["truth"], arrays["prediction"]
    shape = image.shape
    _check(path, image.dtype.kind == "f", "image of floats", image.dtype)
    good = len(shape) == 4 and shape[1] in (1, 3) and min(shape) > 0
    _check(path, good, "image of shape (K, 1 or 3, H, W)", shape)
    _check(path, bool(np.isfinite(image).all()), "finite values in image", "NaN or infinity")
    labels = (shape[0], *shape[2:]) if kind == "segmentation" else shape[:1]
    for key, array in (("truth", truth), ("prediction", prediction)):
        _check(path, array.dtype.kind in "iu", f"{key} of integers", array.dtype)
        _check(path, array.shape == labels, f"{key} of shape {labels}", array.shape)
        low, high = int(array.min()), int(array.max())
        _check(path, low >= 0 and high < classes, f"{key} from 0 to {classes - 1}", f"{low} to {high}")
    for key in ("name", "site"):
        _check(path, arrays[key].dtype.kind == "U", f"{key} of text", arrays[key].dtype)
        _check(path, arrays[key].shape == shape[:1], f"{key} of shape {shape[:1]}", arrays[key].shape)
    probability = arrays.get("probability")
    if probability is not None:
        _check(path, probability.dtype.kind == "f", "probability of floats", probability.dtype)
        expected = (shape[0], classes)
        _check(path, probability.shape == expected, f"probability of shape {expected}", probability.shape)
        # A diverged network gives NaN, which the page shows as missing.
        inside = bool((np.isnan(probability) | ((probability >= 0) & (probability <= 1.0001))).all())
        _check(path, inside, "probability from 0 to 1", "values outside it")
    return Samples(image, truth, prediction, probability, arrays["name"], arrays["site"])


def grey_levels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale one image (C, H, W) to (H, W, 3) bytes between its own 1st and 99th percentile."""
    values = image.astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    if high <= low:  # nearly all of it is one value: fall back on the extremes
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    picture = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def overlay(picture: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Tint each labelled region and draw its border stronger; label 0 is background and stays as it is."""
    tinted = picture.astype(np.float64)
    padded = np.pad(labels, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    border = np.zeros(labels.shape, dtype=bool)
    for moved in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        border |= moved != inner
    for label in np.unique(labels[labels > 0]):
        here = labels == label
        colour = np.array(_rgb(int(label)), dtype=np.float64)
        weight = np.where(border, 0.85, 0.38)[here][:, None]
        tinted[here] = tinted[here] * (1 - weight) + colour * weight
    return np.rint(tinted).astype(np.uint8)


def class_colour(label: int) -> str:
    """The colour of a class; background (0) has none."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def _rgb(label: int) -> tuple[int, int, int]:
    colour = class_colour(label)
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _picture(pixels: NDArray[np.uint8], title: str, alt: str) -> Picture:
    made = Image.fromarray(pixels)
    if max(made.size) > MOST_PIXELS:
        made.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    made.save(buffer, format="PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(source, alt, title, made.width, made.height)


def _areas(labels: NDArray[np.int64], classes: list[str]) -> str:
    shares = [(classes[label], float((labels == label).mean())) for label in np.unique(labels) if label > 0]
    return ", ".join(f"{name} {100 * share:.1f} % of pixels" for name, share in shares) or "nothing but background"


def _sample(samples: Samples, index: int, classes: list[str]) -> Sample:
    name, site = str(samples.name[index]), str(samples.site[index])
    picture = grey_levels(samples.image[index])
    truth, prediction = samples.truth[index], samples.prediction[index]
    plain = _picture(picture, "image", f"Image {name}")
    if samples.probability is None:
        pictures = [plain] + [
            _picture(
                overlay(picture, labels), title, f"{title.capitalize()} on image {name}: {_areas(labels, classes)}"
            )
            for title, labels in (("truth", truth), ("prediction", prediction))
        ]
        return Sample(name, site, pictures)
    likely = float(samples.probability[index, prediction])
    said = wording.MISSING if math.isnan(likely) else wording.value(likely, "metric")
    return Sample(name, site, [plain], classes[truth], classes[prediction], said, bool(truth == prediction))


def galleries(results: Results, folder: Path) -> list[Gallery]:
    """Collect samples of up to four norms: those of the base arms, first seed, first fold.

    Raises:
        RunError: a samples file that results.json names is missing, damaged, odd, or outside the folder.

    """
    study = results.study
    shown: dict[str, Run] = {}
    wanted = base(study)
    for norm in looks(results):
        for run in results.runs:
            chosen = Condition.of(run) == wanted and run.seed in study.seeds[:1]
            if chosen and run.norm == norm and run.samples is not None:
                shown.setdefault(norm, run)
    made = []
    for norm, run in list(shown.items())[:MOST_NORMS]:
        path = _find(run.samples or "", folder, run.name)
        samples = read_samples(path, kind=study.data.kind, classes=len(study.data.classes))
        count = min(MOST_IMAGES, len(samples.name))
        made.append(Gallery(norm, run.name, [_sample(samples, i, study.data.classes) for i in range(count)]))
    return made
