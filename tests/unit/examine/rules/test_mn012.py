"""MN012, ε or half precision beside the variance."""

import pytest
import torch
from torch import nn

from mednorm.examine.rules.mn012_epsilon import RULE
from tests.unit.examine.rules.made import findings, found_in, layer_of, run, said

EPS = 1e-5


@pytest.fixture
def images():
    torch.manual_seed(0)
    values = torch.randn(16, 8, 8, 8)
    return (values - values.mean((0, 2, 3), keepdim=True)) / values.std((0, 2, 3), correction=0, keepdim=True)


@pytest.mark.parametrize(("ratio", "severity"), [(0.05, None), (0.2, "warning"), (20, "warning"), (30, "error")])
def test_epsilon_over_the_variance_decides_how_grave_it_is(images, ratio, severity):
    found = findings(RULE, layer_of(nn.BatchNorm2d(8), images * (EPS / ratio) ** 0.5))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert [finding.evidence[0].value for finding in found] == ([pytest.approx(ratio, rel=1e-5)] if severity else [])


def test_in_a_layer_that_learned_with_it_epsilon_is_no_more_than_a_warning(images):
    first, deep = (
        layer_of(nn.BatchNorm2d(8), x, name=name) for x, name in ((images, "first"), (images * 1e-4, "deep"))
    )
    assert said(RULE, first, deep) == [("deep", "warning")]


def test_what_wrong_statistics_before_a_layer_make_of_its_inputs_is_no_finding(images):
    wrong = nn.BatchNorm2d(8)
    wrong.running_var.fill_(1e10)
    before = layer_of(wrong, images, name="before")
    behind = layer_of(nn.BatchNorm2d(8), 1e-5 * images, name="behind")
    assert said(RULE, before, behind) == []
    assert said(RULE, layer_of(nn.BatchNorm2d(8), images), behind) == [("behind", "warning")]


def test_behind_wrong_statistics_the_running_variance_tells(images):
    wrong, faint = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    wrong.running_mean.fill_(1.0)
    faint.running_var.fill_(EPS)
    assert said(RULE, layer_of(wrong, images), layer_of(faint, images, name="faint")) == [("faint", "warning")]


@pytest.mark.parametrize(("faint", "severity"), [(1, None), (3, "warning"), (5, "error")])
def test_a_few_faint_channels_are_no_finding(images, faint, severity):
    images[:, :faint] *= 1e-4
    assert said(RULE, layer_of(nn.BatchNorm2d(8), images)) == ([("norm", severity)] if severity else [])


def test_constant_channels_are_another_rules(images):
    images[:, :6] = 3.0
    assert said(RULE, layer_of(nn.BatchNorm2d(8), images)) == []


def test_without_images_the_running_variance_tells():
    layer = nn.BatchNorm2d(8)
    layer.running_var.fill_(EPS)
    assert said(RULE, layer_of(layer)) == [("norm", "warning")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_step_of_half_precision_over_the_deviation_decides(images, dtype):
    step = torch.finfo(dtype).eps  # from 1 to 2; around 96 it is 64 times as much
    for steps, severity in ((0.3, None), (1.2, "warning"), (3.0, "error")):
        values = (96 + images * 64 * step / steps).to(dtype)
        assert said(RULE, layer_of(nn.BatchNorm2d(8), values)) == ([("norm", severity)] if severity else [])


def test_the_same_values_are_fine_in_full_precision(images):
    assert said(RULE, layer_of(nn.BatchNorm2d(8), 96 + 0.05 * images)) == []


def test_values_near_the_end_of_float16_are_a_warning(images):
    assert said(RULE, layer_of(nn.BatchNorm2d(8), (images * 3000).clamp(-16000, 16000).half())) == []
    (finding,) = findings(RULE, layer_of(nn.BatchNorm2d(8), (images * 10000).half()))
    assert (finding.severity, finding.evidence[0].name) == ("warning", "largest value")


def test_the_remedy_for_epsilon_lets_the_layer_normalize(images):
    network, faint = nn.Sequential(nn.BatchNorm2d(8)), images * 1e-3
    (finding,) = found_in(RULE, network, faint)
    run(finding.remedy, model=network, loader=[faint])
    assert found_in(RULE, network, faint) == []
    assert float(network(faint).detach().std()) == pytest.approx(1, rel=0.01)


def test_the_remedy_for_half_precision_is_full_precision(images):
    network, values = nn.Sequential(nn.BatchNorm2d(8)).half(), (96 + 0.02 * images).half()
    (finding,) = found_in(RULE, network, values)
    run(finding.remedy, model=network, loader=[values.float()])
    assert found_in(RULE, network, values.float()) == []
