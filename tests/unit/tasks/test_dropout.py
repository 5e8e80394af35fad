import copy

import pytest
import torch
from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers import BatchNorm, NoNorm
from mednorm.tasks.dropout import place_dropout
from mednorm.tasks.networks import NETWORKS, NORMS, Shape, build_network

PLACEMENTS = pytest.mark.parametrize("placement", ["every", "before", "last"])
IMAGES = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))


class OutOfOrder(nn.Module):
    """Its norms are registered in another order than the forward pass comes to them."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.last(self.first(self.conv(x)).relu())


class Fails(OutOfOrder):
    def forward(self, x):
        self.first(self.conv(x))
        torch.rand(1)
        raise RuntimeError("on purpose")


def with_every_type_of_norm():
    norms = [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(10), NoNorm(4), BatchNorm(4)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norms)


def everything_of(network):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    hooks = [len(module._forward_hooks) for module in network.modules()]
    return state, modes, hooks, torch.get_rng_state()


def assert_the_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize(("placement", "order"), [("every", [0, 1]), ("before", [1, 0])])
def test_dropout_stands_on_the_side_of_every_kind_of_norm_that_was_asked_for(placement, order):
    network = with_every_type_of_norm()
    norms = list(network)[1:]
    place_dropout(network, IMAGES, 0.3, placement)
    assert isinstance(network[0], nn.Conv2d)
    for norm, pair in zip(norms, list(network)[1:], strict=True):
        assert list(pair._modules) == [["norm", "dropout"][index] for index in order]
        assert pair.norm is norm
        assert pair.dropout.p == 0.3


def test_the_last_norm_is_that_of_the_forward_pass_and_not_of_the_registration():
    network = OutOfOrder()
    place_dropout(network, IMAGES, 0.3, "last")
    assert list(network.last._modules) == ["norm", "dropout"]
    assert [type(module) for module in (network.first, network.unused)] == [nn.BatchNorm2d] * 2


def test_a_norm_that_comes_twice_counts_when_it_comes_last():
    first, second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    network = nn.Sequential(first, second, nn.ReLU(), first)
    place_dropout(network, IMAGES, 0.3, "last")
    assert network[1] is second
    assert network[0] is network[3]
    assert network[0].norm is first


@PLACEMENTS
@pytest.mark.parametrize("training", [True, False])
def test_weights_running_statistics_modes_hooks_and_random_state_stay_as_they_were(placement, training):
    network = build_network("resnet18", Shape(1, (32, 32), 2), "batch", kind="classification").train(training)
    network.layer2.eval()  # a mode of its own
    before = everything_of(network)
    modes = {id(module): module.training for module in network.modules()}
    place_dropout(network, torch.randn(2, 1, 32, 32), 0.25, placement)
    state = {key.replace(".norm.", "."): value for key, value in network.state_dict().items()}
    assert state.keys() == before[0].keys()
    assert all(torch.equal(state[key], before[0][key]) for key in state)
    assert all(module.training == modes[id(module)] for module in network.modules() if id(module) in modes)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_random_state_is_not_moved_by_a_network_that_draws_in_evaluation():
    class Draws(OutOfOrder):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    network, before = Draws(), torch.get_rng_state()
    place_dropout(network, IMAGES, 0.3, "last")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forward_pass_that_fails_leaves_the_network_as_it_was():
    network = Fails().train()
    network.first.eval()
    before = everything_of(network)
    with pytest.raises(RuntimeError, match="on purpose"):
        place_dropout(network, IMAGES, 0.3, "last")
    assert_the_same(before, everything_of(network))
    assert isinstance(network.last, nn.BatchNorm2d)


@PLACEMENTS
def test_evaluation_gives_what_it_gave_and_training_drops(placement):
    plain = OutOfOrder()
    network = copy.deepcopy(plain)
    place_dropout(network, IMAGES, 0.5, placement)
    assert torch.equal(network.eval()(IMAGES), plain.eval()(IMAGES))
    network.train()
    assert not torch.equal(network(IMAGES), network(IMAGES))


def test_dropout_after_a_norm_drops_its_share_and_scales_the_rest():
    network = nn.Sequential(NoNorm(1))
    place_dropout(network, IMAGES, 0.25, "every")
    torch.manual_seed(0)
    out = network(torch.ones(1, 1, 200, 200))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(out[out != 0], torch.full_like(out[out != 0], 1 / 0.75))


def test_behind_dropout_the_running_variance_is_that_of_training_and_not_of_evaluation():
    """Li et al. (2019): zeros and scaling widen what the norm sees in training, 1/(1 − rate) times at mean 0."""
    images = torch.randn(64, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    measured = {}
    for placement in ("before", "last"):
        network = nn.Sequential(nn.BatchNorm2d(1, momentum=1.0))
        place_dropout(network, images, 0.5, placement)
        network.train()(images)
        measured[placement] = network[0].norm.running_var.item()
    assert measured["last"] == pytest.approx(images.var().item(), rel=1e-4)
    assert measured["before"] == pytest.approx(images.var().item() / 0.5, rel=0.05)


@PLACEMENTS
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_places_are_the_same_for_every_norm(name, placement):
    size = (NETWORKS[name].smallest, NETWORKS[name].smallest)

    def places(norm):
        network = build_network(
            name, Shape(1, size, 2, ("A",)), norm, kind=NETWORKS[name].kind, dropout=0.25, placement=placement
        )
        found = [key for key, module in network.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
        weights = [key for key, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        keys = list(network.state_dict())
        return found, weights, keys

    built = {norm: places(norm) for norm in (list(NORMS) if name in ("unet", "article_cnn") else ["none", "group"])}
    for found, weights, _ in built.values():
        assert found == built["group"][0]
        assert weights == built["group"][1]
    if "layer" in built:
        assert built["group"][2] == built["instance"][2] == built["layer"][2]
        assert set(built["group"][2]) < set(built["batch"][2])
    assert len(built["none"][0]) == 1 if placement == "last" else len(built["none"][0]) > 1


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("article_cnn", "norm2"),
        ("article_cnn_deep", "norm2_5"),
        ("densenet121", "features.norm5"),
        ("resnet18", "layer4.1.bn2"),
        ("basicunet", "upcat_1.convs.conv_1.adn.N"),
        ("basicunet_deep", "upcat_1.convs.conv_3.adn.N"),
        ("unet", "model.1.submodule.2.adn.N"),
        ("unet_deep", "model.1.submodule.2.more_2.adn.N"),
        ("segresnet", "conv_final.0"),
    ],
)
def test_the_last_norm_of_each_network_is_the_one_nearest_its_output(name, last):
    size = (NETWORKS[name].smallest,) * 2
    network = build_network(name, Shape(1, size, 2), "batch", kind=NETWORKS[name].kind, dropout=0.25, placement="last")
    assert isinstance(network.get_submodule(last).norm, BatchNorm)


@PLACEMENTS
def test_a_network_without_norm_layers_is_an_error_that_names_it(placement):
    with pytest.raises(ConfigError, match=r"expected a network with norm layers.* got Sequential with none"):
        place_dropout(nn.Sequential(nn.Conv2d(1, 4, 3)), IMAGES, 0.3, placement)
    with pytest.raises(ConfigError, match="got BatchNorm2d with none inside"):
        place_dropout(nn.BatchNorm2d(1), IMAGES, 0.3, placement)


def test_a_forward_pass_that_comes_to_no_norm_is_an_error_that_counts_them():
    class Unused(OutOfOrder):
        def forward(self, x):
            return self.conv(x)

    with pytest.raises(ConfigError, match="one of the 3 norm layers of Unused, got none"):
        place_dropout(Unused(), IMAGES, 0.3, "last")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, float("nan")])
def test_a_rate_out_of_range_is_named(rate):
    with pytest.raises(ConfigError, match=rf"rate .* got {rate}"):
        place_dropout(OutOfOrder(), IMAGES, rate, "every")


def test_a_placement_there_is_not_is_named():
    with pytest.raises(ConfigError, match="every, before, last, got 'after'"):
        place_dropout(OutOfOrder(), IMAGES, 0.3, "after")
