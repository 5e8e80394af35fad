"""A network is changed as a whole or not at all, the change is told, kept where it helps, and taken back."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import mednorm
from mednorm import recalibrate
from mednorm.errors import ConfigError, DataError, RunError, ShapeError
from tests.harness import bytes_of
from tests.unit.population.networks import SIZES, Broken, everything_of, images_for, made, planes

BOTH = pytest.mark.parametrize("method", ["sequential", "batch"])


# --- whatever happens -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("at_pass", [1, 2, 3])
def test_a_loader_that_raises_leaves_the_network_bit_identical(method, error, at_pass):
    network = nn.Sequential(made("planes"), mednorm.BatchNorm(4), nn.Dropout())
    network(images_for("planes")[:4])  # something is remembered of a last batch
    network[0][3].eval()
    loader = Broken(list(images_for("planes").split(SIZES)), error, at_pass)
    before = everything_of(network)
    with pytest.raises(type(error)):
        recalibrate(network, loader, method)
    assert loader.passes == at_pass
    assert everything_of(network) == before


@BOTH
def test_random_generators_are_where_they_were(method):
    network, loader = made("planes"), Broken(list(images_for("planes").split(SIZES)), OSError("disk"), at_pass=99)
    before = everything_of(network)
    recalibrate(network, loader, method)
    after = everything_of(network)
    assert {key: after[key] for key in ("torch", "python", "numpy")} == {
        key: before[key] for key in ("torch", "python", "numpy")
    }


@BOTH
def test_a_voxel_that_is_no_number_is_refused_with_the_layer_it_reaches(method):
    network, images = made("planes"), images_for("planes")
    images[9, 0, 3, 3] = torch.nan
    before = everything_of(network)
    with pytest.raises(DataError, match="reach layer '1', got statistics that are not finite"):
        recalibrate(network, images.split(SIZES), method)
    assert everything_of(network) == before


def test_a_batch_of_one_value_per_channel_is_refused_where_statistics_are_taken_of_it():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    batches = [torch.randn(5, 3), torch.randn(1, 3)]
    before = everything_of(network)
    with pytest.raises(ShapeError, match=r"layer '1' at least 2 values per channel .* got 1 \(input shape \(1, 3\)\)"):
        recalibrate(network, batches, "batch")
    assert everything_of(network) == before
    assert recalibrate(network, batches).layers[1].values == 6


def test_statistics_that_half_precision_cannot_hold_are_refused():
    network = nn.Sequential(mednorm.BatchNorm(1))
    network[0].running_var = network[0].running_var.half()
    with pytest.raises(DataError, match=r"layer '0' that torch.float16 holds, got 8.88e\+06"):
        recalibrate(network, [3000 * torch.randn(64, 1, 8, 8)])
    assert network[0].running_var.item() == 1


def test_a_buffer_of_the_users_own_comes_back():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            self.calls = self.calls + 1
            return self.norm(x)

    network = Counting()
    buffer = network.calls
    recalibrate(network, [torch.randn(4, 1, 4, 4)])
    assert network.calls is buffer
    assert buffer.item() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "both"}, ConfigError, "expected 'sequential' or 'batch', got 'both'"),
        ({"where": "encoder"}, ConfigError, "got 'encoder', which none has"),
        ({"metric": len}, ConfigError, "expected validation=… with the images"),
        ({"validation": [torch.zeros(1, 1, 8, 8)]}, ConfigError, "expected metric=… to judge the validation images by"),
        ({"metric": "dice", "validation": []}, ConfigError, "function of outputs and labels, got 'dice'"),
        ({"process_group": "all"}, ConfigError, "'world' or None, got 'all'"),
        ({"limit": 0}, ConfigError, "at least 1 batch or None, got 0"),
        ({"loader": iter([])}, ConfigError, "which is used up after one pass"),
        ({"loader": None}, ConfigError, "such as a DataLoader or a list, got NoneType"),
        ({"loader": []}, DataError, "expected at least one batch, got none"),
        ({"loader": [torch.zeros(0, 1, 8, 8)]}, DataError, "batch 1: expected at least one image, got (0, 1, 8, 8)"),
        ({"loader": [{"scan": torch.zeros(1)}]}, DataError, "under 'image', got the keys ['scan']"),
        ({"model": nn.Sequential(nn.LazyBatchNorm2d())}, ConfigError, "got 0 (LazyBatchNorm2d) without: it is lazy"),
        ({"model": 3}, ConfigError, "expected a network (torch.nn.Module), got int"),
    ],
)
def test_bad_input_is_an_error_that_says_what_came(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        recalibrate(**{"model": planes(), "loader": [torch.zeros(2, 1, 8, 8)]} | arguments)


# --- the report, and the way back -------------------------------------------------------------------------------------


def test_rolling_back_gives_every_bit_back_and_only_once():
    network = made("residual 3-D")
    network.last.running_var[0] = torch.nan
    before = bytes_of(network)
    report = recalibrate(network, images_for("residual 3-D").split(SIZES))
    assert report.kept
    assert bytes_of(network) != before
    report.rollback()
    assert bytes_of(network) == before
    assert not report.kept
    assert str(report).startswith("Nothing was kept: 3 layers recalibrated from 15 images in 4 batches, and put back.")
    with pytest.raises(RunError, match="undone already"):
        report.rollback()


def test_rolling_back_is_refused_where_something_has_moved_the_statistics_since():
    network, images = made("planes"), images_for("planes")
    report = recalibrate(network, images.split(SIZES))
    network.train()(images)
    before = bytes_of(network)
    with pytest.raises(RunError, match="running_mean of layer '1' as it was left"):
        report.rollback()
    assert bytes_of(network) == before


def test_a_network_that_moved_to_other_tensors_is_rolled_back_there():
    network = nn.Sequential(nn.BatchNorm2d(1))
    report = recalibrate(network, [torch.randn(4, 1, 4, 4)])
    network[0]._buffers["running_mean"] = network[0].running_mean.clone()
    report.rollback()
    assert network[0].running_mean.item() == 0


def test_the_report_says_how_far_each_layer_was_and_is():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    report = recalibrate(network, [4 + torch.randn(64, 1, 16, 16)])
    first, second = report.layers
    assert first.before == pytest.approx(4, abs=0.05) == first.drift
    assert second.before == pytest.approx(4, abs=0.05)  # as evaluation saw it
    assert second.drift < 0.01  # with the first one mended nothing is left for it to do
    assert max(first.after, second.after) < 1e-4
    assert (first.images, first.values) == (64, 64 * 256)
    assert report.to_dict()["layers"][0]["before"] == first.before


# --- validation -------------------------------------------------------------------------------------------------------


def accuracy(outputs, labels) -> float:
    return float(((outputs.flatten(1).mean(1) > 0) == labels).float().mean())


def sorting() -> tuple[nn.Module, list, list]:
    """A network that calls an image bright, against what it was told of the mean; and labelled images."""
    network = nn.Sequential(nn.BatchNorm2d(1))
    images = torch.randn(30, 1, 4, 4) * 0.1 + 5 + torch.linspace(-2, 2, 30).view(30, 1, 1, 1)
    bright = images.mean((1, 2, 3)) > 5
    validation = [(images[:20], bright[:20]), (images[20:], bright[20:])]
    return network, list(images.split(12)), validation


def test_a_change_that_helps_on_validation_images_stays_and_the_metric_is_a_mean_over_images():
    network, images, validation = sorting()
    report = recalibrate(network, images, validation=validation, metric=accuracy)
    assert report.kept
    assert report.metric == pytest.approx((0.5, 1.0), abs=0.04)
    assert report.metric[0] == pytest.approx(sum(int(bright.sum()) for _, bright in validation) / 30)
    assert "metric: 0.5" in str(report)


def test_a_change_that_lowers_the_metric_is_undone_and_said():
    network, images, validation = sorting()
    recalibrate(network, images)
    before = everything_of(network)
    report = recalibrate(network, [batch + 3 for batch in images], validation=validation, metric=accuracy)
    assert report.metric[0] > report.metric[1]
    assert not report.kept
    assert everything_of(network) == before
    assert str(report).startswith("Nothing was kept: 1 layer recalibrated from 30 images in 3 batches, and put back.")


@pytest.mark.parametrize(
    ("label", "metric", "message"),
    [
        (None, accuracy, "expected labels to compute the metric with, got none in batch 1"),
        (torch.zeros(2), lambda *_: torch.nan, "expected the metric to give a number, got nan of batch 1"),
        (torch.zeros(2), lambda *_: None, "metric to return one number for a batch, got None. Make it a float."),
        (torch.zeros(2), lambda *_: torch.zeros(3), r"one number for a batch, got a Tensor of shape \(3,\)"),
    ],
)
def test_a_metric_that_cannot_be_computed_leaves_the_network_as_it_was(label, metric, message):
    network = made("planes")
    images, validation = torch.randn(5, 1, 16, 16), [(torch.zeros(2, 1, 16, 16), *([] if label is None else [label]))]
    before = everything_of(network)
    with pytest.raises((ConfigError, DataError), match=message):
        recalibrate(network, [images], validation=validation, metric=metric)
    assert everything_of(network) == before


def test_layers_that_share_their_running_statistics_are_left_and_say_why():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    network[2].running_mean, network[2].running_var = network[0].running_mean, network[0].running_var
    report = recalibrate(network, [3 + torch.randn(4, 1, 6, 6)])
    assert [layer.name for layer in report.layers] == ["3"]
    assert {(layer.name, layer.reason.split(",")[0]) for layer in report.left} == {
        (name, "it shares its running statistics with another layer") for name in ("0", "2")
    }
    assert network[0].running_mean.item() == 0
