"""Whatever stands around a normalization: folded is what it was, and what is left is said."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mednorm import BatchNorm
from mednorm.surgery.fold import fold

SEEDS = st.integers(0, 2**31)
CONVS = {
    False: [nn.Conv1d, nn.Conv2d, nn.Conv3d],
    True: [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d],
}
MODES = ["zeros", "reflect", "replicate", "circular"]


def drawn_convolution(draw, rank, channels, size):
    """A convolution of any kind for images of that size, with how many channels and what size come out."""
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    out = groups * draw(st.integers(1, 3))
    kernel, dilation = draw(st.integers(1, 3 if size > 3 else 1)), draw(st.integers(1, 2))
    # Images neither vanish nor grow without end: small ones are padded or spread, large ones shrink.
    stride = draw(st.integers(1, 2)) if transposed == (size < 8) else 1
    reach = dilation * (kernel - 1)
    options = {"groups": groups, "bias": draw(st.booleans()), "stride": stride, "dilation": dilation}
    if transposed:
        padding = draw(st.integers(0, reach // 2))
        size = (size - 1) * stride - 2 * padding + reach + 1
    else:
        padding = draw(st.integers(0, 2)) if size > 7 else (reach + 1) // 2
        options["padding_mode"] = draw(st.sampled_from(MODES))
        size = (size + 2 * padding - reach - 1) // stride + 1
    options |= {"padding": padding, "dtype": torch.float64}
    return CONVS[transposed][rank - 1](channels, out, kernel, **options), out, size


@st.composite
def networks(draw):
    """Draw a sequence of convolutions, normalizations and activations with any numbers, and images for it."""
    rank, channels = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    x = torch.randn(2, channels, *[9] * rank, generator=generator, dtype=torch.float64)
    layers, size = [], 9
    for kind in draw(st.lists(st.sampled_from(["conv", "norm", "relu", "identity"]), min_size=1, max_size=5)):
        if kind == "conv":
            layer, channels, size = drawn_convolution(draw, rank, channels, size)
        elif kind == "norm":
            layer = BatchNorm(
                channels,
                eps=draw(st.sampled_from([1e-5, 0.1])),
                affine=draw(st.booleans()),
                activation=draw(st.sampled_from([None, None, "relu", "leaky_relu"])),
                dtype=torch.float64,
            )
            layer.running_mean.copy_(torch.randn(channels, generator=generator) * draw(st.sampled_from([0, 1])))
            layer.running_var.copy_(0.1 + torch.rand(channels, generator=generator))
        else:
            layer = nn.ReLU() if kind == "relu" else nn.Identity()
        layers.append(layer)
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for norm in network:
            if isinstance(norm, BatchNorm) and norm.affine and draw(st.booleans()):
                norm.bias.zero_()
    return network, x


@given(networks())
@torch.no_grad()
def test_a_folded_network_gives_what_it_gave_and_every_norm_is_accounted_for(drawn):
    network, x = drawn
    norms = [name for name, module in network.named_modules() if isinstance(module, BatchNorm)]
    before = network(x)
    report = fold(network)
    after = network(x)
    assert float((after - before).abs().max()) <= 1e-10 * (float(before.abs().max()) + 1)
    assert sorted([layer.norm for layer in report.folded] + [layer.norm for layer in report.left]) == sorted(norms)
    stay = [name for name, module in network.named_modules() if isinstance(module, BatchNorm)]
    assert stay == [layer.norm for layer in report.left]


@given(networks())
@torch.no_grad()
def test_every_norm_right_after_a_convolution_is_folded(drawn):
    network, _ = drawn
    right_after = {
        str(place)
        for place, (first, second) in enumerate(pairwise(network), 1)
        if isinstance(second, BatchNorm) and "Conv" in type(first).__name__
    }
    assert right_after <= {layer.norm for layer in fold(network).folded}


@given(networks())
@torch.no_grad()
def test_folding_again_leaves_the_same_norms_or_fewer(drawn):
    network, x = drawn
    left = {layer.norm for layer in fold(network).left}
    before = network(x)
    again = fold(network)
    assert {layer.norm for layer in again.left} <= left
    assert float((network(x) - before).abs().max()) <= 1e-10 * (float(before.abs().max()) + 1)
