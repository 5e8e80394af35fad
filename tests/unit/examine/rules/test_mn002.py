"""MN002, running statistics that lag behind, or forget too soon."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import mednorm
from mednorm.examine.rules.mn002_lag import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said
from tests.unit.examine.rules.scattered import scattered

IMAGES = 3 * scattered(64, 0.2) + 10 * (1 + torch.arange(8).double()).view(8, 1, 1)


def after(updates, momentum=0.1, images=IMAGES):
    """A layer that so many batches of all the images moved."""
    norm = nn.BatchNorm2d(8, momentum=momentum).double()
    for _ in range(updates):
        norm(images)
    return layer_of(norm.eval(), images, updates=updates)


@pytest.mark.parametrize(
    ("updates", "momentum", "severity"),
    [(3, 0.1, "error"), (21, 0.1, "error"), (23, 0.1, "warning"), (43, 0.1, "warning"), (200, 0.001, "error")],
)
def test_what_is_left_of_the_initial_values_decides(updates, momentum, severity):
    assert said(RULE, after(updates, momentum)) == [("norm", severity)]


@pytest.mark.parametrize(("updates", "momentum"), [(44, 0.1), (500, 0.01), (1, None)])
def test_enough_updates_are_no_finding(updates, momentum):
    assert said(RULE, after(updates, momentum)) == []


def test_the_message_says_how_many_updates_would_do():
    (finding,) = findings(RULE, after(3))
    assert finding.message.startswith("73 % of the initial mean 0 and variance 1 is left")
    assert finding.evidence[1].threshold == 44


def test_a_layer_that_no_batch_moved_holds_the_initial_values():
    (finding,) = findings(RULE, after(0))
    assert (finding.severity, finding.evidence[0].value) == ("error", 100)


def test_few_updates_are_no_finding_where_the_statistics_are_right():
    network = nn.Sequential(nn.BatchNorm2d(8).double())
    update_bn(list(IMAGES.split(16)), network)
    assert network[0].num_batches_tracked == 4
    assert found_in(RULE, network.eval(), *IMAGES.split(16)) == []


def test_statistics_of_other_images_are_not_taken_for_a_lag():
    network = nn.Sequential(nn.BatchNorm2d(8).double())
    update_bn([2 * batch + 5 for batch in IMAGES.split(16)], network)
    assert found_in(RULE, network.eval(), *IMAGES.split(16)) == []


def test_statistics_loaded_without_a_count_are_not_taken_for_initial_ones():
    norm = nn.BatchNorm2d(8).double()
    norm.running_mean.copy_(IMAGES.mean((0, 2, 3)) + 2)
    norm.running_var.fill_(9.0)
    assert said(RULE, layer_of(norm, IMAGES, updates=0)) == []


def test_images_that_are_as_the_initial_values_say_leave_no_lag():
    assert said(RULE, after(3, images=scattered(64, 0.2))) == []


def test_the_count_is_believed_where_one_image_reached_the_layer():
    assert said(RULE, layer_of(norm_after_one(), IMAGES[:1], updates=1)) == [("norm", "error")]


def test_a_layer_that_no_forward_pass_calls_is_no_finding():
    assert said(RULE, layer_of(norm_after_one(), updates=1)) == []
    assert said(RULE, layer_of(nn.BatchNorm2d(8, momentum=0.99).double(), updates=0), after(200)) == []


def norm_after_one():
    """A layer that one batch moved."""
    norm = nn.BatchNorm2d(8).double()
    norm(IMAGES)
    return norm.eval()


@pytest.mark.parametrize(("momentum", "severity"), [(0.99, "error"), (0.6, "warning")])
def test_a_momentum_that_remembers_the_last_batches_alone_is_found(momentum, severity):
    (finding,) = findings(RULE, remembering(momentum))
    assert (finding.severity, finding.evidence[0].value) == (severity, momentum)
    assert finding.evidence[1].value == pytest.approx((2 - momentum) / momentum)


def test_such_a_momentum_is_a_warning_where_the_statistics_are_right_all_the_same():
    (finding,) = findings(RULE, after(100, 0.99))
    assert (finding.severity, finding.evidence[0].threshold) == ("warning", 0.5)


def remembering(momentum):
    """A layer whose last batches were brighter than the images that it is used on."""
    norm = nn.BatchNorm2d(8, momentum=momentum).double()
    for _ in range(100):
        norm(IMAGES + 1)
    return layer_of(norm.eval(), IMAGES, updates=100)


def test_the_remedy_for_a_momentum_mends_the_statistics_and_the_next_training():
    network = nn.Sequential(
        nn.BatchNorm2d(8, momentum=0.99), nn.BatchNorm2d(8, momentum=0.01), nn.BatchNorm2d(8)
    ).double()
    network[2].momentum = None
    network(IMAGES + 1)
    loader = list(IMAGES.split(16))
    finding = found_in(RULE, network.eval(), *loader)[0]
    assert (finding.layer, finding.severity) == ("0", "error")
    run(finding.remedy, model=network, loader=loader)
    assert [norm.momentum for norm in network] == [0.1, 0.01, None]
    assert found_in(RULE, network, *loader) == []


def test_the_momentum_of_frozen_layers_does_not_matter():
    norm = nn.BatchNorm2d(8, momentum=0.99).double()
    for _ in range(3):
        norm(IMAGES)
    assert said(RULE, layer_of(norm.eval(), IMAGES, updates=3, frozen=True)) == []


@pytest.mark.parametrize("frozen", [None, mednorm.freeze, lambda network: mednorm.convert(network, to="frozen")])
def test_the_remedy_makes_the_statistics_those_of_the_images(frozen):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
    loader = list((5 + 3 * torch.randn(32, 1, 12, 12)).split(8))
    network(loader[0])
    if frozen:
        frozen(network)
    (finding,) = found_in(RULE, network.eval(), *loader)
    run(finding.remedy, model=network, loader=loader)
    expected = network[0](torch.cat(loader)).mean((0, 2, 3))
    torch.testing.assert_close(network[1].running_mean, expected, rtol=1e-4, atol=1e-4)
    assert found_in(RULE, network, *loader) == []
