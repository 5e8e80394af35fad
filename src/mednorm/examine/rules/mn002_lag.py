"""MN002: running statistics that still hold their initial values, or remember the last few batches alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.mn010_updates import left_out
from mednorm.examine.rules.noise import images_together, noise, taken_over_batches
from mednorm.examine.rules.remedies import RECALIBRATE, thawed
from mednorm.examine.rules.residuals import Residuals, residuals

# Share of the initial 0 and 1 that is left. With momentum 0.1 these are 44 and 22 updates.
WARNING, ERROR = 0.01, 0.1
# Running statistics this near to the population's, in σ, are right, whatever the layer counted.
NEAR = 0.1
# So many of the first layers are asked whether the initial values explain their residuals so well, and whether the
# share that fits best is the one that was counted, up to this factor.
FIRST, TELLING, AGREEING = 3, 0.97, 1.5
# With these momenta the running statistics weigh as those of (2 - m) / m = 3, and of 1.5 batches do.
SHORT, SHORTER = 0.5, 0.8
# Of every layer that is so: momentum is set for a network, and recalibrating leaves it as it is.
_SLOWER = (
    '[setattr(norm, "momentum", 0.1) for norm in model.modules() '
    f"if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) and (norm.momentum or 0) >= {SHORT}]"
)


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers whose running statistics lag behind, or forget too soon."""
    # What no image reaches in a forward pass has no part in the results, and `recalibrate` cannot mend it.
    layers = [layer for layer in probed.layers if layer.state.running_mean is not None and layer.seen is not None]
    for layer in layers:
        if left_out(layer, probed):  # MN010 says why
            continue
        counted, found = layer.state.initial_share, residuals(layer)
        far = found is None or found.distance >= NEAR
        if counted is not None and counted >= WARNING and far and _shows(layer, counted, layers):
            yield _lag(layer, counted, found)
        yield from _short(layer, probed, far)


def _shows(layer: Layer, counted: float, layers: list[Layer]) -> bool:
    """Tell whether what was seen agrees that so much of the initial values is left.

    The count alone does not say it: statistics that were computed anew, or averaged plainly, or loaded from a file
    without counts, hold none of them after few updates or none. Layers that count the same share their fate, and the
    first of them tell: what reaches the others is off already, and their weights have changed more since.
    """
    if _untouched(layer):
        return True
    alike = (residuals(each) for each in layers if each.state.initial_share == counted)
    seen = list(islice((found for found in alike if found is not None), FIRST))
    if not seen:
        return bool(layer.state.updates)
    fits = [each.initial for each in seen]
    return any(fit.explained >= TELLING and 1 / AGREEING <= fit.factor / counted <= AGREEING for fit in fits)


def _untouched(layer: Layer) -> bool:
    mean, variance = layer.state.running_mean, layer.state.running_var
    return mean is not None and variance is not None and bool((mean == 0).all() and (variance == 1).all())


def _lag(layer: Layer, counted: float, found: Residuals | None) -> Finding:
    updates, momentum = layer.state.updates, layer.state.momentum
    error = counted >= ERROR
    if updates and momentum is not None:
        text = (
            f"{100 * counted:.0f} % of the initial mean 0 and variance 1 is left in the running statistics: {updates} "
            f"update{'s' if updates > 1 else ''} with momentum {momentum:g}, of which {_needed(momentum)} would do."
        )
    else:
        text = "The running statistics are the initial mean 0 and variance 1: no batch has moved them."
    explaining = [] if found is None else [Evidence("distance from the images' statistics", found.distance, unit="σ")]
    return Finding(
        "MN002",
        "error" if error else "warning",
        layer.name,
        text,
        (
            Evidence("share of the initial values", 100 * counted, 100 * (ERROR if error else WARNING), "%"),
            Evidence("updates", updates or 0, _needed(momentum) if momentum else 1, "updates"),
            *explaining,
        ),
        thawed(layer, RECALIBRATE),
    )


def _short(layer: Layer, probed: Probed, far: bool) -> Iterator[Finding]:
    """Find a momentum that is too large: where the statistics are right all the same, the next training is at risk."""
    momentum = layer.state.momentum
    if momentum is None or momentum < SHORT or not layer.state.updates or layer.state.frozen:
        return
    batches, error, explaining = (2 - momentum) / momentum, momentum >= SHORTER and far, []
    if layer.seen is not None and layer.seen.images > 1 and taken_over_batches(layer):
        left = noise(layer.seen, images_together(layer, probed)) / math.sqrt(batches)
        explaining = [Evidence("noise of the running statistics", left, unit="σ")]
    yield Finding(
        "MN002",
        "error" if error else "warning",
        layer.name,
        f"With momentum {momentum:g} the running statistics remember {batches:.1f} batches: in PyTorch it is the "
        f"weight of the new batch, and what Keras calls {momentum:g} is {1 - momentum:.2g} here.",
        (
            Evidence("momentum", momentum, SHORTER if error else SHORT),
            Evidence("batches remembered", batches, unit="batches"),
            *explaining,
        ),
        f"{_SLOWER}; {RECALIBRATE}",
    )


def _needed(momentum: float) -> int:
    return math.ceil(math.log(WARNING) / math.log1p(-momentum)) if momentum < 1 else 1


RULE = Rule(code="MN002", name="statistics-lag", title="The running statistics lag behind the network", check=check)
