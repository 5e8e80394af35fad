"""The article's network with and without batch normalization, on whatever backend Keras runs: accuracy on test images.

    KERAS_BACKEND=jax python examples/article_cnn.py
    KERAS_BACKEND=torch python examples/article_cnn.py --data pneumoniamnist.npz --epochs 5 --images 0
    python examples/article_cnn.py --normalization renorm --batch-size 8

Without --data, patches of the ICBM152 brain template, which comes with nilearn: is there more grey matter (0) or more
white matter (1)? The number of epochs is fixed and the test images are judged once a seed, so validation images would
have nothing to choose and are not used.
"""

from __future__ import annotations

import argparse
import os
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from mednorm.keras import article_cnn
from mednorm.keras.network import NORMALIZATIONS

SPLITS = ("train", "test")
Arrays = dict[str, np.ndarray]  # train_images, train_labels, test_images, test_labels


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def patches() -> Arrays:
    """Axial patches of 28 × 28 mm of one half of the brain (the template's other half is its mirror image).

    Of every 16 slices eight are for training and four for testing, with two slices, or 3 mm, between them.
    """
    from nilearn import datasets

    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    halves = [np.asarray(load(resolution=1).dataobj)[:98] for load in loaders]
    windows = [np.lib.stride_tricks.sliding_window_view(half, (28, 28), (0, 1))[::7, ::9] for half in halves]
    arrays = {}
    for split, slices in (("train", range(8)), ("test", range(10, 14))):
        heights = [height for height in range(halves[0].shape[2]) if height % 16 in slices]
        images, *tissues = (np.concatenate([view[:, :, height] for height in heights], 1) for view in windows)
        grey, white = (tissue.mean((-1, -2)) for tissue in tissues)
        inside = images.min((-1, -2)) > 0  # nowhere beside the brain
        arrays[f"{split}_images"] = (images[inside] * 255).astype(np.uint8)
        arrays[f"{split}_labels"] = (white > grey)[inside][:, None].astype(np.uint8)
    return arrays


def stored(path: Path) -> Arrays:
    """The arrays of a MedMNIST file; a ValueError says what is wrong with it."""
    names = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected an npz file, got {'another format' if path.is_file() else 'no file'}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected an npz file with {', '.join(names)}, got {error}") from None
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size or min(images.shape[1:3]) < 6:
            wanted = "uint8 images (N, height, width) or (N, height, width, channels) with sides from 6"
            raise ValueError(f"{path}: expected {wanted}, got {split}_images of {images.dtype} {images.shape}")
        if images.shape[1:] != arrays["train_images"].shape[1:]:
            raise ValueError(f"{path}: expected images of one size, got {images.shape[1:]} in test_images")
        if labels.shape != (len(images), 1) or labels.dtype.kind not in "iu":
            raise ValueError(f"{path}: expected integers (N, 1), got {split}_labels of {labels.dtype} {labels.shape}")
        top = arrays["train_labels"].max()
        if labels.min() < 0 or labels.max() > top:
            got = f"{labels.min()} to {labels.max()} in {split}_labels"
            raise ValueError(f"{path}: expected labels from 0 to {top}, the largest of train_labels, got {got}")
    return arrays


def train(asked, arrays: Arrays, normalization: str | None, seed: int) -> tuple[float, float, float]:
    """Train once; returns test accuracy, seconds, and how far test probabilities at batch 1 and 64 are apart."""
    keras.utils.set_random_seed(seed)  # also the order of images: fit shuffles them
    steps = asked.epochs * -(-len(arrays["train_images"]) // asked.batch_size)
    options = {"momentum": 0.9}  # with 0.99 the moving statistics of so few steps would be half their initial values
    options |= {"schedule_steps": steps} if normalization == "renorm" else {}
    make = normalization and (lambda: NORMALIZATIONS[normalization](**options))
    model = article_cnn(int(arrays["train_labels"].max()) + 1, arrays["train_images"].shape[1:], make)
    start = time.perf_counter()
    model.fit(arrays["train_images"], arrays["train_labels"], asked.batch_size, asked.epochs, verbose=0)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(arrays["test_images"], arrays["test_labels"], batch_size=256, verbose=0)[1]
    one, many = (model.predict(arrays["test_images"][:64], batch_size=size, verbose=0) for size in (1, 64))
    return accuracy, seconds, float(np.abs(one - many).max())


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a MedMNIST file, such as pneumoniamnist.npz")
    parser.add_argument("--images", type=int, default=800, help="training images used, drawn at random; 0 for all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--normalization", choices=list(NORMALIZATIONS), default="bn")
    asked = parser.parse_args()
    if asked.images < 0 or min(asked.epochs, asked.batch_size, asked.seeds) < 1:
        parser.error("expected --epochs, --batch-size and --seeds of at least 1, and --images of at least 0")
    try:
        arrays = stored(asked.data) if asked.data else patches()
    except (ValueError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    there = len(arrays["train_images"])
    chosen = np.random.default_rng(0).permutation(there)[: asked.images or there]
    arrays |= {name: arrays[name][chosen] for name in ("train_images", "train_labels")}
    counts = np.bincount(arrays["test_labels"][:, 0])
    for split in SPLITS:
        images = arrays[f"{split}_images"] / np.float32(255)
        arrays[f"{split}_images"] = images[..., None] if images.ndim == 3 else images
    size = " × ".join(map(str, arrays["train_images"].shape[1:]))
    print(
        f"{asked.data or 'ICBM152 patches'}, {size}: {len(chosen)} of {there} training images, all {counts.sum()} test"
    )
    print(f"images; {counts.max() / counts.sum():.3f} of these are of one class. Keras on {keras.backend.backend()}.\n")
    print("norm     seed  test accuracy  seconds")
    found = {}
    for name in (None, asked.normalization):
        found[name] = []
        for seed in range(asked.seeds):
            found[name].append(train(asked, arrays, name, seed))
            accuracy, seconds, _ = found[name][-1]
            print(f"{name or 'none':7}  {seed:4}  {accuracy:13.3f}  {seconds:7.1f}", flush=True)
    without, with_norm = (np.array([run[0] for run in runs]) for runs in found.values())
    difference = with_norm - without
    print(f"\nmean accuracy: none {without.mean():.3f}, {asked.normalization} {with_norm.mean():.3f}")
    print(f"difference: {difference.mean():+.3f}, over seeds {difference.min():+.3f} to {difference.max():+.3f}")
    apart = max(run[2] for runs in found.values() for run in runs)
    print(f"batch 1 against batch 64: probabilities differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
