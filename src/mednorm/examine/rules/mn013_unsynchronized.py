"""MN013: devices that each take the statistics of their few images, where together they have enough."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Probed
from mednorm.examine.rules.mn003_small_batch import WARNING, grade, limit, spread_over_devices
from mednorm.examine.rules.noise import noise


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers that are too noisy on each device, and would not be over all of them."""
    for layer in probed.layers:
        severity = grade(layer, probed.batch_size)
        if severity is None or layer.seen is None or not spread_over_devices(layer, probed):
            continue
        together = probed.batch_size * probed.devices
        alone, pooled = noise(layer.seen, probed.batch_size), noise(layer.seen, together)
        yield Finding(
            "MN013",
            severity,
            layer.name,
            f"Each of {probed.devices} devices takes the statistics of its own {probed.batch_size} image"
            f"{'s' if probed.batch_size > 1 else ''}, {alone:.2f} σ from those of all; over the {together} of all "
            f"devices it would be {pooled:.2f} σ.",
            (
                Evidence(
                    "noise on one device", alone, limit(probed.batch_size) if severity == "error" else WARNING, "σ"
                ),
                Evidence("noise over all devices", pooled, unit="σ"),
                Evidence("devices", probed.devices),
                Evidence("images on one device", probed.batch_size, unit="images"),
            ),
            "model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)"
            if layer.kind in _TORCHS
            else 'mednorm.convert(model, to="sync")',
        )


_TORCHS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")

RULE = Rule(
    code="MN013", name="unsynchronized", title="Each device takes the statistics of its own few images", check=check
)
