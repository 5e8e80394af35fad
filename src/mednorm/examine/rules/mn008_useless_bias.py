"""MN008: a bias that the layer's own mean takes away again."""

from __future__ import annotations

from collections.abc import Iterator

from mednorm.examine.findings import Evidence, Finding, Rule
from mednorm.examine.records import Layer, Probed

# The first does not take away the mean of a batch; the other has a running mean for each site.
_OTHERWISE = ("MovingBatchNorm", "DomainBatchNorm")


def check(probed: Probed) -> Iterator[Finding]:
    """Find biases of convolutions and linear layers whose output is normalized."""
    for layer in probed.layers:
        around = layer.around
        if around.before is None or not around.before_has_bias or layer.state.frozen:
            continue
        if layer.kind in _OTHERWISE or around.calls > 1:
            continue
        yield Finding(
            "MN008",
            "info",
            layer.name,
            f"The bias of {around.before!r} is subtracted again with the mean: {layer.channels} parameters with a "
            "gradient of 0, which weight decay alone moves.",
            (Evidence("useless parameters", layer.channels, 0, "parameters"),),
            _remedy(layer, around.before),
        )


def _remedy(layer: Layer, before: str) -> str:
    """Take the bias out of the running mean too, so that evaluation stays the same."""
    taken = (
        f'model.get_submodule("{layer.name}").running_mean -= conv.bias.detach(); '
        if layer.state.running_mean is not None
        else ""
    )
    return f'conv = model.get_submodule("{before}"); {taken}conv.bias = None'


RULE = Rule(
    code="MN008",
    name="useless-bias",
    title="A bias is added that normalization takes away again",
    check=check,
    needs_data=False,
)
