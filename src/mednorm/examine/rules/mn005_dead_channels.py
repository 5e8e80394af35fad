"""MN005: channels that say the same of every image, or nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mednorm.examine.findings import Evidence, Finding, Rule, Severity
from mednorm.examine.records import Layer, Probed, State
from mednorm.examine.rules.trust import first_wrong

# Share of a layer's channels: one of eight is said and no more. Sound networks trained here had none.
INFO, WARNING, ERROR = 0.1, 0.3, 0.6
# |γ| below which a channel is as good as pruned (Mehta et al. 2019).
GAMMA = 1e-3
# A standard deviation that is rounding of float32, as a share of the largest value.
ROUNDING = 1e-6
# What a channel never says cannot be told from fewer values than these.
FEWEST = 256
CONSTANT, SCALED, NEGATIVE = "constant input", "|γ| ≈ 0", "never above 0 before ReLU"
_RELUS = ("relu", "relu6")


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers with channels that are constant, scaled to nothing, or never above 0 before a ReLU.

    Behind running statistics that are wrong, a layer is judged by its own γ alone.
    """
    wrong = first_wrong(probed)
    before: list[tuple[float, Finding]] = []
    for layer in probed.layers:
        sound = layer.place <= wrong
        kinds = {
            CONSTANT: constant(layer) & sound,
            SCALED: _without_scale(layer),
            NEGATIVE: _never_positive(layer) & sound,
        }
        dead = torch.stack(list(kinds.values())).any(0)
        share = float(dead.double().mean())
        if share >= INFO:
            counts = {name: int(found.sum()) for name, found in kinds.items()}
            # Channels do not become constant by a layer before of which a smaller part is dead, grouped or not.
            causes = (each for part, each in before if part >= counts[CONSTANT] / layer.channels)
            finding = _finding(layer, share, counts, next(causes, None))
            before.append((share, finding))
            yield finding


def constant(layer: Layer) -> Tensor:
    """Say for each channel whether all that reached it was one value, ``(C,)``; none where nothing was seen."""
    if layer.seen is None:
        return torch.zeros(layer.channels, dtype=torch.bool)
    moments = layer.seen.moments
    largest = torch.maximum(moments.minimum.abs(), moments.maximum.abs())
    return (moments.count > 1) & (moments.std <= ROUNDING * largest)


def _without_scale(layer: Layer) -> Tensor:
    """Say where γ is next to 0; not in a layer that starts so on purpose and is still on its way."""
    weight = layer.state.weight
    if weight is None or starting_at_zero(layer.state):
        return torch.zeros(layer.channels, dtype=torch.bool)
    return weight.abs() < GAMMA


def starting_at_zero(state: State) -> bool:
    """Tell whether γ was 0 at first, as the last of a residual block may be, and training has hardly moved it.

    Then β, which starts at 0 too, is as small; what was pruned is 0 and stays so.
    """
    if state.weight is None or state.updates == 0:
        return True
    largest = float(state.weight.abs().max())
    moved = 0.0 if state.bias is None else float(state.bias.abs().max())
    return 0 < largest < GAMMA and moved < GAMMA


def _never_positive(layer: Layer) -> Tensor:
    """Say where a ReLU lets nothing through, with the running statistics and with the images' own.

    With one of them alone, the statistics are at fault and not the channel.
    """
    state, none = layer.state, torch.zeros(layer.channels, dtype=torch.bool)
    if layer.seen is None or (layer.around.activation or "").lower() not in _RELUS:
        return none
    moments = layer.seen.moments
    weight = torch.ones_like(moments.mean) if state.weight is None else state.weight
    bias = torch.zeros_like(moments.mean) if state.bias is None else state.bias
    extreme = torch.where(weight > 0, moments.maximum, moments.minimum)
    dead = moments.count >= FEWEST
    for mean, variance in ((moments.mean, moments.variance), (state.running_mean, state.running_var)):
        if mean is not None and variance is not None:
            dead &= weight * (extreme - mean) / (variance + state.eps).sqrt() + bias <= 0
    return dead


def _finding(layer: Layer, share: float, kinds: dict[str, int], cause: Finding | None) -> Finding:
    severity: Severity = "error" if share >= ERROR else "warning" if share >= WARNING else "info"
    counts = ", ".join(f"{count} {name}" for name, count in kinds.items() if count)
    dead = round(share * layer.channels)
    if max(kinds, key=lambda name: kinds[name]) != CONSTANT:
        cause = None
    begins = "" if cause is None else f" So do as many or more in {cause.layer!r} before it, where it begins."
    return Finding(
        "MN005",
        severity,
        layer.name,
        f"{dead} of {layer.channels} channels say the same of every image ({counts}): what comes after cannot tell "
        f"images apart by them.{begins}",
        (
            Evidence(
                "share of dead channels",
                100 * share,
                100 * {"error": ERROR, "warning": WARNING}.get(severity, INFO),
                "%",
            ),
            *(Evidence(name, count, unit="channels") for name, count in kinds.items() if count),
        ),
        _remedy(layer, kinds) if cause is None else cause.remedy,
    )


def _remedy(layer: Layer, kinds: dict[str, int]) -> str:
    """Revive what most of the dead channels died of, and leave the others as they are; then train on."""
    most = max(kinds, key=lambda name: kinds[name])
    take = f'layer = model.get_submodule("{layer.name}")'
    if most == SCALED:
        return f"{take}; layer.weight.data[layer.weight.abs() < {GAMMA:g}] = 1.0"
    if most == NEGATIVE:  # above 0 for values from one standard deviation on
        return f"{take}; layer.bias.data.copy_(torch.maximum(layer.bias, -layer.weight.abs()))"
    if layer.around.before is not None:  # filters of weights 0, as PyTorch draws them; where none is, nothing
        return (
            f'conv = model.get_submodule("{layer.around.before}"); '
            'rows = conv.weight.data.transpose(0, int(getattr(conv, "transposed", False))); '
            f"dead = rows.flatten(1).abs().amax(1) < {ROUNDING:g}; "
            "rows[dead] = torch.nn.init.kaiming_uniform_(torch.empty_like(rows), a=5**0.5)[dead]"
        )
    return 'mednorm.examine(model, loader, select="MN005").show()  # the first of these layers is where it begins'


RULE = Rule(code="MN005", name="dead-channels", title="Channels say the same of every image", check=check)
