"""What must hold for batch normalization of any batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mednorm import BatchNorm, Moments, normalize

SEEDS = st.integers(0, 2**31)


@st.composite
def batches(draw):
    """Draw float64 batches of any rank whose channels have some spread."""
    spatial = draw(st.lists(st.integers(1, 4), max_size=3))
    shape = (draw(st.integers(3, 8)), draw(st.integers(1, 4)), *spatial)
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=torch.float64) + 1


def trained(x, **options):
    """Run one training step of a fresh layer; return the layer, its output and the gradient of x for a fixed loss."""
    layer = BatchNorm(x.shape[1], **options, dtype=torch.float64)
    x = x.clone().requires_grad_()
    y = layer(x)
    (y.sin() * torch.linspace(0, 1, x[0].numel(), dtype=torch.float64).view(x[0].shape)).sum().backward()
    return layer, y.detach(), x.grad


@given(batches(), SEEDS, st.sampled_from([None, "relu", "leaky_relu"]))
def test_permuting_the_images_permutes_outputs_and_gradients(x, seed, activation):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    _, y, grad = trained(x, activation=activation)
    _, y_permuted, grad_permuted = trained(x[order], activation=activation)
    torch.testing.assert_close(y_permuted, y[order], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad_permuted, grad[order], rtol=1e-10, atol=1e-10)


@given(batches(), st.floats(0.1, 100), st.floats(-100, 100))
def test_a_positive_affine_change_of_the_input_leaves_the_output(x, scale, shift):
    _, y, _ = trained(x, eps=0.0)
    _, y_changed, _ = trained(x * scale + shift, eps=0.0)
    torch.testing.assert_close(y_changed, y, rtol=0, atol=1e-9)


@given(batches(), st.floats(0.1, 100), st.floats(-100, 100))
def test_scaling_eps_with_the_input_makes_that_exact_at_any_eps(x, scale, shift):
    _, y, _ = trained(x, eps=0.1)
    _, y_changed, _ = trained(x * scale + shift, eps=0.1 * scale**2)
    torch.testing.assert_close(y_changed, y, rtol=0, atol=1e-9)


@given(batches())
def test_a_negative_scale_of_the_input_turns_the_outputs_sign(x):
    _, y, _ = trained(x)
    _, y_turned, _ = trained(-x)
    torch.testing.assert_close(y_turned, -y, rtol=0, atol=1e-12)


@given(batches())
def test_the_gradient_is_orthogonal_to_ones_and_to_the_normalized_input(x):
    # Shifting or stretching a channel changes nothing (eps = 0), so no gradient points there.
    _, y, grad = trained(x, eps=0.0)
    axes = (0, *range(2, x.dim()))
    size = grad.abs().sum(axes) + 1
    assert (grad.sum(axes).abs() <= 1e-10 * size).all()
    assert ((grad * y).sum(axes).abs() <= 1e-10 * size).all()


@given(batches())
def test_the_output_has_mean_zero_and_the_variance_that_eps_leaves(x):
    layer, y, _ = trained(x, eps=1e-2)
    out, variance = Moments.of(y), layer.batch_moments.variance
    torch.testing.assert_close(out.mean, torch.zeros_like(out.mean), rtol=0, atol=1e-10)
    torch.testing.assert_close(out.variance, variance / (variance + 1e-2), rtol=1e-10, atol=0)


@given(batches())
def test_a_mask_of_ones_is_no_mask_in_output_and_gradient(x):
    results = []
    for mask in (None, torch.ones(x.shape, dtype=torch.bool)):
        leaf = x.clone().requires_grad_()
        y = normalize(leaf, Moments.of(leaf, mask=mask), mask=mask, activation="relu")
        (grad,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append((y.detach(), grad))
    for masked, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(masked, plain, rtol=1e-10, atol=1e-10)


@given(batches(), SEEDS)
def test_values_outside_the_mask_change_no_output_inside(x, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand((len(x), *x.shape[2:]), generator=generator) < 0.5
    mask[:2] = True
    kept = mask.unsqueeze(1).expand(x.shape)
    changed = torch.where(kept, x, 100 * torch.randn(x.shape, generator=generator, dtype=torch.float64))
    layer, other = (BatchNorm(x.shape[1], dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(other(changed, mask)[kept], layer(x, mask)[kept], rtol=0, atol=1e-10)
    assert torch.equal(other.running_var, layer.running_var)
