"""What must hold for every layer of the small-batch family, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mednorm import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    RangeBatchNorm,
)
from mednorm.layers.sites import domain
from tests.properties.test_batch import SEEDS, batches

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ACTIVATIONS = st.sampled_from([None, "relu", "leaky_relu"])


def renorm(channels, **options):
    """Renormalization that is wide open from the first step on."""
    layer = BatchRenorm(channels, schedule=0, r_max=1.5, d_max=0.5, **options)
    layer.num_batches_tracked.fill_(1)
    return layer


def ghosts(channels, **options):
    return GhostBatchNorm(channels, ghost_size=2, **options)


def two_sites(channels, **options):
    return DomainBatchNorm(channels, domains=2, **options)


FAMILY = [renorm, ghosts, MovingBatchNorm, RangeBatchNorm, two_sites, FrozenBatchNorm]
EACH = pytest.mark.parametrize("made", FAMILY, ids=lambda made: made.__name__)


def step(layer, x, mask=None):
    """Train one step; return the output and the gradient of x for a fixed loss."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf, mask)
    weights = torch.linspace(0, 1, x[0].numel(), dtype=torch.float64).view(x[0].shape)
    (grad,) = torch.autograd.grad((y.sin() * weights).sum(), leaf)
    return y.detach(), grad


def assert_trains_and_evaluates_like(layer, other, x):
    """Three steps, then evaluation, to the last buffer."""
    for k in range(3):
        for ours, wanted in zip(step(layer, (1 + k) * x + k), step(other, (1 + k) * x + k), strict=True):
            torch.testing.assert_close(ours, wanted, **TIGHT)
    for name, wanted in other.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], wanted, **TIGHT)
    torch.testing.assert_close(layer.eval()(x), other.eval()(x), **TIGHT)


@given(batches(), ACTIVATIONS, st.sampled_from([0.1, 1.0, None]))
def test_one_ghost_is_batch_normalization(x, activation, momentum):
    options = {"activation": activation, "momentum": momentum, "dtype": torch.float64}
    assert_trains_and_evaluates_like(
        GhostBatchNorm(x.shape[1], ghost_size=len(x), **options), BatchNorm(x.shape[1], **options), x
    )


@given(batches(), ACTIVATIONS, st.sampled_from([0.1, 1.0, None]))
def test_renormalization_with_r_one_and_d_zero_is_batch_normalization(x, activation, momentum):
    options = {"activation": activation, "momentum": momentum, "dtype": torch.float64}
    layer = BatchRenorm(x.shape[1], r_max=1.0, d_max=0.0, schedule=0, **options)
    assert_trains_and_evaluates_like(layer, BatchNorm(x.shape[1], **options), x)


@given(batches(), ACTIVATIONS, st.booleans())
def test_one_site_is_batch_normalization(x, activation, own):
    options = {"activation": activation, "dtype": torch.float64}
    layer = DomainBatchNorm(x.shape[1], domains=["only"], domain_affine=own, **options)
    plain = BatchNorm(x.shape[1], **options)
    with domain(layer, ["only"] * len(x)):
        assert_trains_and_evaluates_like(layer, plain, x)
    torch.testing.assert_close(layer.domain_mean[0], plain.running_mean, **TIGHT)
    torch.testing.assert_close(layer.domain_var[0], plain.running_var, **TIGHT)


@EACH
@given(batches(), ACTIVATIONS)
def test_a_mask_of_ones_is_no_mask(made, x, activation):
    layer, other = (made(x.shape[1], activation=activation, dtype=torch.float64) for _ in range(2))
    x = x if x.dim() > 2 else x[: len(x) // 2 * 2]  # whole ghosts: a mask does not say what shape the last one has
    ones = torch.ones((len(x), *x.shape[2:]), dtype=torch.bool)
    for k in range(2):
        for masked, plain in zip(step(layer, (1 + k) * x, ones), step(other, (1 + k) * x), strict=True):
            torch.testing.assert_close(masked, plain, **TIGHT)
    for name, wanted in other.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], wanted, **TIGHT)


@EACH
@given(batches(), SEEDS, ACTIVATIONS)
def test_permuting_the_images_permutes_outputs_and_gradients(made, x, seed, activation):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    if made is ghosts:  # whole ghosts change places, of which the last must be whole too
        x = x[: len(x) // 2 * 2]
        order = torch.arange(len(x)).view(-1, 2)[torch.randperm(len(x) // 2, generator=generator)].flatten()
    layer, other = (made(x.shape[1], activation=activation, dtype=torch.float64) for _ in range(2))
    for k in range(2):
        y, grad = step(layer, (1 + k) * x)
        y_permuted, grad_permuted = step(other, (1 + k) * x[order])
        torch.testing.assert_close(y_permuted, y[order], **TIGHT)
        torch.testing.assert_close(grad_permuted, grad[order], **TIGHT)


@given(batches(), SEEDS)
def test_the_order_of_sites_within_a_batch_does_not_matter(x, seed):
    x = torch.cat([x, x.flip(0) * 2, 3 * x])
    ids = torch.arange(3).repeat_interleave(len(x) // 3) - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    layer, other = (two_sites(x.shape[1], dtype=torch.float64) for _ in range(2))
    with domain(layer, ids):
        y, grad = step(layer, x)
    with domain(other, ids[order]):
        y_permuted, grad_permuted = step(other, x[order])
    torch.testing.assert_close(y_permuted, y[order], **TIGHT)
    torch.testing.assert_close(grad_permuted, grad[order], **TIGHT)
    torch.testing.assert_close(other.domain_var, layer.domain_var, **TIGHT)


@given(batches(), st.floats(0.1, 100), st.floats(-100, 100))
def test_a_positive_affine_change_of_the_input_leaves_the_output_of_the_range(x, scale, shift):
    layer, other = (RangeBatchNorm(x.shape[1], eps=0.0, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(other(x * scale + shift), layer(x), rtol=0, atol=1e-8)


@given(batches(), ACTIVATIONS)
def test_unclipped_renormalization_trains_as_it_evaluates_before_the_step(x, activation):
    layer = BatchRenorm(x.shape[1], schedule=0, r_max=1e12, d_max=1e12, activation=activation, dtype=torch.float64)
    layer(2 * x + 1)
    expected = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), expected, rtol=0, atol=1e-8)


@given(batches(), ACTIVATIONS)
def test_the_first_moving_step_has_batch_normalizations_gradient_times_the_ratio_of_the_deviations(x, activation):
    # Output and gradient: x̂ is divided by the unbiased in the place of the biased deviation, and nothing else differs.
    options = {"affine": False, "dtype": torch.float64}
    moving, plain = MovingBatchNorm(x.shape[1], window=1, **options), BatchNorm(x.shape[1], **options)
    axes = (0, *range(2, x.dim()))
    biased, unbiased = (x.var(axes, correction=c, keepdim=True) + plain.eps for c in (0, 1))
    ratio = (biased / unbiased).sqrt()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    upstream = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape)
    ys = [layer(leaf) for layer, leaf in zip((moving, plain), leaves, strict=True)]
    grads = [torch.autograd.grad(y, leaf, upstream)[0] for y, leaf in zip(ys, leaves, strict=True)]
    torch.testing.assert_close(ys[0], ys[1] * ratio, **TIGHT)
    torch.testing.assert_close(grads[0], grads[1] * ratio, **TIGHT)


@given(batches(), st.integers(1, 3), st.floats(-5, 5), st.floats(0.2, 5))
def test_within_one_pass_the_moving_gradient_is_orthogonal_to_ones_and_to_the_input(x, refresh_every, shift, scale):
    # Whatever the statistics: so a step along it changes neither the mean nor the scale of what is normalized.
    layer = MovingBatchNorm(x.shape[1], eps=0.0, window=1, refresh_every=refresh_every, dtype=torch.float64)
    layer(scale * x + shift)
    y, grad = step(layer, x)
    axes = (0, *range(2, x.dim()))
    size = grad.abs().sum(axes) * y.abs().amax(axes) + 1
    assert (grad.sum(axes).abs() <= 1e-8 * size).all()
    assert ((grad * y).sum(axes).abs() <= 1e-8 * size).all()
