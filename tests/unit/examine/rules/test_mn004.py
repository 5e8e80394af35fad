"""MN004, a site whose images differ from what the network expects."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mednorm import DomainBatchNorm
from mednorm.examine.records import Seen
from mednorm.examine.rules.mn004_site_shift import RULE, away, compare
from tests.unit.examine.rules.made import layer_of, probed_of, run
from tests.unit.examine.rules.scattered import scattered


def layer(*, gain=1.0, offset=0.0, images=16, norm=None, running_mean=0.0, **sites):
    """A layer whose running statistics fit the sites Basel and Lund; Porto is shifted."""
    norm = (norm or nn.BatchNorm2d(8)).double()
    norm.running_mean.fill_(running_mean)
    shifted = gain * scattered(images, 0.1, seed=3) + offset
    given = {"Basel": scattered(16, 0.1, seed=1), "Lund": scattered(16, 0.1, seed=2), "Porto": shifted}
    seen = {site: layer_of(norm, values).seen for site, values in {**given, **sites}.items() if values is not None}
    first, *others = seen.values()
    return replace(layer_of(norm, given["Basel"]), seen=_merged(first, others), sites=seen)


def _merged(first: Seen, others: list[Seen]) -> Seen:
    for each in others:
        first = first.merge(each)
    return first


def found(*layers):
    return list(RULE.check(probed_of(*layers)))


@pytest.mark.parametrize(
    ("gain", "offset", "severity"),
    [(3.0, 0.0, "error"), (1.4, 0.0, "warning"), (1.0, 2.0, "error"), (0.2, 0.0, "error"), (1.1, 0.05, None)],
)
def test_the_site_is_named_with_how_far_away_it_is(gain, offset, severity):
    findings = found(layer(gain=gain, offset=offset))
    assert [(each.site, each.severity) for each in findings] == ([("Porto", severity)] if severity else [])


def test_the_distance_is_the_one_it_was_moved_by_and_lies_in_its_interval():
    (finding,) = found(layer(gain=1.0, offset=2.0))
    distance, low, high, others, difference, compared, images = (each.value for each in finding.evidence)
    assert low < 2.0 < high
    assert difference == distance - others
    assert compared == 3
    assert distance == pytest.approx(2.0, rel=0.05)
    assert others < 0.05
    assert images == 16


def test_few_images_make_the_interval_wide_and_no_finding_by_chance():
    wide, narrow = (away(each, each.sites["Porto"]) for each in (layer(images=4), layer(images=64)))
    assert wide.error > 2 * narrow.error
    assert found(layer(images=4)) == []


def test_the_more_sites_and_layers_are_compared_the_farther_a_site_must_be():
    shifted, alike = layer(offset=0.55, images=8), layer(images=8)
    alone, among = found(shifted), found(shifted, *[alike] * 20)
    assert [each.severity for each in alone] == ["error"]
    assert [each.severity for each in among] == ["warning"]
    assert found(shifted, *[alike] * 400) == []
    thresholds = [finding.evidence[4].threshold for finding in (*alone, *among)]
    assert [finding.evidence[5].value for finding in (*alone, *among)] == [3, 63]
    assert thresholds[0] < alone[0].evidence[4].value
    assert thresholds[1] < among[0].evidence[4].value


def test_a_layer_that_cannot_be_judged_is_not_among_those_compared():
    dead = layer(images=3, Basel=None, Lund=None)
    assert [each.value for each in found(layer(offset=2.0), dead)[0].evidence] == [
        each.value for each in found(layer(offset=2.0))[0].evidence
    ]


def test_chance_is_what_the_spread_of_the_other_sites_makes_and_not_the_sites_own():
    loud, quiet = (layer(gain=gain) for gain in (9.0, 0.1))
    louder, quieter = (next(each for each in compare(made) if each.site == "Porto") for made in (loud, quiet))
    assert louder.here.error > 20 * quieter.here.error
    assert louder.error == pytest.approx(quieter.error, rel=0.2)
    assert louder.freedom == quieter.freedom == 31


def test_three_images_are_too_few_to_say_anything():
    assert found(layer(gain=3.0, images=3)) == []


def test_what_is_wrong_at_every_site_is_no_sites_fault():
    assert found(layer(running_mean=3.0)) == []


def test_the_site_is_found_also_where_it_is_wrong_at_every_site_a_little():
    assert {each.site for each in found(layer(offset=2.0, running_mean=-0.3))} == {"Porto"}


def test_a_single_site_has_no_other_to_be_compared_with():
    assert found(layer(gain=3.0, Basel=None, Lund=None)) == []


def test_two_sites_are_enough():
    assert [each.site for each in found(layer(gain=3.0, Lund=None))] == ["Porto"]


def test_a_layer_with_statistics_of_each_site_is_left_out():
    assert found(layer(gain=3.0, norm=DomainBatchNorm(8, domains=["Basel", "Lund", "Porto"]))) == []


def test_a_dead_channel_does_not_decide():
    images = scattered(16, 0.1, seed=3)
    images[:, 0] += 1e6
    assert found(layer(Porto=images)) == []


@pytest.mark.parametrize(("images", "lowest", "highest"), [(16, 1.99, 2.01), (8, 0.6, 0.7)])
def test_the_remedy_brings_the_layer_to_the_site_or_nearer_if_there_are_few_images(images, lowest, highest):
    (finding,) = found(layer(offset=2.0, images=images))
    norm = nn.BatchNorm2d(8).double()
    network = nn.Sequential(norm).eval()
    shifted = scattered(images, 0.1, seed=3) + 2.0
    run(finding.remedy, model=network, loader_of_site=list(shifted.split(4)))
    assert lowest < norm.running_mean.mean() < highest
    torch.testing.assert_close(norm.weight, torch.ones_like(norm.weight))
