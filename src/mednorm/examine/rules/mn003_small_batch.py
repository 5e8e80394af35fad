"""MN003: a batch of so few images that its statistics say little of the others."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule, Severity
from mednorm.examine.records import Layer, Probed, Seen
from mednorm.examine.rules.noise import enough, images_together, median, noise, taken_over_batches

# In σ. Small networks, trained in batches of 1 to 16, lost nothing where all layers were below the first; some with one
# beyond the second learned little; see docs/rules/mn003.md.
WARNING, ERROR = 0.4, 0.7


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers whose batch statistics are too noisy."""
    for layer in probed.layers:
        images = images_together(layer, probed)
        severity = grade(layer, images)
        if severity is None or layer.seen is None or spread_over_devices(layer, probed):
            continue
        yield _finding(layer, layer.seen, images, severity)


def grade(layer: Layer, images: int) -> Severity | None:
    """Return how grave the noise of a batch of so many images is in a layer; None for not at all, or not known."""
    if layer.seen is None or layer.seen.images < 2 or not taken_over_batches(layer):
        return None
    value = noise(layer.seen, images)
    return "error" if value >= limit(images) else "warning" if value >= WARNING else None


def limit(images: int) -> float:
    """Return the noise that is an error: less for one image, which training normalizes by itself, evaluation not."""
    return WARNING if images == 1 else ERROR


def spread_over_devices(layer: Layer, probed: Probed) -> bool:
    """Tell whether synchronizing the devices would help enough that MN013 says it."""
    if probed.devices < 2 or layer.state.synchronized or layer.seen is None:
        return False
    alone, together = probed.batch_size, probed.batch_size * probed.devices
    order = ("error", "warning", None)
    better = order.index(grade(layer, together)) > order.index(grade(layer, alone))
    return better or noise(layer.seen, together) <= noise(layer.seen, alone) / 2


def _finding(layer: Layer, seen: Seen, images: int, severity: Severity) -> Finding:
    value, independent, sufficient = noise(seen, images), median(seen.effective_samples(images)), enough(seen, WARNING)
    what = f"a batch of {images} images" if images > 1 else "a batch of one image"
    rest = f"From {sufficient} images on it would be fine." if sufficient else "No batch would do."
    return Finding(
        "MN003",
        severity,
        layer.name,
        f"The statistics of {what} lie {value:.2f} σ from those of all images: its values count for no more than "
        f"{independent:.1f} independent ones. {rest}",
        (
            Evidence("noise of the batch statistics", value, limit(images) if severity == "error" else WARNING, "σ"),
            Evidence("noise of the batch mean", median(seen.noise_of_mean(images)), unit="σ"),
            Evidence("noise of the batch variance", 100 * median(seen.noise_of_variance(images)), unit="%"),
            Evidence("independent values in a batch", independent),
            Evidence("images in a batch", images, sufficient, "images"),
        ),
        'mednorm.convert(model, to="group")' if images == 1 else 'mednorm.convert(model, to="renorm")',
    )


RULE = Rule(code="MN003", name="small-batch", title="The batch is too small for its statistics", check=check)
