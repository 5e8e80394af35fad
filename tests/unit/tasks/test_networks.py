import numpy as np
import pytest
import torch
from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers import BatchNorm
from mednorm.tasks.networks import (
    NORMS,
    Shape,
    StandardizeByTraining,
    StandardizeEach,
    article_cnn,
    fit_input_scaling,
    unet,
)

LUNG = Shape(1, (28, 28), 2)
BRAIN = Shape(1, (32, 40), 3)
BUILT = pytest.mark.parametrize(("build", "shape"), [(article_cnn, LUNG), (unet, BRAIN)])
NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_article_network_has_the_layers_of_the_article_in_their_order():
    network = article_cnn(LUNG, "batch", 0.0)
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
    assert parameters(article_cnn(LUNG, "none", 0.0)) == plain
    assert parameters(article_cnn(LUNG, "batch", 0.0)) == plain + 2 * 32 + 2 * 64


def test_the_article_network_counts_pixels_of_images_that_are_not_square():
    network = article_cnn(Shape(3, (9, 12), 4), "none", 0.0)
    assert network.dense.in_features == 64 * 2 * 4
    assert network.conv1.in_channels == 3
    assert network(torch.randn(5, 3, 9, 12)).shape == (5, 4)


@BUILT
def test_no_normalization_means_no_normalization(build, shape):
    assert not [module for module in build(shape, "none", 0.0).modules() if isinstance(module, NORMALIZATION)]


@BUILT
def test_batch_normalization_is_ours_and_all_of_it(build, shape):
    found = [type(m) for m in build(shape, "batch", 0.0).modules() if isinstance(m, NORMALIZATION)]
    assert found == [BatchNorm] * (2 if build is article_cnn else 6)


@BUILT
@pytest.mark.parametrize(("norm", "kind"), [("group", nn.GroupNorm), ("instance", nn.InstanceNorm2d)])
def test_the_other_norms_stand_where_batch_normalization_does(build, shape, norm, kind):
    places = {}
    for name in ("batch", norm):
        network = build(shape, name, 0.0)
        places[name] = [place for place, module in network.named_modules() if isinstance(module, NORMALIZATION)]
    assert places[norm] == places["batch"]
    layers = [module for module in network.modules() if isinstance(module, NORMALIZATION)]
    assert {type(layer) for layer in layers} == {kind}
    assert all(layer.affine for layer in layers)


def test_group_normalization_has_eight_groups():
    layers = [module for module in unet(BRAIN, "group", 0.0).modules() if isinstance(module, nn.GroupNorm)]
    assert {layer.num_groups for layer in layers} == {8}


@BUILT
def test_one_seed_gives_every_arm_the_same_initial_weights(build, shape):
    def initial(norm, dropout):
        torch.manual_seed(3)
        network = build(shape, norm, dropout)
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        return [p for m in network.modules() if isinstance(m, kinds) for p in m.parameters()]

    reference = initial("none", 0.0)
    assert reference
    for norm in NORMS:
        for dropout in (0.0, 0.25):
            others = initial(norm, dropout)
            assert len(others) == len(reference)
            assert all(torch.equal(a, b) for a, b in zip(reference, others, strict=True))


def test_dropout_of_the_article_network_stands_once_before_the_dense_layer():
    network = article_cnn(LUNG, "batch", 0.4)
    names = [name for name, _ in network.named_children()]
    assert names[-3:] == ["flatten", "dropout", "dense"]
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.4]


def test_dropout_of_the_unet_follows_each_norm():
    network = unet(BRAIN, "batch", 0.4)
    ways = [list(m._modules) for m in network.modules() if "D" in getattr(m, "_modules", {})]
    assert ways == [["N", "D", "A"]] * 6
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.4}


@BUILT
def test_without_dropout_nothing_is_dropped(build, shape):
    assert not [m for m in build(shape, "batch", 0.0).modules() if isinstance(m, nn.Dropout) and m.p > 0]


@BUILT
def test_dropout_acts_in_training_and_not_in_evaluation(build, shape):
    network, images = build(shape, "none", 0.5), torch.randn(2, 1, *shape.size)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@BUILT
def test_every_weight_of_every_norm_arm_gets_a_gradient(build, shape):
    for norm in NORMS:
        network = build(shape, norm, 0.0)
        network(torch.randn(4, 1, *shape.size)).square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert without == []


@pytest.mark.parametrize("size", [(28,), (5, 28), (28, 28, 28)])
def test_sizes_the_article_network_cannot_take_are_named(size):
    with pytest.raises(
        ConfigError, match=rf"article_cnn: expected 2-D .* got size {str(size)[:-1]}".replace("(", r"\(")
    ):
        article_cnn(Shape(1, size, 2), "none", 0.0)


def test_a_size_the_unet_cannot_halve_three_times_is_named():
    with pytest.raises(ConfigError, match=r"unet: .*multiple of 8, got \(32, 36\)"):
        unet(Shape(1, (32, 36), 3), "none", 0.0)


def test_the_unet_gives_one_logit_for_each_class_and_pixel_in_three_dimensions():
    assert unet(Shape(2, (16, 8, 24), 4), "batch", 0.0)(torch.randn(2, 2, 16, 8, 24)).shape == (2, 4, 16, 8, 24)


def test_each_channel_of_each_image_is_standardized_by_itself():
    images = torch.randn(4, 2, 9, 7) * torch.tensor([0.1, 5.0, 90.0, 700.0]).view(4, 1, 1, 1) + 300
    scaled = StandardizeEach()(images).numpy().astype(np.float64)
    np.testing.assert_allclose(scaled.mean((2, 3)), 0, atol=2e-3)  # float32 around 300
    np.testing.assert_allclose(scaled.std((2, 3)), 1, rtol=1e-4)
    torch.testing.assert_close(StandardizeEach()(images[2:3])[0], StandardizeEach()(images)[2])


def test_a_constant_image_becomes_zero_and_not_nan():
    assert torch.equal(StandardizeEach()(torch.full((1, 1, 8, 8), 40.0)), torch.zeros(1, 1, 8, 8))


def test_standardizing_by_training_images_uses_their_mean_and_std_for_all_others():
    train, other = torch.rand(50, 3, 6, 6) * 255, torch.rand(2, 3, 6, 6) * 255
    network = nn.Sequential(StandardizeByTraining(3), nn.Conv2d(3, 4, 3))
    fit_input_scaling(network, train)
    values = train.double().numpy()
    expected = (other.numpy() - values.mean((0, 2, 3))[:, None, None]) / values.std((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(network[0](other).numpy(), expected, rtol=1e-4, atol=1e-5)
    network.eval()
    np.testing.assert_allclose(network[0](other).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_scaling_by_training_images_travels_with_the_weights():
    fitted, fresh = StandardizeByTraining(1), StandardizeByTraining(1)
    fitted.fit(torch.rand(9, 1, 4, 4) * 60 + 20)
    fresh.load_state_dict(fitted.state_dict())
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(fresh(images), fitted(images))
    assert not torch.equal(fresh(images), StandardizeByTraining(1)(images))
