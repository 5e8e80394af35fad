"""Images of few patients tell as much as few images."""

import pytest
import torch

from mednorm.examine.records import Patients, Seen
from mednorm.moments import Moments


def seen(values, patients=None):
    """What images (N, C, S) show."""
    rows = Moments.of(values, per_sample=True)
    return Seen(rows.pooled(), Moments.of(rows.mean), Moments.of(rows.variance), patients)


def unnamed(found):
    return Seen(found.moments, found.of_means, found.of_variances)


def noise(found):
    by_patient = found.by_patient()
    return torch.stack([by_patient.noise_of_mean(found.draws), by_patient.noise_of_variance(found.draws)])


IMAGES = torch.randn(6, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


def test_slices_that_repeat_one_image_a_patient_tell_as_much_as_those_images():
    repeated = seen(IMAGES.repeat_interleave(16, 0), Patients.of([16] * 6))
    torch.testing.assert_close(noise(repeated), noise(seen(IMAGES)), rtol=1e-12, atol=0)
    assert (noise(unnamed(repeated)) < 0.5 * noise(repeated)).all()


def test_an_image_a_patient_changes_nothing():
    alone = seen(IMAGES, Patients.of([1] * 6))
    assert alone.draws == 6
    torch.testing.assert_close(noise(alone), noise(seen(IMAGES)), rtol=1e-15, atol=0)


def test_the_spread_of_patients_of_unequal_size_is_right_on_average():
    random, sizes = torch.Generator().manual_seed(1), torch.tensor([9, 4, 2, 1])
    each = torch.randn(4000, 4, generator=random, dtype=torch.float64).repeat_interleave(sizes, 1)
    means = each.mean(1)
    estimates = noise(seen(each.T[:, :, None].expand(-1, -1, 2), Patients.of(sizes.tolist())))[0]
    variances = each.var(1, correction=0) * estimates.square()
    assert variances.mean() == pytest.approx(float(means.square().mean()), rel=0.05)


@pytest.mark.parametrize(("sizes", "effective"), [([5] * 7, 7), ([9, 4, 2, 1], 256 / 102), ([30], 1)])
def test_patients_of_unequal_size_count_as_fewer(sizes, effective):
    assert Patients.of(sizes).effective == pytest.approx(effective, rel=1e-12)


def test_patients_of_other_sites_are_others_and_an_image_without_is_one():
    first, second = seen(IMAGES[:4], Patients.of([2, 2])), seen(IMAGES[4:])
    assert first.merge(second).patients == second.merge(first).patients == Patients.of([2, 2, 1, 1])
    assert second.merge(second).patients is None


def test_there_are_no_more_draws_than_images():
    assert seen(IMAGES[:2], Patients.of([3, 3, 3])).draws == 2
