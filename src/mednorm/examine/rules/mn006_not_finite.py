"""MN006: statistics that are no numbers, batches that were, and batches that were kept out because of it."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed

# Share of the training batches that were kept out: below the first it is said, and no more.
WARNING, ERROR = 0.01, 0.5
# Of a DataLoader, the images; of any other, the batches.
FIND = (
    '[index for index, sample in enumerate(getattr(loader, "dataset", loader)) '
    'if not torch.isfinite(sample["image"]).all()]'
)


def check(probed: Probed) -> Iterator[Finding]:
    """Find running statistics that are not finite, or negative variances; inputs that are not; skipped batches."""
    sound = True  # so far: what is wrong in one layer reaches all that come after
    for layer in probed.layers:
        broken = _unusable(layer)
        if broken:
            yield _statistics(layer, broken)
        elif sound and layer.batches is not None and layer.batches.not_finite:
            yield _inputs(layer, layer.batches.not_finite)
        sound = sound and not broken and not (layer.batches is not None and layer.batches.not_finite)
        if layer.state.skipped:
            yield _skipped(layer)


def unusable(layer: Layer) -> bool:
    """Tell whether a layer's own statistics make its outputs no numbers."""
    return bool(_unusable(layer))


def weights_unusable(layer: Layer) -> bool:
    """Tell whether γ or β hold what is no number, which no statistics mend."""
    return any(name[0] in "γβ" for name in _unusable(layer))


def _unusable(layer: Layer) -> dict[str, int]:
    """Count the channels by what is wrong with their statistics or weights."""
    state = layer.state
    found = {
        name: int((~values.isfinite()).sum())
        for name, values in (
            ("running means that are not finite", state.running_mean),
            ("running variances that are not finite", state.running_var),
            ("γ that are not finite", state.weight),
            ("β that are not finite", state.bias),
        )
        if values is not None
    }
    if state.running_var is not None:
        found["negative running variances"] = int((state.running_var < 0).sum())
    return {name: count for name, count in found.items() if count}


def _statistics(layer: Layer, broken: dict[str, int]) -> Finding:
    counts = " and ".join(f"{count} {name}" for name, count in broken.items())
    weights = [name for name in broken if name[0] in "γβ"]
    return Finding(
        "MN006",
        "error",
        layer.name,
        f"There are {counts} among {layer.channels} channels: the outputs there are no numbers, or wrong ones.",
        tuple(Evidence(name, count, 0, "channels") for name, count in broken.items()),
        'model.load_state_dict(torch.load("…", weights_only=True))  # the last checkpoint before'
        if weights
        else "mednorm.recalibrate(model, loader)",
    )


def _inputs(layer: Layer, batches: int) -> Finding:
    return Finding(
        "MN006",
        "error",
        layer.name,
        f"{batches} batch{'es' if batches > 1 else ''} held values that are not finite when they came here, the first "
        "normalization that they reach: the images, or the weights before it, are no numbers.",
        (Evidence("batches that are not finite", batches, 0, "batches"),),
        FIND,
    )


def _skipped(layer: Layer) -> Finding:
    skipped, updates = layer.state.skipped, layer.state.updates or 0
    share = skipped / (skipped + updates)
    crossed = ERROR if share >= ERROR else WARNING if share >= WARNING else None
    return Finding(
        "MN006",
        "error" if share >= ERROR else "warning" if share >= WARNING else "info",
        layer.name,
        f"{skipped} of {skipped + updates} training batches held values that are not finite, and were kept out of the "
        "running statistics.",
        (
            Evidence("share of skipped batches", 100 * share, None if crossed is None else 100 * crossed, "%"),
            Evidence("skipped batches", skipped, unit="batches"),
        ),
        FIND,
    )


RULE = Rule(
    code="MN006", name="not-finite", title="Statistics or images are no finite numbers", check=check, needs_data=False
)
