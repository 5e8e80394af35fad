"""MN012: variances that ε outweighs, or that half precision does not resolve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed
from mednorm.examine.rules.mn005_dead_channels import constant
from mednorm.examine.rules.noise import median
from mednorm.examine.rules.trust import first_wrong

# ε over variance at which outputs are too small by 5 %, and by 80 %: 1 - (1 + r)^-1/2. ε acts in training too, and what
# follows learns with it: EfficientNet, whose ε is 1e-3, trains well with layers where it is 12 times the variance. So
# the second is asked of the first layer alone, where it is the unit of the images, and not what was learned.
WARNING, ERROR = 0.95**-2 - 1, 0.2**-2 - 1
# Steps of the number format in σ: rounding adds 1/12 of its square to the variance, so 4 % and 15 % to σ.
COARSE, COARSER = 1.0, 2.0
# Share of the channels that are so; a few weak channels are in every network.
FEW, MANY = 0.25, 0.5
# Bits behind the leading one. (IEEE 754 binary16, and bfloat16.)
BITS = {"float16": 10, "bfloat16": 7}
# Of the largest number of float16: two bits of headroom.
HEADROOM = torch.finfo(torch.float16).max / 4


def check(probed: Probed) -> Iterator[Finding]:
    """Find layers whose variances are small beside ε, or beside the steps of half precision."""
    wrong = first_wrong(probed)
    for layer in probed.layers:
        if layer.place > wrong:  # what reaches it passed through wrong statistics
            layer = replace(layer, seen=None)
        yield from _epsilon(layer)
        yield from _precision(layer)
        yield from _overflow(layer)


def _epsilon(layer: Layer) -> Iterator[Finding]:
    variance = layer.seen.moments.variance if layer.seen is not None else layer.state.running_var
    if variance is None:
        return
    kept = variance[~constant(layer) & variance.isfinite() & (variance > 0)]
    found = _grade(layer.state.eps / kept, WARNING, ERROR if layer.place == 0 else math.inf)
    if found is None:
        return
    error, ratio = found
    yield Finding(
        "MN012",
        "error" if error else "warning",
        layer.name,
        f"ε = {layer.state.eps:g} is {ratio:.2g} times the variance or more in {_so_many(error)} of the channels: "
        f"outputs are {100 * (1 - (1 + ratio) ** -0.5):.0f} % too small in training and evaluation.",
        (
            Evidence("ε over variance", ratio, ERROR if error else WARNING),
            Evidence("share of channels at least so bad", 100 * (MANY if error else FEW), unit="%"),
            Evidence("median variance", median(kept)),
        ),
        f'model.get_submodule("{layer.name}").eps = {_smaller(median(kept)):.0e}; mednorm.recalibrate(model, loader)',
    )


def _precision(layer: Layer) -> Iterator[Finding]:
    if layer.seen is None or layer.dtype not in BITS:
        return
    moments = layer.seen.moments
    kept = ~constant(layer) & moments.mean.isfinite() & (moments.std > 0)
    mean, std = moments.mean[kept].abs(), moments.std[kept]
    step = torch.ldexp(torch.ones_like(mean), torch.frexp(mean).exponent - 1 - BITS[layer.dtype])
    found = _grade(step / std, COARSE, COARSER)
    if found is None:
        return
    error, steps = found
    yield Finding(
        "MN012",
        "error" if error else "warning",
        layer.name,
        f"Steps of {layer.dtype} are {steps:.2g} σ wide or more in {_so_many(error)} of the channels, around a mean "
        f"of {median(mean):.3g}: the variance is one of rounding.",
        (
            Evidence("step of the number format", steps, COARSER if error else COARSE, "σ"),
            Evidence("share of channels at least so bad", 100 * (MANY if error else FEW), unit="%"),
            Evidence("mean over standard deviation", median(mean / std)),
        ),
        "model.float(); mednorm.recalibrate(model, loader)  # images in float32, too",
    )


def _overflow(layer: Layer) -> Iterator[Finding]:
    if layer.seen is None or layer.dtype != "float16":
        return
    moments = layer.seen.moments
    largest = float(torch.maximum(moments.maximum.abs(), moments.minimum.abs()).max())
    if HEADROOM < largest < float("inf"):
        yield Finding(
            "MN012",
            "warning",
            layer.name,
            f"Values of up to {largest:.3g} come here, and float16 ends at {torch.finfo(torch.float16).max:g}: a batch "
            "that is a little brighter overflows.",
            (Evidence("largest value", largest, HEADROOM),),
            "model.to(torch.bfloat16)",
        )


def _grade(ratios: Tensor, warning: float, error: float) -> tuple[bool, float] | None:
    """Say whether it is an error, and what so many channels reach; None where too few are bad."""
    if not len(ratios):
        return None
    for limit, share in ((error, MANY), (warning, FEW)):
        reached = float(ratios.quantile(1 - share))
        if reached >= limit:
            return limit == error, reached
    return None


def _so_many(error: bool) -> str:
    return "half" if error else "a quarter"


def _smaller(variance: float) -> float:
    """Return the power of ten next below a hundredth of a variance."""
    return 10.0 ** torch.tensor(variance / 100).log10().floor().item()


RULE = Rule(
    code="MN012", name="epsilon", title="ε or half precision outweighs the variance", check=check, needs_data=False
)
