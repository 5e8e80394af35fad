"""What must hold for the moments of any tensor and any way of cutting it up."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mednorm import Moments

SEEDS = st.integers(0, 2**31)
CHANNELS = st.integers(1, 4)
SPATIAL = st.lists(st.integers(1, 4), max_size=3)
OFFSETS = st.sampled_from([0.0, -3.0, 1e3, 1e6])


@st.composite
def tensors(draw, least_batch=1):
    """Draw float64 values of any rank, near zero and far from it."""
    shape = (draw(st.integers(least_batch, 8)), draw(CHANNELS), *draw(SPATIAL))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([1e-3, 1.0, 50.0])
    ) + draw(OFFSETS)


@st.composite
def tensors_in_parts(draw):
    """Draw a tensor and the sizes of parts of its batch, empty ones among them."""
    x = draw(tensors())
    cuts = sorted(draw(st.lists(st.integers(0, len(x)), max_size=5)))
    return x, [end - start for start, end in zip([0, *cuts], [*cuts, len(x)], strict=True)]


def assert_close(ours: Moments, expected: Moments) -> None:
    """Counts and extremes exactly; mean and spread to a few roundings of float64 at the size of the values."""
    assert torch.equal(ours.count, expected.count)
    assert torch.equal(ours.minimum, expected.minimum)
    assert torch.equal(ours.maximum, expected.maximum)
    size = torch.stack((expected.minimum.abs(), expected.maximum.abs())).amax(0)
    rounding = 2e-15 * torch.where(expected.count > 0, size, 0)
    assert ((ours.mean - expected.mean).abs() <= rounding).all()
    # M2 is the squared length of the deviations; each of them is off by no more than the mean's rounding.
    apart = (ours.m2.sqrt() - expected.m2.sqrt()).abs()
    assert (apart <= 1e-12 * expected.m2.sqrt() + expected.count.sqrt() * rounding).all()


@given(tensors(least_batch=2), st.data())
def test_merging_is_commutative(x, data):
    cut = data.draw(st.integers(0, len(x)))
    first, second = Moments.of(x[:cut]), Moments.of(x[cut:])
    assert_close(first.merge(second), second.merge(first))


@given(tensors(least_batch=3), st.data())
def test_merging_is_associative(x, data):
    one, two = sorted((data.draw(st.integers(0, len(x))), data.draw(st.integers(0, len(x)))))
    a, b, c = (Moments.of(part) for part in (x[:one], x[one:two], x[two:]))
    assert_close(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(tensors_in_parts())
def test_the_parts_of_any_cut_pool_to_the_whole(cut):
    x, sizes = cut
    assert_close(Moments.pool(Moments.of(part) for part in x.split(sizes)), Moments.of(x))


@given(tensors_in_parts())
def test_pooling_at_once_is_merging_one_after_another(cut):
    x, sizes = cut
    parts = [Moments.of(part) for part in x.split(sizes)]
    folded = parts[0]
    for part in parts[1:]:
        folded = folded.merge(part)
    assert_close(Moments.pool(parts), folded)


@given(tensors())
def test_the_samples_pool_to_the_whole(x):
    assert_close(Moments.of(x, per_sample=True).pooled(), Moments.of(x))


@given(tensors(), SEEDS)
def test_the_order_of_the_images_does_not_matter(x, seed):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert_close(Moments.of(x[order]), Moments.of(x))


@given(tensors(), st.sampled_from([-4.0, 0.5, 3.0]), st.sampled_from([0.0, -7.0]))
def test_scaling_and_shifting_the_values_scales_and_shifts_their_moments(x, scale, shift):
    plain, moved = Moments.of(x), Moments.of(x * scale + shift)
    ends = torch.stack((plain.minimum, plain.maximum)) * scale + shift
    assert_close(
        moved,
        Moments(plain.count, plain.mean * scale + shift, plain.m2 * scale**2, ends.amin(0), ends.amax(0)),
    )


@given(tensors(), SEEDS, st.floats(0, 1), st.booleans())
def test_a_mask_is_the_selection_of_values(x, seed, share, garbage):
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    ours = Moments.of(x.masked_fill(~mask, torch.nan) if garbage else x, mask=mask)
    for channel in range(x.shape[1]):
        selected = Moments.of(x[:, channel][mask[:, channel]].reshape(-1, 1))
        assert_close(Moments(*(field[channel : channel + 1] for field in ours.fields())), selected)


@given(tensors())
def test_a_mask_of_ones_is_no_mask(x):
    assert_close(Moments.of(x, mask=torch.ones(x.shape, dtype=torch.bool)), Moments.of(x))


@given(tensors(), SEEDS)
def test_a_mask_and_its_complement_pool_to_the_whole(x, seed):
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert_close(Moments.of(x, mask=mask).merge(Moments.of(x, mask=~mask)), Moments.of(x))


@given(tensors(), st.data())
def test_the_axis_of_the_channels_does_not_matter(x, data):
    axis = data.draw(st.integers(1, x.dim() - 1))
    assert_close(Moments.of(x.movedim(1, axis), channel_axis=axis), Moments.of(x))


@given(tensors())
def test_no_spread_is_negative_and_the_mean_lies_between_the_extremes(x):
    ours = Moments.of(x.float())
    slack = ours.mean.abs() * 1e-7
    assert (ours.m2 >= 0).all()
    assert (ours.range >= 0).all()
    assert (ours.minimum - slack <= ours.mean).all()
    assert (ours.mean <= ours.maximum + slack).all()
    assert (ours.std <= ours.range * (1 + 1e-6)).all()
