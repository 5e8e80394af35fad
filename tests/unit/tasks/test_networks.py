import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from mednorm.errors import ConfigError
from mednorm.layers import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MovingBatchNorm,
    NoNorm,
    RangeBatchNorm,
)
from mednorm.tasks.dropout import NORM_LAYERS
from mednorm.tasks.networks import NETWORKS, NORMS, Shape, build_network, find_network

LUNG = Shape(1, (28, 28), 2)
EVERY = pytest.mark.parametrize("name", list(NETWORKS))
KIND_OF_LAYER = {"none": NoNorm, "batch": BatchNorm, "group": nn.GroupNorm, "instance": _InstanceNorm}
KIND_OF_LAYER["layer"] = nn.GroupNorm
KIND_OF_LAYER |= {"renorm": BatchRenorm, "ghost": GhostBatchNorm, "moving": MovingBatchNorm}
KIND_OF_LAYER |= {"range": RangeBatchNorm, "domain": DomainBatchNorm, "frozen": FrozenBatchNorm}
SITES = ("Basel", "Lund")
TRAINED = ["none", "batch", "domain", "group", "instance", "layer"]  # the others differ in their layer alone
# Counted by hand: the norms of each block, times the blocks.
NORMS_IN = {
    "article_cnn": 2,
    "article_cnn_deep": 2 * 5,
    "densenet121": 1 + 2 * (6 + 12 + 24 + 16) + 3 + 1,  # first, dense layers, transitions, last
    "densenet169": 1 + 2 * (6 + 12 + 32 + 32) + 3 + 1,
    "resnet18": 1 + 2 * (2 + 2 + 2 + 2) + 3,  # first, blocks, shortcuts
    "resnet34": 1 + 2 * (3 + 4 + 6 + 3) + 3,
    "basicunet": 9 * 2,
    "basicunet_deep": 9 * 4,
    "unet": 6,
    "unet_deep": 6 * 3,
    "segresnet": 2 * (1 + 2 + 2 + 4 + 3) + 1,  # blocks down and up, last
    "segresnet_deep": 2 * (2 + 4 + 4 + 8 + 3) + 1,
}


def smallest_shape(name, dims=2):
    network = NETWORKS[name]
    thin = network.smallest if network.thinnest is None else network.thinnest
    return Shape(1, (network.smallest, *([thin] * (dims - 1))), 3, SITES)


def build(name, norm, shape=None, **options):
    return build_network(name, shape or smallest_shape(name), norm, kind=NETWORKS[name].kind, **options)


def without_memory(name, norm, dims=2):
    """The network's structure alone: quick, and large ones take no memory."""
    with torch.device("meta"):
        return build(name, norm, smallest_shape(name, dims))


def norms_of(network):
    return {place: module for place, module in network.named_modules() if isinstance(module, NORM_LAYERS)}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# --- the article's network --------------------------------------------------------------------------------------------


def test_the_article_network_has_the_layers_of_the_article_in_their_order():
    network = build("article_cnn", "batch", LUNG)
    kinds = [type(layer) for layer in network]
    half = [nn.Conv2d, nn.ReLU, BatchNorm]
    assert kinds == [*half, *half, nn.MaxPool2d, nn.Flatten, nn.Linear]
    first, second = network.conv1, network.conv2
    assert (first.in_channels, first.out_channels, first.kernel_size, first.padding) == (1, 32, (3, 3), (0, 0))
    assert (second.in_channels, second.out_channels, second.kernel_size, second.stride) == (32, 64, (3, 3), (1, 1))
    assert network.pool.kernel_size == 2


def test_the_article_network_has_the_number_of_weights_counted_by_hand():
    # 28 → 26 → 24 → 12 pixels a side.
    plain = (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (12 * 12 * 64 + 1) * 2
    assert plain == 37250
    assert parameters(build("article_cnn", "none", LUNG)) == plain
    assert parameters(build("article_cnn", "batch", LUNG)) == plain + 2 * 32 + 2 * 64


def test_the_article_network_counts_pixels_of_images_that_are_not_square():
    network = build("article_cnn", "none", Shape(3, (9, 12), 4))
    assert network.dense.in_features == 64 * 2 * 4
    assert network.conv1.in_channels == 3
    assert network(torch.randn(5, 3, 9, 12)).shape == (5, 4)


def test_the_deep_article_network_repeats_each_convolution_four_times_at_its_width_and_size():
    network = build("article_cnn_deep", "batch", LUNG)
    stage = [nn.Conv2d, nn.ReLU, BatchNorm] * 5
    assert [type(layer) for layer in network] == [*stage, *stage, nn.MaxPool2d, nn.Flatten, nn.Linear]
    names = [name for name, layer in network.named_children() if isinstance(layer, nn.Conv2d)]
    assert names == [f"conv{stage}{part}" for stage in "12" for part in ("", "_2", "_3", "_4", "_5")]
    plain = 37250 + 4 * (3 * 3 * 32 + 1) * 32 + 4 * (3 * 3 * 64 + 1) * 64  # the dense layer is no larger
    assert parameters(build("article_cnn_deep", "none", LUNG)) == plain


# --- every network with every norm ------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("norm", list(NORMS))
def test_every_norm_layer_is_of_the_norm_asked_for(name, norm):
    for dims in NETWORKS[name].dims:
        found = norms_of(without_memory(name, norm, dims)).values()
        assert len(found) == NORMS_IN[name]
        assert all(isinstance(layer, KIND_OF_LAYER[norm]) for layer in found)
        assert norm not in ("batch", "none") or {type(layer) for layer in found} == {KIND_OF_LAYER[norm]}


@EVERY
def test_the_norms_stand_in_the_same_places_and_all_learn_a_shift(name):
    built = {norm: norms_of(without_memory(name, norm)) for norm in NORMS}
    for norm, layers in built.items():
        assert list(layers) == list(built["batch"])
        learned = {frozenset(key for key, _ in layer.named_parameters()) for layer in layers.values()}
        none = {"bias"} if NETWORKS[name].shifts else set()
        assert learned == {frozenset(none if norm == "none" else {"weight", "bias"})}


@EVERY
def test_a_network_keeps_the_shift_without_normalization_where_its_convolutions_have_none(name):
    network = without_memory(name, "none")
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    if NETWORKS[name].shifts:
        assert all(module.bias is None for module in convolutions if module.out_channels > 3)
    else:
        assert all(module.bias is not None for module in convolutions)


def test_normalization_by_site_knows_the_sites_of_the_images():
    assert {layer.domains for layer in norms_of(without_memory("unet", "domain")).values()} == {SITES}


def test_normalization_by_site_is_refused_where_no_image_says_its_site():
    with pytest.raises(ConfigError, match="expected images that say which site they are from, for 'domain', got none"):
        build("unet", "domain", Shape(1, (16, 16), 3))


def test_group_normalization_has_eight_groups_and_layer_normalization_one():
    for norm, groups in (("group", 8), ("layer", 1)):
        assert {layer.num_groups for layer in norms_of(without_memory("unet", norm)).values()} == {groups}


def test_layer_normalization_takes_its_statistics_over_channels_and_space():
    layer = build("article_cnn", "layer").norm1
    images = torch.randn(2, 32, 5, 4, dtype=torch.float64) * 7 + 3
    out = layer.double()(images)
    assert torch.allclose(out.mean((1, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(out.var((1, 2, 3), correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-4)
    assert not torch.allclose(out.mean((2, 3)), torch.zeros(2, 32, dtype=torch.float64), atol=1e-2)


@EVERY
def test_one_seed_gives_every_arm_the_same_initial_weights(name):
    def initial(norm, **options):
        torch.manual_seed(3)
        network = build(name, norm, **options)
        kinds = (_ConvNd, nn.Linear)
        weights = [p.detach() for m in network.modules() if isinstance(m, kinds) for p in m.parameters()]
        return weights, torch.get_rng_state()

    reference, state = initial("none")
    assert len(reference) > 2
    dropout = [{"dropout": 0.25, "placement": placement} for placement in ("every", "before", "last")]
    for norm, options in [(norm, {}) for norm in (NORMS if name == "unet" else TRAINED)] + [
        ("batch", each) for each in dropout
    ]:
        others, after = initial(norm, **options)
        assert len(others) == len(reference)
        assert all(torch.equal(a, b) for a, b in zip(reference, others, strict=True))
        assert torch.equal(state, after)


@EVERY
@pytest.mark.parametrize("norm", TRAINED)
def test_every_weight_gets_a_gradient_on_the_smallest_images_and_a_step_moves_it(name, norm):
    torch.manual_seed(0)
    shape = smallest_shape(name)
    network = build(name, norm, shape)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(3, 1, *shape.size)).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    optimizer.step()
    still = [
        key
        for (key, p), old in zip(network.named_parameters(), before, strict=True)
        if key.endswith("weight") and torch.equal(p, old)
    ]
    assert (without, still) == ([], [])


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if 3 in network.dims])
def test_thin_volumes_give_a_finite_logit_for_each_class_and_voxel(name):
    shape = smallest_shape(name, dims=3)
    network = build(name, "instance", shape)
    with torch.no_grad():
        logits = network(torch.randn(2, 1, *shape.size))
    assert logits.shape == ((2, 3) if NETWORKS[name].kind == "classification" else (2, 3, *shape.size))
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


# In place on what a layer that does nothing hands through, MONAI's activations would overwrite the skip connection.
@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.shifts])
def test_without_normalization_skip_connections_are_not_overwritten_by_activations(name):
    torch.manual_seed(0)
    network = build(name, "none").eval()
    images = torch.randn(2, 1, *smallest_shape(name).size)
    with torch.no_grad():
        logits = network(images)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        torch.testing.assert_close(network(images), logits)


def test_the_deeper_variants_are_deeper_and_of_the_same_kind():
    def depth(name):
        return sum(isinstance(module, _ConvNd) for module in without_memory(name, "none").modules())

    pairs = [(network.name, network.deeper) for network in NETWORKS.values() if network.deeper]
    assert len(pairs) == len(NETWORKS) / 2
    for name, deeper in pairs:
        assert depth(deeper) > depth(name)
        assert NETWORKS[deeper].kind == NETWORKS[name].kind
        assert NETWORKS[deeper].dims == NETWORKS[name].dims


@pytest.mark.parametrize("name", ["basicunet", "unet"])
def test_a_deeper_unet_runs_the_added_convolutions_each_at_the_width_it_extends(name):
    network = build(f"{name}_deep", "batch")
    ran = []
    for module in network.modules():
        if isinstance(module, _ConvNd):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    network(torch.randn(2, 1, *smallest_shape(name).size))
    assert len(ran) == len({id(module) for module in ran}) == {"basicunet": 23 + 2 * 9, "unet": 7 + 2 * 6}[name]
    added = [module for key, module in network.named_modules() if key.endswith(("conv_3.conv", "more_2.conv"))]
    assert len(added) == {"basicunet": 9, "unet": 6}[name]
    assert all(module.in_channels == module.out_channels and module.stride[0] == 1 for module in added)


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_of_the_unet_follows_each_norm():
    network = build("unet", "batch", dropout=0.4, placement="every")
    found = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    assert [module.p for module in found] == [0.4] * 6
    adn = [module for module in network.modules() if "A" in module._modules]
    assert [[type(layer) for layer in module.N] for module in adn] == [[BatchNorm, nn.Dropout]] * 6


def test_dropout_of_the_article_network_can_stand_after_the_last_norm_alone():
    network = build("article_cnn", "batch", LUNG, dropout=0.4, placement="last")
    assert [type(layer) for layer in network.norm2] == [BatchNorm, nn.Dropout]
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.4]


@EVERY
def test_without_dropout_nothing_is_dropped(name):
    network = without_memory(name, "batch")
    assert not [m for m in network.modules() if isinstance(m, nn.Dropout) and m.p > 0]


@pytest.mark.parametrize("placement", ["every", "before", "last"])
@pytest.mark.parametrize("name", ["article_cnn", "resnet18", "basicunet", "segresnet"])
def test_dropout_acts_in_training_and_not_in_evaluation(name, placement):
    network = build(name, "none", dropout=0.5, placement=placement)
    images = torch.randn(2, 1, *smallest_shape(name).size)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_dropout_without_a_placement_is_an_error_that_names_the_rate():
    with pytest.raises(ConfigError, match=r"unet: expected a placement for dropout=0\.3, got none"):
        build("unet", "batch", dropout=0.3)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(28,), (5, 28), (28, 28, 28)])
def test_sizes_the_article_network_cannot_take_are_named(size):
    with pytest.raises(
        ConfigError, match=rf"article_cnn: expected 2-D .* got size {str(size)[:-1]}".replace("(", r"\(")
    ):
        build("article_cnn", "none", Shape(1, size, 2))


def test_a_size_the_unet_cannot_halve_three_times_is_named():
    with pytest.raises(ConfigError, match=r"unet: .*multiple of 8, got \(32, 36\)"):
        build("unet", "none", Shape(1, (32, 36), 3))


def test_a_size_too_small_for_one_side_is_named_with_what_each_side_needs():
    with pytest.raises(
        ConfigError, match=r"densenet121: expected 2-D or 3-D .*61 on the longest side and 29 .*\(28, 64\)"
    ):
        build("densenet121", "batch", Shape(1, (28, 64), 2))


@EVERY
def test_the_smallest_image_is_the_smallest_that_works(name):
    network = NETWORKS[name]
    below = network.smallest - network.multiple
    with pytest.raises(ConfigError, match=rf"{name}: .*at least {network.smallest}.* got size \({below}, {below}\)"):
        network.check((below, below))
    with pytest.raises((RuntimeError, ValueError, UserWarning)):  # the layer with no, or a single, value left
        network.build(Shape(1, (below, below), 2), NORMS["instance"])(torch.randn(2, 1, below, below))


def test_a_misspelled_network_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match=r"got 'resnet81'\. Did you mean 'resnet18'\?"):
        find_network("resnet81", "classification")


def test_a_network_of_the_other_kind_is_refused_with_those_of_the_right_one():
    with pytest.raises(ConfigError, match=r"one of basicunet, .*for segmentation, got 'resnet18', .*classification"):
        find_network("resnet18", "segmentation")


def test_a_misspelled_norm_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match=r"norm: .*got 'bach'\. Did you mean 'batch'\?"):
        build("unet", "bach")


def test_the_unet_gives_one_logit_for_each_class_and_pixel_in_three_dimensions():
    network = build("unet", "batch", Shape(2, (16, 8, 24), 4))
    assert network(torch.randn(2, 2, 16, 8, 24)).shape == (2, 4, 16, 8, 24)


def test_every_network_says_for_people_how_it_is_built():
    for name, network in NETWORKS.items():
        assert network.name == name
        assert "monai.networks.nets." in network.text or name.startswith("article_cnn")
        assert len({other.text for other in NETWORKS.values()}) == len(NETWORKS)
