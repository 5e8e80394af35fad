"""A folded network gives what it gave, in every bit of arithmetic that can be exact; what cannot be folded says why."""

import copy
import itertools
import json

import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.layers import (
    BatchRenorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    RangeBatchNorm,
)
from mednorm.surgery.fold import fold
from tests.unit.surgery.networks import assert_folds, images, reasons, seasoned, snapshot

CONVS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
NORMS = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])


LAYERS = [
    (kind, rank, groups, bias)
    for kinds in (CONVS, TRANSPOSED)
    for rank, kind in enumerate(kinds, 1)
    for groups, bias in itertools.product((1, 2, 4), (True, False))
]
ALL_LAYERS = pytest.mark.parametrize(
    ("kind", "rank", "groups", "bias"), LAYERS, ids=lambda value: getattr(value, "__name__", str(value))
)


@DTYPES
@ALL_LAYERS
def test_a_norm_is_folded_into_the_convolution_before_it(kind, rank, groups, bias, dtype):
    layer = kind(4, 8, 3, stride=2, padding=1, groups=groups, bias=bias, dtype=dtype)
    network = seasoned(nn.Sequential(layer, NORMS[rank - 1](8, dtype=dtype)))
    assert_folds(network, images(rank, dtype=dtype), [("1", "0", "before")], TOLERANCE[dtype])
    assert type(network[1]) is nn.Identity
    assert network[0].bias.dtype == dtype


@DTYPES
@ALL_LAYERS
def test_a_norm_is_folded_into_the_convolution_after_it_where_that_is_exact(kind, rank, groups, bias, dtype):
    layer = kind(4, 8, 3, stride=2, dilation=2, groups=groups, bias=bias, dtype=dtype)
    network = seasoned(nn.Sequential(NORMS[rank - 1](4, dtype=dtype), layer))
    if kind in TRANSPOSED:
        network[0].running_mean.zero_()
        nn.init.zeros_(network[0].bias)
    assert_folds(network, images(rank, dtype=dtype), [("0", "1", "after")], TOLERANCE[dtype])
    assert (network[1].bias is None) == (kind in TRANSPOSED and not bias)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", ["before", "after"])
def test_a_norm_is_folded_into_a_dense_layer(direction, bias, dtype):
    layers = [nn.Linear(5, 5, bias=bias, dtype=dtype), nn.BatchNorm1d(5, dtype=dtype)]
    network = seasoned(nn.Sequential(*(layers if direction == "before" else reversed(layers))))
    found = [("1", "0", "before")] if direction == "before" else [("0", "1", "after")]
    assert_folds(network, images(0, 5, dtype), found, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "norm",
    [
        lambda: BatchNorm(4),
        lambda: BatchRenorm(4),
        lambda: GhostBatchNorm(4, ghost_size=2),
        lambda: MovingBatchNorm(4),
        lambda: MovingBatchNorm(4, centering="weights"),
        lambda: RangeBatchNorm(4),
        lambda: FrozenBatchNorm(4),
        lambda: nn.SyncBatchNorm(4),
        lambda: nn.BatchNorm2d(4, affine=False),
    ],
    ids=["batch", "renorm", "ghost", "moving", "moving weights", "range", "frozen", "sync", "without parameters"],
)
def test_every_kind_that_evaluates_with_running_statistics_is_folded_also_after_training(norm):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), norm())
    for seed in range(3):
        network(torch.randn(6, 4, 7, 7, generator=torch.Generator().manual_seed(seed))).sum().backward()
    assert_folds(network.eval(), images(2), [("1", "0", "before")])


@pytest.mark.parametrize(
    ("options", "left"),
    [({"activation": "relu"}, "ReLU()"), ({"activation": "leaky_relu", "negative_slope": 0.2}, "LeakyReLU(")],
    ids=["relu", "leaky_relu"],
)
def test_the_activation_of_our_layer_stays_in_its_place(options, left):
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), BatchNorm(4, **options)))
    report = assert_folds(network, images(2), [("1", "0", "before")])
    assert repr(network[1]).startswith(left)
    assert not network[1].training
    assert f"{type(network[1]).__name__} stays" in str(report)


def test_a_norm_with_an_activation_before_a_convolution_is_left():
    network = seasoned(nn.Sequential(BatchNorm(4, activation="relu"), nn.Conv2d(4, 4, 3)))
    assert "its activation stands between it and '1' (Conv2d)" in reasons(fold(network))["0"]


PADDED = {
    "zeros": (nn.Conv2d(4, 4, 3, padding=1), False),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), False),
    "one axis": (nn.Conv2d(4, 4, 3, padding=(0, 1)), False),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), False),
    "valid": (nn.Conv2d(4, 4, 3, padding="valid"), True),
    "same of one tap": (nn.Conv2d(4, 4, 1, padding="same"), True),
    "reflect": (nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"), True),
    "replicate": (nn.Conv2d(4, 4, 3, padding="same", padding_mode="replicate"), True),
    "circular": (nn.Conv2d(4, 4, 3, padding=3, padding_mode="circular"), True),
}


@pytest.mark.parametrize("name", list(PADDED))
def test_a_norm_before_a_convolution_is_folded_unless_zeros_are_padded_that_it_would_have_shifted(name):
    layer, exact = PADDED[name]
    network = seasoned(nn.Sequential(nn.BatchNorm2d(4), copy.deepcopy(layer)))
    if exact:
        assert_folds(network, images(2), [("0", "1", "after")])
    else:
        report = fold(network)
        assert "the normalization shifts, by up to" in reasons(report)["0"]
        network[0].running_mean.zero_()
        nn.init.zeros_(network[0].bias)
        assert_folds(network, images(2), [("0", "1", "after")])


@torch.no_grad()
def test_padding_with_zeros_is_refused_because_it_would_be_wrong_at_the_border():
    norm, layer = seasoned(nn.BatchNorm2d(1)), nn.Conv2d(1, 1, 3, padding=1, bias=False)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).item()
    shift = (norm.bias - scale * norm.running_mean).item()
    x = images(2, 1)
    wanted, tempting = layer(norm(x)), layer(x) * scale + layer.weight.sum() * shift
    torch.testing.assert_close(tempting[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=0, atol=1e-5)
    assert float((tempting - wanted).abs().max()) > 0.01


def test_a_convolution_takes_the_norm_before_and_the_norm_after_it():
    network = seasoned(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)))
    assert_folds(network, images(2), [("0", "1", "after"), ("2", "1", "before")])


def test_between_two_convolutions_the_norm_goes_into_the_first():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)))
    assert_folds(network, images(2), [("1", "0", "before")])


def test_a_second_fold_finds_nothing_and_says_so():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    fold(network)
    before = snapshot(network)
    report = fold(network, images(2))
    assert str(report) == "Found nothing to fold: the network has no normalization."
    assert report.folded == ()
    assert report.equivalent
    assert snapshot(network) == before


@torch.no_grad()
def test_the_report_has_the_differences_and_reads_as_a_table():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    wanted = network(images(2))
    report = fold(network, images(2))
    found = float((network(images(2)) - wanted).abs().max())
    assert report.max_difference == found
    assert report.scale == float(wanted.abs().max())
    (layer,) = report.folded
    assert 0 < layer.max_difference < 1e-5
    assert layer.scale > 1
    lines = str(report).splitlines()
    assert lines[0] == (
        f"1 normalization folded, 1 left; outputs equal: they differ by at most {found:.2g} at up to "
        f"{report.scale:.3g}."
    )
    assert lines[1] == f"  1 -> 0  before it  {layer.max_difference:.2g} at up to {layer.scale:.3g}"
    assert lines[2].startswith("  3  BatchNorm2d  left: it takes its input from '2' (ReLU)")


def test_the_report_goes_to_json_and_back():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    report = fold(network, images(2))
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["folded"][0]["norm"] == "1"
    assert plain["left"] == [{"norm": "2", "kind": "GroupNorm", "reason": reasons(report)["2"]}]
    assert plain["equivalent"] is True


def test_without_an_example_the_report_says_what_was_not_compared():
    report = fold(seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))
    assert report.equivalent is None
    assert report.max_difference is None
    assert "the network not: it needs example=" in str(report)


def test_another_seed_draws_other_numbers_and_the_same_seed_the_same():
    network = seasoned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    scales = [fold(network, inplace=False, seed=seed).folded[0].scale for seed in (0, 0, 1)]
    assert scales[0] == scales[1] != scales[2]
