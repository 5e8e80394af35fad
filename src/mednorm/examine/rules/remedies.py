"""What mends a finding, where several rules say the same."""

from __future__ import annotations

from mednorm.examine.records import Layer

RECALIBRATE = "mednorm.recalibrate(model, loader)"


def thawed(layer: Layer, remedy: str) -> str:
    """Put before a remedy that leaves frozen layers alone what makes this one no longer frozen."""
    if not layer.state.frozen:
        return remedy
    thaw = 'mednorm.convert(model, to="batch")' if layer.kind == "FrozenBatchNorm" else "mednorm.unfreeze(model)"
    return f"{thaw}; {remedy}"
