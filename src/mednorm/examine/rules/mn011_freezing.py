"""MN011: layers that are frozen by half, so that weights and statistics no longer belong together."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers in another mode than the others, and statistics that move although the weights are frozen."""
    layers = [layer for layer in probed.layers if layer.state.running_mean is not None and not layer.state.frozen]
    yield from _modes([layer for layer in layers if not weights_frozen(layer)])
    if any(layer.state.learns or layer.around.before_learns for layer in probed.layers):
        yield from _moving([layer for layer in layers if weights_frozen(layer)])


def weights_frozen(layer: Layer) -> bool:
    """Tell whether neither γ and β learn, nor, as far as known, the weights before them."""
    affine = layer.state.weight is not None or layer.state.bias is not None
    if layer.around.before_learns is None:
        return affine and not layer.state.learns
    return not layer.around.before_learns and not (affine and layer.state.learns)


def _modes(layers: list[Layer]) -> Iterator[Finding]:
    training = [layer for layer in layers if layer.state.training]
    evaluating = [layer for layer in layers if not layer.state.training]
    if not training or not evaluating:
        return
    fewer, others = (evaluating, training) if len(evaluating) <= len(training) else (training, evaluating)
    for layer in fewer:
        mode, other = ("training", "evaluation") if layer.state.training else ("evaluation", "training")
        harm = (
            "an image's result depends on its batch, and moves the statistics"
            if layer.state.training
            else "its statistics stand still while its weights learn, and the next model.train() lets them go"
        )
        yield Finding(
            "MN011",
            "warning",
            layer.name,
            f"It is in {mode} mode, {len(others)} of {len(layers)} layers are in {other} mode: {harm}.",
            (
                Evidence(f"layers in {mode} mode", len(fewer), 0, "layers"),
                Evidence(f"layers in {other} mode", len(others), unit="layers"),
            ),
            "model.eval()" if layer.state.training else f'mednorm.freeze(model, where="{layer.name}")',
        )


def _moving(layers: list[Layer]) -> Iterator[Finding]:
    for layer in layers:
        updates = layer.around.updates_a_step
        if updates or (updates is None and layer.state.training):
            when = "" if layer.state.training else " in training mode"
            yield Finding(
                "MN011",
                "warning",
                layer.name,
                f"Its γ and β, and the weights before it, are frozen, but{when} its running statistics move with every "
                "training batch: what the frozen part computes drifts all the same.",
                (Evidence("updates a step", updates or 1, 0, "updates"),),
                f'mednorm.freeze(model, affine=True, where="{layer.name}")',
            )


RULE = Rule(
    code="MN011",
    name="freezing",
    title="Layers are frozen by half: weights, statistics and modes disagree",
    check=check,
    needs_data=False,
)
