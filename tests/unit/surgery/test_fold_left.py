"""What cannot be folded exactly, or cannot be shown to be exact, stays as it is, with the reason."""

import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.layers import DomainBatchNorm
from mednorm.surgery.fold import fold
from tests.unit.surgery.networks import Network, assert_folds, images, reasons, seasoned, snapshot


def test_norms_of_each_image_of_each_batch_and_of_each_domain_are_left():
    kinds = [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        DomainBatchNorm(4, domains=2),
        nn.LazyBatchNorm2d(),
    ]
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), kind) for kind in kinds)).eval()
    others = network[:-1]
    before = snapshot(others)
    assert reasons(fold(network)) == {
        "0.1": "it takes its statistics from each image, so they vary",
        "1.1": "it takes its statistics from each image, so they vary",
        "2.1": "it is no batch normalization",
        "3.1": "it keeps no running statistics, so it takes those of each batch",
        "4.1": "it has statistics for each domain, and which are used depends on the image",
        "5.1": "it is lazy and has no numbers yet",
    }
    assert snapshot(others) == before


def test_a_convolution_whose_output_is_used_elsewhere_keeps_its_norm():
    network = seasoned(
        Network(lambda net, x: net.norm(y := net.conv(x)) + y, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    )
    wanted = network(images(2))
    report = fold(network, images(2))
    assert reasons(report)["norm"].startswith(
        "it follows 'conv' (Conv2d), but its output is used 2 times: 'norm' (BatchNorm2d), add; its output goes to"
    )
    assert torch.equal(network(images(2)), wanted)


def test_a_block_that_serves_at_two_places_is_folded_once():
    def run(net, x):
        return net.norm(net.conv(net.norm(net.conv(x))))

    network = seasoned(Network(run, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    assert_folds(network, images(2), [("norm", "conv", "before")])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda net, x: net.norm(net.conv(net.conv(x))), "its output goes to 'conv' (Conv2d)"),
        (lambda net, x: net.norm(net.conv(net.norm(x))), "its output goes to the output"),
    ],
    ids=["convolution", "norm"],
)
def test_a_layer_that_serves_elsewhere_too_is_left(run, reason):
    network = seasoned(Network(run, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    wanted = network(images(2))
    assert reason in reasons(fold(network, images(2)))["norm"]
    assert torch.equal(network(images(2)), wanted)


def tied(first, second):
    second.weight = first.weight


def viewing(first, second):
    second.weight = nn.Parameter(first.weight.detach())


@pytest.mark.parametrize("tie", [tied, viewing])
def test_weights_shared_with_another_layer_stay(tie):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    tie(network[0], network[3])
    found = reasons(fold(seasoned(network), images(2)))
    assert "'0' (Conv2d) shares its weights with another layer" in found["1"]
    assert "'3' (Conv2d) shares its weights with another layer" in found["4"]


class Standardized(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "has weights that are computed"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "has weights that are computed"),
        (lambda: Standardized(4, 4, 3), "is a Standardized, which computes in a way of its own"),
        (lambda: nn.LazyConv2d(4, 3), "is lazy and has no numbers yet"),
        (lambda: nn.Conv2d(4, 4, 3, device="meta"), "has weights on the device 'meta'"),
    ],
    ids=["weight_norm", "spectral_norm", "subclass", "lazy", "meta"],
)
def test_a_convolution_whose_weights_are_not_plain_numbers_keeps_its_norm(make, reason):
    assert reason in reasons(fold(seasoned(nn.Sequential(make(), nn.BatchNorm2d(4)))))["1"]


def test_a_norm_of_another_axis_than_the_features_is_left():
    # (N, L, C) into a dense layer: batch normalization then takes L for the channels, and here L = C.
    network = seasoned(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    example = images(1, 5, size=5)
    assert "'0' (Linear) takes 3 axes" in reasons(fold(network, example))["1"]
    wide = seasoned(nn.Sequential(nn.Linear(5, 6), BatchNorm(4)))
    assert "'0' (Linear) has 6 channels there and it has 4" in reasons(fold(wide))["1"]
    assert "takes 4 axes" in reasons(fold(seasoned(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm2d(4)))))["1"]


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight"])
def test_statistics_that_are_not_finite_are_left_alone(name):
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        getattr(network[1], name)[2] = torch.nan
    assert "not finite" in reasons(fold(network))["1"]


def test_weights_too_large_for_half_precision_are_left_as_they_were():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).half()
    network[1].running_var.fill_(0)
    nn.init.constant_(network[1].weight, 6e4)
    assert "would not be finite in torch.float16" in reasons(fold(network))["1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_folded_in_its_own_type(dtype):
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    report = fold(network)
    assert [layer.norm for layer in report.folded] == ["1"]
    assert network[0].weight.dtype == network[0].bias.dtype == dtype
    assert report.tolerance == {torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]


class EarlyReturn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, pre=False):
        y = self.conv(x)
        return y if pre else self.norm(y)


@pytest.mark.parametrize("example", [None, images(2)], ids=["alone", "example"])
def test_an_argument_that_gives_back_what_comes_before_the_norm_keeps_it(example):
    network = seasoned(EarlyReturn())
    wanted = network(images(2), pre=True)
    found = reasons(fold(network, example))["norm"]
    assert "its output goes to the output of the network (EarlyReturn), with pre=True" in found
    assert torch.equal(network(images(2), pre=True), wanted)


def test_a_method_that_gives_back_what_comes_before_the_norm_keeps_it():
    class Embedding(EarlyReturn):
        def forward(self, x):
            return self.norm(self.embed(x))

        def embed(self, x):
            return self.conv(x)

    network = seasoned(Embedding())
    assert "has a method 'embed' that seems to use 'conv' without 'norm'" in reasons(fold(network, images(2)))["norm"]


def test_paths_that_the_example_did_not_take_are_said_not_to_have_been_seen():
    network = seasoned(
        Network(
            lambda net, x: net.norm(net.conv(x)) if x.sum() > -1e9 else net.conv(x),
            conv=nn.Conv2d(4, 4, 3),
            norm=nn.BatchNorm2d(4),
        )
    )
    report = fold(network, images(2))
    assert [layer.norm for layer in report.folded] == ["norm"]
    assert report.notes[0].endswith("in evaluation mode: paths that it did not take there were not seen.")
