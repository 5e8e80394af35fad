"""The embedded default: slices of the ICBM152 brain template, seen through four simulated scanners."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mednorm.data.images import ImageSet, Item, Split
from mednorm.data.readers import monai_data
from mednorm.data.splits import checked_seed
from mednorm.errors import MissingExtraError

if TYPE_CHECKING:
    Float = np.ndarray[Any, np.dtype[np.float32]]
    Mask = np.ndarray[Any, np.dtype[np.uint8]]

CLASSES = ("background", "grey matter", "white matter")

# Blocks of neighbouring slices, from the neck up; one slice between two blocks belongs to no split. So every split
# sees all parts of the head. 30, 10 and 10 slices, and 8 left out, fill the 58 in which 17 % of the pixels are brain.
_LOWEST = 13
_BLOCKS: tuple[tuple[Split, int], ...] = (
    ("train", 10),
    ("val", 4),
    ("test", 3),
    ("train", 10),
    ("val", 3),
    ("test", 3),
    ("train", 10),
    ("val", 3),
    ("test", 4),
)
_COLUMNS, _ROWS = slice(9, 89), slice(10, 106)  # the brain with 2 to 5 pixels around it: 96 rows, 80 columns


@dataclass(frozen=True, slots=True)
class _Scanner:
    """How a scanner shows a head whose white matter has intensity 0.84.

    gain multiplies at last; gamma bends contrast; bias is how uneven the coil is (largest polynomial coefficient of the
    logarithm of the field); noise is the standard deviation of each part of the complex signal, before the gain.
    """

    gain: float
    gamma: float
    bias: float
    noise: float


_SCANNERS = {
    "plain": _Scanner(gain=1.0, gamma=1.0, bias=0.03, noise=0.015),
    "coil": _Scanner(gain=1.8, gamma=1.1, bias=0.35, noise=0.02),
    "flat": _Scanner(gain=0.6, gamma=0.5, bias=0.1, noise=0.02),
    "lowfield": _Scanner(gain=0.4, gamma=1.6, bias=0.1, noise=0.09),
}

_NOTE = (
    "Slices of one average head (ICBM152, 2 mm) as four simulated scanners show them, which differ in gain, contrast, "
    "coil and noise. There is one head and no patient: intervals over these images speak of seeds, not of patients. "
    "Splits are blocks of neighbouring slices with one slice left out between two blocks, so that slices of different "
    "splits are 4 mm apart or more."
)


@lru_cache(maxsize=4)
def tissue(seed: int = 0) -> ImageSet:
    """Return 200 axial brain slices of 96 × 80 pixels with grey and white matter as classes, from what nilearn ships.

    Each of 50 slices (30 train, 10 val, 10 test) of the ICBM152 T1 template, averaged to 2 mm, is shown as four
    scanners would: ``"plain"``, ``"coil"`` (bright, uneven), ``"flat"`` (dark, low contrast), ``"lowfield"`` (dark,
    noisy). The scanner is the `site`. First the contrast is bent, ``x ** gamma``; then the coil's field is applied and
    Rician noise added, both by MONAI and drawn anew for each scanner and slice; then comes the gain. The class of a
    pixel is the most probable of grey matter, white matter and all else (CSF included). Blocks of neighbouring slices
    form the splits, with one slice left out between two blocks.

    Images are shown as radiologists look at them: front at the top, the patient's right side on the left. Nothing is
    downloaded. The result is kept for the process, and its arrays cannot be written to.

    Args:
        seed: of coil and noise.

    Returns:
        Images float32 ``(1, 96, 80)`` from 0, in arbitrary units as MR has none; masks uint8. `metadata` holds
        ``slice`` (its index from below, 2 mm apart) and ``scanner``.

    Raises:
        ConfigError: a negative seed.
        MissingExtraError: nilearn or monai is not installed.

    Example:
        >>> tissue()
        ImageSet('tissue', segmentation, train 120, val 40, test 40)

    Reference:
        Fonov et al. (2011), "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54(1).
    """
    checked_seed(seed, "tissue")
    intensities, classes = _volumes()
    items = tuple(
        Item(
            f"tissue slice {height} on {name}",
            split,
            _seen(scanner, intensities[height], (seed, number, height)),
            mask=classes[height],
            site=name,
            metadata={"slice": str(height), "scanner": name},
        )
        for split, height in _heights()
        for number, (name, scanner) in enumerate(_SCANNERS.items())
    )
    return ImageSet("tissue", "segmentation", CLASSES, items, _NOTE, independent=False)


def _heights() -> list[tuple[Split, int]]:
    heights: list[tuple[Split, int]] = []
    start = _LOWEST
    for split, length in _BLOCKS:
        heights += [(split, height) for height in range(start, start + length)]
        start += length + 1
    return heights


@cache
def _volumes() -> tuple[Float, Mask]:
    """Return intensities and class numbers, ``(slice from below, row from the front, column from the right)``."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"tissue: expected the packages of mednorm[study], got no {error.name}. "
            "Install them: pip install 'mednorm[study]'."
        ) from None
    # Averaging 2 × 2 × 2 voxels of 1 mm takes a second, nilearn's resampling to 2 mm three.
    t1, grey, white = (
        _halved(np.asarray(load(resolution=1).dataobj, dtype=np.float32))
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    classes = np.stack((1 - grey - white, grey, white)).argmax(0).astype(np.uint8)
    return _radiological(t1), _radiological(classes)


def _halved(volume: Float) -> Float:
    x, y, z = (size // 2 for size in volume.shape)
    blocks = volume[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2)
    return np.asarray(blocks.mean((1, 3, 5)), dtype=np.float32)


def _radiological(volume: Any) -> Any:
    """Turn axes (right, front, up) into (up, back, left), rows and columns cropped, closed for writing."""
    turned = np.ascontiguousarray(volume[_COLUMNS, _ROWS][::-1, ::-1].transpose(2, 1, 0))
    turned.setflags(write=False)
    return turned


def _seen(scanner: _Scanner, head: Float, seed: tuple[int, ...]) -> Float:
    """Simulate one slice ``(rows, columns)`` on a scanner, as ``(1, rows, columns)``."""
    monai_data()
    from monai.transforms.intensity.array import RandBiasField, RandRicianNoise

    coil_seed, noise_seed = (int(state) for state in np.random.SeedSequence(seed).generate_state(2))
    coil = RandBiasField(degree=3, coeff_range=(-scanner.bias, scanner.bias), prob=1.0)
    noise = RandRicianNoise(prob=1.0, std=scanner.noise, sample_std=False)
    coil.set_random_state(seed=coil_seed)
    noise.set_random_state(seed=noise_seed)
    signal = np.asarray(noise(coil(head[None] ** scanner.gamma)), dtype=np.float32)
    shown: Float = signal * np.float32(scanner.gain)
    shown.setflags(write=False)
    return shown
