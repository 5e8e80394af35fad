"""MN009: weight decay where it does not do what it is meant to: on γ and β, and on weights that are normalized."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.mn005_dead_channels import starting_at_zero
from mednorm.examine.rules.noise import median

# Median |γ|, of the initial 1, below which decay has visibly taken it away.
SHRUNK = 0.1


def check(probed: Probed) -> Iterator[Finding]:
    """Find weight decay on γ and β, layer by layer, and on the weights before, in the network as a whole."""
    for layer in probed.layers:
        if layer.around.decay and layer.state.learns:
            yield _on_affine(layer, layer.around.decay)
    before = [layer for layer in probed.layers if layer.around.decay_before and layer.around.before_learns]
    if before:
        yield _on_weights(before, max(layer.around.decay_before or 0.0 for layer in before), len(probed.layers))


def _on_affine(layer: Layer, decay: float) -> Finding:
    scale = None if layer.state.weight is None else median(layer.state.weight.abs())
    shrunk = scale is not None and scale < SHRUNK and not starting_at_zero(layer.state)
    told = f" The median |γ| is {scale:.2g}." if shrunk else ""
    gamma = [] if scale is None else [Evidence("median |γ|", scale, SHRUNK if shrunk else None)]
    return Finding(
        "MN009",
        "warning" if shrunk else "info",
        layer.name,
        f"Weight decay of {decay:g} draws γ and β to 0, which shrinks channels and simplifies nothing.{told}",
        (*gamma, Evidence("weight decay", decay, 0)) if shrunk else (Evidence("weight decay", decay, 0), *gamma),
        REMEDY,
    )


def _on_weights(layers: list[Layer], decay: float, count: int) -> Finding:
    return Finding(
        "MN009",
        "info",
        "",
        f"Weight decay of up to {decay:g} on the weights before {len(layers)} of {count} layers does not regularize: "
        "normalization takes their scale away again, and what changes is the effective learning rate.",
        (Evidence("weight decay before normalization", decay, 0), Evidence("layers", len(layers), unit="layers")),
        "schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, …)  # the rate itself, over all steps",
    )


REMEDY = (
    "optimizer = torch.optim.AdamW([{'params': [p for p in model.parameters() if p.dim() > 1]}, "
    "{'params': [p for p in model.parameters() if p.dim() <= 1], 'weight_decay': 0.0}], weight_decay=0.01)"
)

RULE = Rule(
    code="MN009",
    name="weight-decay",
    title="Weight decay acts on γ and β, or on weights whose scale is taken away",
    check=check,
    needs_data=False,
)
