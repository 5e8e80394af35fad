"""Looking at a network under a guard leaves every byte of it as it was, whatever happens while one looks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mednorm import BatchNorm
from mednorm.guards import batch_statistics, evaluation_mode, norms_with_running_statistics

LAYERS = pytest.mark.parametrize("layer", [nn.BatchNorm2d, BatchNorm], ids=["torch", "mednorm"])


def trained(layer):
    """A network in mixed modes whose running statistics have moved, and that has a normalization without any."""
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        layer(3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Sequential(layer(3, track_running_stats=False), nn.InstanceNorm2d(3, track_running_stats=True)),
    )
    for _ in range(3):
        network(5 + 2 * torch.randn(4, 2, 8, 8))
    network[1].eval()
    return network


def snapshot(network):
    """Every buffer and parameter by its bytes and identity, every mode, every hook, and what our layers remember."""
    tensors = {
        name: (value.data_ptr(), value.numpy().tobytes()) for name, value in network.state_dict(keep_vars=False).items()
    }
    modules = {
        name: (module.training, id(getattr(module, "batch_moments", None)), len(module._forward_hooks))
        for name, module in network.named_modules()
    }
    return tensors, modules, list(network.state_dict()), torch.is_grad_enabled()


@LAYERS
@pytest.mark.parametrize("guards", [(evaluation_mode,), (batch_statistics,), (evaluation_mode, batch_statistics)])
def test_a_network_that_was_looked_at_is_the_same_in_every_byte(layer, guards):
    network = trained(layer).eval() if guards == (batch_statistics,) else trained(layer)
    before = snapshot(network)
    _look(network, guards)
    assert snapshot(network) == before


@LAYERS
def test_an_exception_while_one_looks_leaves_every_byte_and_mode_as_it_was(layer):
    network = trained(layer)
    before = snapshot(network)
    with pytest.raises(ZeroDivisionError):
        _look(network, (evaluation_mode, batch_statistics), then=lambda: 1 / 0)
    assert snapshot(network) == before


def _look(network, guards, then=lambda: None):
    if not guards:
        network(torch.randn(4, 2, 8, 8) - 7)
        then()
        return
    with guards[0](network):
        _look(network, guards[1:], then)


def test_every_module_is_in_evaluation_mode_within_and_gets_its_own_mode_back():
    network = trained(nn.BatchNorm2d)
    with evaluation_mode(network):
        assert not any(part.training for part in network.modules())
        assert not torch.is_grad_enabled()
    assert [network[1].training, network[3].training] == [False, True]
    assert torch.is_grad_enabled()


@LAYERS
def test_the_moments_our_layer_remembers_are_those_from_before(layer):
    network = trained(layer)
    remembered = getattr(network[1], "batch_moments", None)
    kept = copy.deepcopy(remembered)
    with evaluation_mode(network), batch_statistics(network):
        network(torch.randn(4, 2, 8, 8) - 7)
    assert getattr(network[1], "batch_moments", None) is remembered
    if kept is not None:
        assert torch.equal(remembered.mean, kept.mean)


@LAYERS
def test_with_batch_statistics_the_output_is_that_of_a_normalization_by_hand(layer):
    norm = layer(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 3.0]))
        norm.running_mean.fill_(40)
        norm.running_var.fill_(9)
    x = 5 + 2 * torch.randn(6, 3, 4, 5)
    with evaluation_mode(norm), batch_statistics(norm):
        found = norm(x)
    values = x.double().numpy()
    mean, var = (moment(values, (0, 2, 3)).reshape(1, 3, 1, 1) for moment in (np.mean, np.var))
    weight, bias = (p.detach().double().numpy().reshape(1, 3, 1, 1) for p in (norm.weight, norm.bias))
    np.testing.assert_allclose(found, (values - mean) / np.sqrt(var + 1e-5) * weight + bias, rtol=1e-4, atol=1e-5)


def test_dropout_stays_off_so_that_two_looks_with_batch_statistics_agree():
    network, images = trained(nn.BatchNorm2d), torch.randn(4, 2, 8, 8)
    with evaluation_mode(network), batch_statistics(network):
        assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm])
def test_every_kind_of_batch_normalization_is_found_by_its_type(kind):
    inner = kind(4)
    assert norms_with_running_statistics(nn.Sequential(nn.ReLU(), nn.Sequential(inner))) == [inner]


@pytest.mark.parametrize(
    "other",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True), nn.BatchNorm2d(4, track_running_stats=False)],
    ids=["group", "instance", "batch without"],
)
def test_a_norm_without_running_statistics_of_batches_is_not_found(other):
    assert norms_with_running_statistics(nn.Sequential(other)) == []
