"""MN014, variances that were averaged over batches."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from mednorm.examine.rules.mn014_averaged_variance import RULE
from tests.unit.examine.rules.made import found_in, run
from tests.unit.examine.rules.scattered import scattered

IMAGES = scattered(64, 0.5) * torch.linspace(1, 3, 8).double().view(8, 1, 1)


def averaged(size, images=IMAGES, of=None):
    network = nn.Sequential(nn.BatchNorm2d(images.shape[1]).double())
    update_bn(list((images if of is None else of).split(size)), network)
    return network.eval()


def said(network, images=IMAGES, **told):
    return [each.severity for each in found_in(RULE, network, *images.split(16), **told)]


@pytest.mark.parametrize(("size", "expected"), [(1, ["error"]), (2, ["warning"]), (8, []), (64, [])])
def test_how_small_the_averaged_batches_were_decides(size, expected):
    assert said(averaged(size)) == expected


def test_the_images_of_each_batch_and_the_ratio_are_evidence():
    (finding,) = found_in(RULE, averaged(1), *IMAGES.split(16))
    ratio, between, images, _ = (each.value for each in finding.evidence)
    assert ratio == pytest.approx(0.5, rel=0.05)
    assert between == pytest.approx(50, rel=0.05)
    assert images == pytest.approx(1, rel=0.05)


def test_it_is_a_warning_where_the_training_batches_were_as_small():
    assert said(averaged(1), batch_size=1) == ["warning"]


def test_statistics_of_other_images_are_another_cause():
    assert said(averaged(8, of=0.5 * IMAGES)) == []
    assert said(averaged(1, of=IMAGES + 3)) == []


def test_images_that_are_alike_lose_nothing_by_averaging():
    images = scattered(64, 0.02)
    assert said(averaged(1, images), images) == []


def test_initial_values_are_another_cause():
    assert said(nn.Sequential(nn.BatchNorm2d(8).double()).eval()) == []


def test_the_remedy_gives_the_variance_of_all_images():
    network = averaged(1)
    (finding,) = found_in(RULE, network, *IMAGES.split(16))
    run(finding.remedy, model=network, loader=list(IMAGES.split(16)))
    torch.testing.assert_close(network[0].running_var, IMAGES.var((0, 2, 3)), rtol=1e-3, atol=0)
    assert said(network) == []
