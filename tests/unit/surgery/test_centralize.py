import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import mednorm
from mednorm import MovingBatchNorm, centralize
from mednorm.errors import ConfigError
from tests.unit.surgery.networks import Network, bytes_of

CONVOLUTIONS = {
    "Conv1d": (nn.Conv1d(4, 6, 3), 1),
    "Conv2d": (nn.Conv2d(4, 6, 3), 2),
    "Conv3d": (nn.Conv3d(4, 6, 3), 3),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), 2),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), 2),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3), 1),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3), 2),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 6, 3), 3),
    "ConvTranspose2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), 2),
    "Linear": (nn.Linear(4, 6), 0),
}
EVERY = pytest.mark.parametrize("kind", list(CONVOLUTIONS))


def chain(kind, bias=True):
    """A copy of the layer, then the norm that does without a mean."""
    layer = copy.deepcopy(CONVOLUTIONS[kind][0])
    if not bias:
        layer.bias = None
    channels = layer.out_features if kind == "Linear" else layer.out_channels
    return nn.Sequential(layer, MovingBatchNorm(channels, centering="weights"))


def images(kind, batch=3, size=6):
    return torch.randn(batch, 4, *[size] * CONVOLUTIONS[kind][1])


def means_by_hand(layer):
    """The mean of the weights of each output channel, gathered weight by weight."""
    weight = layer.weight.detach().double()
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return [row.mean().item() for row in weight]
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [
        torch.stack([weight[group * inputs + source, channel] for source in range(inputs)]).mean().item()
        for group in range(layer.groups)
        for channel in range(outputs)
    ]


@EVERY
def test_the_weights_of_each_output_channel_have_mean_zero_and_differ_by_it_alone(kind):
    network = chain(kind)
    before, bias = network[0].weight.detach().clone(), network[0].bias.detach().clone()
    by_hand = torch.tensor(means_by_hand(network[0]), dtype=torch.float32)
    assert by_hand.abs().max() > 1e-3
    assert centralize(network) == ("0",)
    assert means_by_hand(network[0]) == pytest.approx([0] * len(by_hand), abs=1e-7)
    taken = before - network[0].weight.detach()
    assert sorted(set(taken.flatten().round(decimals=4).tolist())) == sorted(set(by_hand.round(decimals=4).tolist()))
    assert torch.equal(network[0].bias, bias)


@EVERY
def test_a_constant_image_gives_zero_away_from_the_border(kind):
    network = chain(kind, bias=False)
    constant = torch.full_like(images(kind, batch=1, size=8), 7.0)
    inside = (..., *[slice(2, -2)] * CONVOLUTIONS[kind][1])
    assert network[0](constant)[inside].abs().max() > 0.1
    centralize(network)
    assert network[0](constant)[inside].abs().max() < 1e-5


@EVERY
def test_training_reaches_the_weights_and_leaves_them_centred(kind):
    network, x = chain(kind), images(kind)
    centralize(network)
    before = network[0].weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    target = torch.randn_like(network(x))
    for _ in range(5):
        optimizer.zero_grad()
        (network(x) - target).square().mean().backward()
        optimizer.step()
    assert (network[0].weight - before).abs().max() > 1e-3
    assert means_by_hand(network[0]) == pytest.approx([0] * len(means_by_hand(network[0])), abs=1e-6)


def test_the_gradient_of_the_stored_weights_has_no_part_along_the_mean():
    """It is the gradient through W − mean(W), whose own mean an output channel is zero."""
    network, x = chain("Conv2d"), images("Conv2d")
    centralize(network)
    (network(x) * torch.randn(3, 6, 4, 4)).sum().backward()
    gradient = network[0].parametrizations.weight.original.grad
    assert gradient.abs().max() > 1e-3
    assert gradient.mean((1, 2, 3)).abs().max() < 1e-6 * gradient.abs().max() + 1e-7


@EVERY
def test_removing_the_parametrization_bakes_the_centred_weights_in(kind):
    network, x = chain(kind), images(kind)
    keys = list(network.state_dict())
    centralize(network)
    network.eval()
    expected, weight = network(x), network[0].weight.detach().clone()
    assert "0.parametrizations.weight.original" in network.state_dict()
    parametrize.remove_parametrizations(network[0], "weight")
    assert sorted(network.state_dict()) == sorted(keys)
    assert torch.equal(network[0].weight, weight)
    assert torch.equal(network(x), expected)


def test_centring_twice_changes_nothing_and_says_the_same_names():
    network, x = chain("ConvTranspose2d"), images("ConvTranspose2d")
    names = centralize(network)
    keys, expected = list(network.state_dict()), network.eval()(x)
    assert centralize(network) == names == ("0",)
    assert len(network[0].parametrizations.weight) == 1
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), expected)


def test_a_layer_that_was_added_later_is_centred_by_a_second_call():
    network = nn.Sequential(*chain("Conv2d"))
    centralize(network)
    network.extend([nn.Conv2d(6, 4, 3), MovingBatchNorm(4, centering="weights")])
    assert centralize(network) == ("0", "2")
    assert [len(network[place].parametrizations.weight) for place in (0, 2)] == [1, 1]


def test_weights_with_another_parametrization_are_centred_after_it():
    network = chain("Conv2d")
    nn.utils.parametrizations.weight_norm(network[0])
    centralize(network)
    assert means_by_hand(network[0]) == pytest.approx([0] * 6, abs=1e-7)


def test_layers_before_other_norms_are_left_alone():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), MovingBatchNorm(4),
        nn.Conv2d(4, 4, 3), MovingBatchNorm(4, centering="weights"), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    before = {place: bytes_of(network[place].weight) for place in (0, 2, 6)}
    assert centralize(network) == ("4",)
    assert {place: bytes_of(network[place].weight) for place in (0, 2, 6)} == before


def test_a_network_without_such_a_norm_is_refused_with_the_call_that_makes_one():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), MovingBatchNorm(4))
    keys = list(network.state_dict())
    with pytest.raises(ConfigError, match=r"got none in Sequential\. Convert .* centering='weights'"):
        centralize(network)
    assert list(network.state_dict()) == keys


def test_a_norm_that_follows_no_layer_with_weights_is_named_with_the_reason():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), MovingBatchNorm(4, centering="weights"))
    with pytest.raises(ConfigError, match=r"got none in Sequential \(2: it takes its input from '1' \(ReLU\)\)"):
        centralize(network)


def test_a_network_that_cannot_be_traced_is_centred_by_an_example():
    layers = {"conv": nn.Conv2d(1, 4, 3), "norm": MovingBatchNorm(4, centering="weights")}

    def untraceable(network, x):
        return network.norm(network.conv(x if float(x.sum()) > -1e9 else -x))

    network = Network(untraceable, **layers)
    with pytest.raises(ConfigError, match=r"\(norm: no call of it was seen.*pass an example input"):
        centralize(network)
    assert centralize(network, (torch.randn(2, 1, 6, 6),)) == ("conv",)
    assert means_by_hand(network.conv) == pytest.approx([0] * 4, abs=1e-7)


def test_an_example_moves_no_statistics():
    network = chain("Conv2d")
    centralize(network, (images("Conv2d"),))
    assert network[1].num_batches_tracked.item() == 0
    assert torch.equal(network[1].running_var, torch.ones(6))


def test_a_layer_of_one_weight_an_output_channel_is_refused_and_no_other_is_changed():
    """Centred, its output would be its bias whatever the image."""
    one = (nn.Conv2d(6, 6, 1, groups=6), MovingBatchNorm(6, centering="weights"))
    network = nn.Sequential(*chain("Conv2d"), *one)
    keys = list(network.state_dict())
    with pytest.raises(ConfigError, match=r"expected several weights an output channel, got 1 in Conv2d at '2'"):
        centralize(network)
    assert list(network.state_dict()) == keys


def test_the_random_numbers_of_the_program_go_on_as_they_would():
    torch.manual_seed(3)
    expected = torch.rand(4)
    network = chain("Conv2d")
    torch.manual_seed(3)
    centralize(network)
    assert torch.equal(torch.rand(4), expected)


def test_the_dtype_of_the_weights_stays():
    network = chain("Conv2d").double()
    centralize(network)
    assert network[0].weight.dtype == torch.float64
    assert means_by_hand(network[0]) == pytest.approx([0] * 6, abs=1e-16)


def test_a_monai_network_converted_to_it_trains_with_all_its_weights_centred():
    from monai.networks.nets import BasicUNet

    network = BasicUNet(spatial_dims=2, features=(4, 4, 8, 8, 8, 4), norm="batch")
    assert len(mednorm.convert(network, "moving", centering="weights").changed) == 18
    names = centralize(network)
    assert len(names) == 18
    assert all(name.endswith("conv") for name in names)
    centred = [network.get_submodule(name) for name in names]
    others = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each not in centred]
    assert [layer.kernel_size for layer in others] == [(1, 1)]  # the last, which no norm follows
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    before = [layer.weight.detach().clone() for layer in centred]
    x = torch.randn(2, 1, 16, 16)
    for _ in range(2):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    for layer, old in zip(centred, before, strict=True):
        assert not torch.equal(layer.weight, old)
        assert max(map(abs, means_by_hand(layer))) < 1e-7
    trained = network.eval()(x)
    for layer in centred:
        parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(network(x), trained)
