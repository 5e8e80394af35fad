"""Advice from chosen numbers, for the tests of its words, its page and its JSON."""

from mednorm.advise.fit import Measured, fit
from mednorm.advise.noise import ENOUGH, Noise
from mednorm.advise.wording import decide

MB = 10**6


def advised(least=6, largest=41, *, noise_at_one=1.0, layers=("enc.bn", "dec.bn"), **changed):
    """Decide with noise that falls with the root of the size, and a peak of 100 MB and 10 an image."""
    measured = tuple(Measured(size, (100 + 10 * size) * MB, 10 * size * MB, 0.01) for size in (1, 2, 4, 8))
    sizes = sorted({2**power for power in range(9)} | {max(largest, 1), least or 1})
    noise = Noise(
        {name: {n: noise_at_one / (1 + place) / n**0.5 for n in sizes} for place, name in enumerate(layers)}, ENOUGH
    )
    values = {
        "network": "UNet", "device": "cpu", "limit": 512 * MB, "memory": fit(measured, 100 * MB), "measured": measured,
        "noise": noise, "smallest_sufficient": least, "largest_that_fits": largest, "images": 64,
    }  # fmt: skip
    return decide(**values | changed)
