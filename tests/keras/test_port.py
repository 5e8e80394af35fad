"""Weights and statistics between Keras and PyTorch, either way, on each backend."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import mednorm
from mednorm import BatchNorm, port
from mednorm.errors import ConfigError, DataError, ShapeError
from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer, article_cnn
from mednorm.tasks.networks import Shape, build_network
from tests.keras.backends import BACKEND, to_numpy
from tests.oracle.batch_norm import BatchNormOracle

TOLERANCE = 1e-5  # of float32 outputs around 1: some hundred roundings
IMAGES = np.random.default_rng(1).normal(size=(32, 28, 28, 1)).astype("float32")
LABELS = np.arange(32) % 10
# Keras layer, input shape without batch, and PyTorch layer of three channels.
RANKS = {
    "1-D": ((7, 3), nn.BatchNorm1d),
    "2-D": ((6, 5, 3), nn.BatchNorm2d),
    "3-D": ((4, 5, 6, 3), nn.BatchNorm3d),
    "vectors": ((3,), nn.BatchNorm1d),
    "sync": ((6, 5, 3), nn.SyncBatchNorm),
    "mednorm 2-D": ((6, 5, 3), BatchNorm),
    "mednorm 3-D": ((4, 5, 6, 3), BatchNorm),
}
ALL_RANKS = pytest.mark.parametrize(("shape", "norm"), RANKS.values(), ids=RANKS)


@pytest.fixture(autouse=True)
def _torch_draws_the_same_too():
    torch.manual_seed(0)


def trained_keras(normalization="bn", momentum=0.9):
    """The article's network after some steps, so that nothing is where it started."""
    kinds = {"bn": BNLayer, "keras": layers.BatchNormalization, "moving": MovingBNLayer}
    model = article_cnn(normalization=lambda: kinds[normalization](momentum=momentum))
    model.fit(IMAGES, LABELS, batch_size=16, epochs=2, verbose=0)
    return model


def untrained_torch():
    return build_network("article_cnn", Shape(1, (28, 28), 10), "batch", kind="classification")


def trained_torch():
    network = untrained_torch()
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(channels_to_front(IMAGES)), torch.from_numpy(LABELS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def channels_to_front(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim > 2 else x))


def probabilities(network, x=IMAGES):
    mode = network.training
    with torch.no_grad():
        y = network.eval()(channels_to_front(x)).softmax(1).numpy()
    network.train(mode)
    return y


def keras_bytes(network):
    """Every weight, random seed and metric, and what decides how the layers behave."""
    flat = network._flatten_layers()
    settings = [(getattr(layer, "epsilon", 0), getattr(layer, "momentum", 0), layer.trainable) for layer in flat]
    modes = [module.training for module in network.modules()] if BACKEND == "torch" else []
    return [np.array(keras.ops.convert_to_numpy(v)).tobytes() for v in network.variables], settings, modes


def torch_bytes(network):
    tensors = [*network.parameters(), *network.buffers()]
    settings = [(m.training, getattr(m, "eps", 0), getattr(m, "momentum", 0)) for m in network.modules()]
    return [tensor.detach().numpy().tobytes() for tensor in tensors], settings


def norm_layer(shape=(6, 5, 3), kind=BNLayer, **options):
    """A Keras layer of three channels with weights and statistics away from where they start."""
    layer = kind(**options)
    layer.build((None, *shape))
    values = [("gamma", [1.5, 0.5, -0.75]), ("beta", [0.25, -0.5, 1.0])]
    values += [("moving_mean", [5.0, -2.0, 0.5]), ("moving_variance", [4.0, 0.25, 1.5])]
    for name, value in values:
        if getattr(layer, name) is not None:
            getattr(layer, name).assign(np.array(value, "float32"))
    return layer


def torch_norm(kind=nn.BatchNorm2d, **options):
    norm = kind(3, **options)
    with torch.no_grad():
        for name, value in [("running_mean", [3.0, -1.0, 0.5]), ("running_var", [9.0, 0.5, 2.0])]:
            getattr(norm, name).copy_(torch.tensor(value))
        if norm.affine:
            norm.weight.copy_(torch.tensor([-1.0, 2.0, 0.5]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, -0.25]))
    norm.num_batches_tracked.fill_(7)
    return norm


def all_notes(report):
    return " ".join([*(note for layer in report.layers for note in layer.notes), *report.notes])


# Whole networks


@pytest.mark.parametrize("normalization", ["bn", "keras", "moving"])
def test_the_articles_network_says_in_pytorch_what_it_says_in_keras(normalization):
    model, network = trained_keras(normalization), untrained_torch()
    report = port(model, network)
    expected = model.predict(IMAGES, verbose=0)
    assert np.abs(probabilities(network) - expected).max() < TOLERANCE
    assert report.target is network
    assert report.equivalent
    assert report.max_difference < TOLERANCE < 0.1 < report.scale <= 1
    assert report.input_shape == (4, 28, 28, 1)
    assert [layer.target for layer in report.layers] == ["conv1", "norm1", "conv2", "norm2", "dense"]
    assert "ends in softmax, PyTorch's in logits" in report.notes[0]


def test_the_articles_network_says_in_keras_what_it_says_in_pytorch():
    network, model = trained_torch(), article_cnn()
    before = probabilities(network)
    report = port(network, model, example=IMAGES[:3])
    assert np.abs(model.predict(IMAGES, verbose=0) - before).max() < TOLERANCE
    assert report.equivalent
    assert report.scale == pytest.approx(before[:3].max(), abs=TOLERANCE)
    assert report.input_shape == (3, 28, 28, 1)


def test_a_round_trip_restores_every_array_bit_by_bit():
    model, network, back = trained_keras(), untrained_torch(), article_cnn()
    port(model, network)
    report = port(network, back)
    for weight, again in zip(model.weights, back.weights, strict=True):
        assert to_numpy(weight).tobytes() == to_numpy(again).tobytes(), weight.path
    assert [layer.momentum for layer in back.layers if hasattr(layer, "momentum")] == [0.9, 0.9]
    assert report.equivalent


def test_a_round_trip_from_pytorch_restores_every_array_bit_by_bit():
    network, again = trained_torch(), untrained_torch()
    middle = article_cnn(normalization="renorm")
    port(network, middle)
    port(middle, again)
    assert torch_bytes(again) == torch_bytes(network)


def test_the_source_is_never_changed():
    model, network = trained_keras(), trained_torch()
    network.norm1.eval()
    before = keras_bytes(model), torch_bytes(network)
    remembered = network.norm1.batch_moments
    port(model, untrained_torch())
    port(network, article_cnn())
    assert (keras_bytes(model), torch_bytes(network)) == before
    assert network.norm1.batch_moments is remembered


class Stops(nn.ReLU):
    """Refuses its input, after others have run in evaluation mode."""

    def forward(self, input):
        raise RuntimeError("stopped midway")


def test_a_network_that_raises_midway_leaves_both_as_they_were():
    model, network = trained_keras(), trained_torch()
    network.relu2 = Stops()
    network.norm2.eval()
    before = keras_bytes(model), torch_bytes(network)
    for source, target in [(network, model), (model, network)]:
        with pytest.raises(ConfigError, match=r"PyTorch side to take input of shape \(4, 28, 28, 1\).*stopped midway"):
            port(source, target)
        assert (keras_bytes(model), torch_bytes(network)) == before


def test_a_model_that_has_predicted_and_trained_before_uses_the_new_epsilon_and_momentum():
    model = article_cnn(normalization=lambda: BNLayer(epsilon=1e-3, momentum=0.99))
    model.fit(IMAGES, LABELS, verbose=0)
    model.evaluate(IMAGES, LABELS, verbose=0)
    model.predict(IMAGES, verbose=0)
    network = trained_torch()
    for norm in (network.norm1, network.norm2):
        norm.eps, norm.momentum = 0.5, 0.75
    expected = probabilities(network)
    port(network, model)
    assert np.abs(model.predict(IMAGES, verbose=0) - expected).max() < TOLERANCE
    loss = -np.log(expected[np.arange(32), LABELS].astype(float)).mean()
    assert model.evaluate(IMAGES, LABELS, verbose=0)[0] == pytest.approx(loss, rel=1e-4)
    before = to_numpy(model.layers[1].moving_mean)
    batch = to_numpy(model.layers[0](IMAGES)).mean((0, 1, 2))
    model.train_on_batch(IMAGES, LABELS)
    assert to_numpy(model.layers[1].moving_mean) == pytest.approx(0.25 * before + 0.75 * batch, abs=1e-5)


def test_training_on_moves_the_statistics_alike_but_for_the_bias_of_the_variance():
    model, network = trained_keras(momentum=0.75), untrained_torch()
    count = 32 * 26 * 26
    port(model, network)
    maps = to_numpy(model.layers[0](IMAGES))
    mean, variance = (to_numpy(value) for value in (model.layers[1].moving_mean, model.layers[1].moving_variance))
    model.layers[1](maps.astype("float32"), training=True)
    network.train()(channels_to_front(IMAGES))
    biased = maps.var((0, 1, 2))
    norm = network.norm1
    assert norm.running_mean.numpy() == pytest.approx(to_numpy(model.layers[1].moving_mean), rel=1e-5, abs=1e-6)
    assert norm.running_mean.numpy() == pytest.approx(0.75 * mean + 0.25 * maps.mean((0, 1, 2)), rel=1e-5, abs=1e-6)
    assert to_numpy(model.layers[1].moving_variance) == pytest.approx(0.75 * variance + 0.25 * biased, rel=1e-5)
    unbiased = biased * count / (count - 1)
    assert norm.running_var.numpy() == pytest.approx(0.75 * variance + 0.25 * unbiased, rel=1e-5)


def test_training_on_after_a_conversion_of_the_variance_differs_by_its_factor_alone():
    images = np.random.default_rng(2).normal(1, 2, (4, 2, 3, 3)).astype("float32")
    count = 24
    layer = norm_layer((2, 3, 3), momentum=0.75)
    norm = nn.BatchNorm2d(3)
    report = port(layer, norm, values_per_channel=count)
    assert "multiplied by 1.043478, biased to unbiased at 24 values per channel" in all_notes(report)
    layer(images, training=True)
    norm(channels_to_front(images))
    expected = to_numpy(layer.moving_variance) * count / (count - 1)
    assert norm.running_var.numpy() == pytest.approx(expected, rel=1e-6)


# Batch normalization alone


@ALL_RANKS
def test_batch_normalization_of_any_rank_equals_the_oracle_after_the_port(shape, norm):
    layer, target = norm_layer(shape, epsilon=0.125), norm(3)
    report = port(layer, target)
    oracle = BatchNormOracle(3, eps=0.125)
    oracle.weight, oracle.bias = to_numpy(layer.gamma), to_numpy(layer.beta)
    oracle.running_mean, oracle.running_var = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    x = channels_to_front(np.random.default_rng(0).normal(size=(4, *shape)).astype("float32"))
    with torch.no_grad():
        y = target.eval()(x).numpy()
    expected = oracle.evaluate(x.numpy())
    assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()
    assert report.equivalent
    assert report.layers[0].kind == "batch normalization"
    assert (target.eps, target.momentum) == (0.125, 0.01)


@ALL_RANKS
def test_batch_normalization_of_any_rank_equals_the_oracle_after_the_port_to_keras(shape, norm):
    source, layer = torch_norm(norm, eps=0.125, momentum=0.1), norm_layer(shape)
    report = port(source, layer)
    oracle = BatchNormOracle(3, eps=0.125)
    oracle.weight, oracle.bias = source.weight.detach().numpy(), source.bias.detach().numpy()
    oracle.running_mean, oracle.running_var = source.running_mean.numpy(), source.running_var.numpy()
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    expected = oracle.evaluate(channels_to_front(x).numpy())
    y = channels_to_front(to_numpy(layer(x, training=False))).numpy()
    assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()
    assert report.equivalent
    assert (layer.epsilon, layer.momentum) == (0.125, 0.9)


def test_channels_first_is_respected():
    layer, norm = norm_layer((3, 6, 5), axis=1), nn.BatchNorm2d(3)
    assert port(layer, norm).equivalent
    assert norm.running_mean.tolist() == [5.0, -2.0, 0.5]
    assert port(torch_norm(), layer).input_shape == (4, 3, 5, 6)


def test_scale_and_shift_that_are_missing_are_ones_and_zeros():
    layer, norm = norm_layer(center=False, scale=False), torch_norm()
    report = port(layer, norm)
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1.0] * 3, [0.0] * 3)
    assert "weight is 1 throughout" in all_notes(report)
    assert report.equivalent
    assert port(torch_norm(affine=False), norm_layer()).equivalent


def test_scale_and_shift_without_a_place_are_refused_unless_they_do_nothing():
    for lacking in ({"center": False}, {"scale": False}):
        layer = norm_layer(**lacking)
        before = keras_bytes(layer)
        with pytest.raises(ConfigError, match=r"expected a (weight|bias) in bn_layer\S*, which has none"):
            port(torch_norm(), layer)
        assert keras_bytes(layer) == before
    with pytest.raises(ConfigError, match="expected a weight in BatchNorm2d"):
        port(norm_layer(), torch_norm(affine=False))
    plain = torch_norm()
    nn.init.ones_(plain.weight)
    nn.init.zeros_(plain.bias)
    assert port(plain, norm_layer(center=False, scale=False)).equivalent


def test_the_plain_average_of_pytorch_leaves_the_momentum_of_keras_and_says_so():
    layer = norm_layer(momentum=0.95)
    report = port(torch_norm(momentum=None), layer)
    assert layer.momentum == 0.95
    assert "momentum None, the plain average, has no counterpart: Keras's stays 0.95" in all_notes(report)


def test_what_was_tracked_without_a_counter_in_keras_is_said():
    norm = torch_norm()
    assert "num_batches_tracked is left as it is" in all_notes(port(norm_layer(), norm))
    assert norm.num_batches_tracked == 7
    assert "num_batches_tracked is left behind" in all_notes(port(norm, norm_layer()))


@pytest.mark.parametrize("kind", [MovingBNLayer, BatchRenormLayer])
def test_the_count_of_batches_is_carried_both_ways(kind):
    layer, norm = norm_layer(kind=kind), torch_norm()
    assert "Batches counted: 7" in all_notes(port(norm, layer))
    assert int(layer.num_updates) == 7
    layer.num_updates.assign(11)
    port(layer, norm)
    assert norm.num_batches_tracked == 11


def test_statistics_that_were_loaded_uncounted_survive_the_next_batch_in_keras():
    layer, norm = norm_layer(kind=BatchRenormLayer, momentum=0.5), torch_norm(momentum=0.25)
    norm.num_batches_tracked.zero_()
    report = port(norm, layer)
    assert "num_updates is 58" in all_notes(report)  # 0.75^58 < 2^-24 <= 0.75^57
    x = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype("float32")
    layer(x, training=True)
    expected = 0.75 * np.array([3.0, -1.0, 0.5]) + 0.25 * x.mean((0, 1, 2))
    assert to_numpy(layer.moving_mean) == pytest.approx(expected, rel=1e-6)


def test_a_counter_starts_at_zero_where_the_statistics_do():
    layer = norm_layer(kind=BatchRenormLayer)
    port(nn.BatchNorm2d(3), layer)
    assert int(layer.num_updates) == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (RangeBNLayer, "normalizes by the range of the batch"),
        (MovingBNLayer, "normalizes by the moving statistics"),
        (BatchRenormLayer, "corrects the batch's statistics"),
    ],
)
def test_layers_that_train_otherwise_are_equal_in_inference_and_say_so(kind, said):
    report = port(norm_layer(kind=kind), nn.BatchNorm2d(3))
    assert report.equivalent
    assert said in all_notes(report)
    assert "inference is equal, training is not" in all_notes(report)
    assert said not in all_notes(port(norm_layer(), nn.BatchNorm2d(3)))


def test_the_renorm_of_keras_itself_gets_all_of_its_statistics():
    layer = norm_layer(kind=layers.BatchNormalization, renorm=True, epsilon=0.5)
    norm = torch_norm(eps=0.25)
    assert port(norm, layer).equivalent
    std = np.sqrt(np.array([9.0, 0.5, 2.0]) + 0.25)
    assert to_numpy(layer.renorm_mean) == pytest.approx([3.0, -1.0, 0.5])
    for weight in (layer.moving_stddev, layer.renorm_stddev):
        assert to_numpy(weight) == pytest.approx(std, rel=1e-6)
    layer(np.zeros((2, 6, 5, 3), "float32"), training=True)  # moves the variance as it should: 1 % towards 0
    assert to_numpy(layer.moving_variance) == pytest.approx([9.0, 0.5, 2.0], rel=0.2)


def test_a_frozen_layer_is_ported_and_said_to_be_frozen():
    layer = norm_layer()
    layer.trainable = False
    assert "only after `.eval()`" in all_notes(port(layer, nn.BatchNorm2d(3)))


def test_a_fused_activation_is_named_and_seen_in_the_outputs():
    report = port(norm_layer(), BatchNorm(3, activation="relu"))
    assert "applies relu itself" in all_notes(report)
    assert not report.equivalent
    assert report.max_difference > 0.1
    assert "another activation" in report.notes[-1]


def test_variances_are_converted_only_where_the_mapping_names_a_layer():
    model, network = trained_keras(), untrained_torch()
    report = port(model, network, values_per_channel={"norm2": 17})
    stored = to_numpy(model.layers[3].moving_variance)
    assert network.norm1.running_var.numpy().tolist() == to_numpy(model.layers[1].moving_variance).tolist()
    assert network.norm2.running_var.numpy() == pytest.approx(stored * 17 / 16, rel=1e-6)
    assert [("multiplied" in " ".join(layer.notes)) for layer in report.layers] == [False, False, False, True, False]
    assert not report.equivalent  # 6 % of a variance is seen
    assert "were converted for training on, which alone makes the outputs differ" in all_notes(report)


def test_variances_are_converted_to_keras_by_the_inverse():
    layer = norm_layer()
    report = port(torch_norm(), layer, values_per_channel=5)
    assert to_numpy(layer.moving_variance) == pytest.approx(np.array([9.0, 0.5, 2.0]) * 4 / 5, rel=1e-6)
    assert "multiplied by 0.8, unbiased to biased" in all_notes(report)


def test_a_variance_from_the_range_is_not_converted():
    norm = nn.BatchNorm2d(3)
    report = port(norm_layer(kind=RangeBNLayer), norm, values_per_channel=5)
    assert norm.running_var.tolist() == [4.0, 0.25, 1.5]
    assert "copied in spite of values_per_channel" in all_notes(report)


# Other layers and networks


@pytest.mark.parametrize("way", ["to PyTorch", "to Keras"])
@pytest.mark.parametrize(
    ("layer", "module", "channels"),
    [
        (lambda: layers.Conv1D(4, 3), lambda: nn.Conv1d(2, 4, 3), (7, 2)),
        (lambda: layers.Conv2D(4, (3, 2), strides=(1, 2)), lambda: nn.Conv2d(2, 4, (3, 2), (1, 2)), (7, 6, 2)),
        (lambda: layers.Conv3D(4, (1, 2, 3)), lambda: nn.Conv3d(2, 4, (1, 2, 3)), (3, 5, 7, 2)),
        (lambda: layers.Conv2D(6, 3, groups=2), lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 5, 4)),
        (lambda: layers.Conv2D(4, 3, dilation_rate=2), lambda: nn.Conv2d(2, 4, 3, dilation=2), (7, 6, 2)),
        (lambda: layers.Conv2D(4, 3, use_bias=False), lambda: nn.Conv2d(2, 4, 3), (7, 6, 2)),
        (lambda: layers.Dense(4), lambda: nn.Linear(2, 4), (2,)),
    ],
    ids=["1-D", "2-D", "3-D", "groups", "dilation", "no bias", "dense"],
)
def test_convolutions_and_dense_layers_alone_are_equal(layer, module, channels, way):
    layer, module = layer(), module()
    layer.build((None, *channels))
    if way == "to Keras" and not getattr(layer, "use_bias", True):
        nn.init.zeros_(module.bias)
    report = port(layer, module) if way == "to PyTorch" else port(module, layer)
    assert report.max_difference < TOLERANCE
    assert report.scale > 0.1
    x = np.random.default_rng(5).normal(size=(2, *channels)).astype("float32")
    with torch.no_grad():
        y = module(channels_to_front(x))
    assert np.abs(channels_to_front(to_numpy(layer(x))).numpy() - y.numpy()).max() < TOLERANCE


def flattening(first):
    """Convolution, Flatten, normalization of the vector, dropout, dense, in both frameworks, of a map 4 by 3."""
    shape, order = ((2, 4, 3), "channels_first") if first else ((4, 3, 2), "channels_last")
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.BatchNormalization(axis=1 if first else -1),
            layers.Flatten(data_format=order),
            layers.Dropout(0.5),
            BNLayer(),
            layers.ReLU(),
            layers.Dense(5),
        ]
    )
    parts = [nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 5)]
    return model, nn.Sequential(*parts)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_what_follows_a_flatten_gets_its_features_in_pytorchs_order(first):
    model, network = flattening(first)
    for index, weight in enumerate(model.weights):  # every feature its own
        weight.assign(np.random.default_rng(index).uniform(0.5, 2, weight.shape))
    assert port(model, network).max_difference < TOLERANCE
    again, _ = flattening(first)
    port(network, again)
    for weight, restored in zip(model.weights, again.weights, strict=True):
        assert to_numpy(weight).tobytes() == to_numpy(restored).tobytes()


def test_a_plain_flatten_of_channels_first_needs_no_other_order():
    model = keras.Sequential([keras.Input((2, 3)), BNLayer(axis=1), layers.Flatten(), layers.Dense(4)])
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(6, 4))
    assert port(model, network).max_difference < TOLERANCE
    kernel = to_numpy(model.layers[-1].kernel)
    assert network[2].weight.detach().numpy().tolist() == kernel.T.tolist()


def test_nested_and_branching_networks_are_paired_in_order():
    inputs = keras.Input((6, 6, 2))
    backbone = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3), BNLayer()], name="backbone")
    features = backbone(inputs)
    maps, branch = layers.ReLU()(features), layers.Conv2D(3, 1)(features)
    vector = layers.Flatten()(layers.Add()([maps, branch]))
    model = keras.Model(inputs, layers.Dense(2, activation="sigmoid")(layers.Activation("tanh")(vector)))

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
            self.branch, self.head = nn.Conv2d(3, 3, 1), nn.Linear(48, 2)

        def forward(self, x):
            x = self.backbone(x)
            return self.head((x.relu() + self.branch(x)).flatten(1).tanh())

    report = port(model, Branching())
    assert report.max_difference < TOLERANCE
    assert report.layers[0].source.startswith("backbone/conv2d")
    assert [layer.target for layer in report.layers] == ["backbone.0", "backbone.1", "branch", "head"]
    assert "sigmoid of them was compared" in report.notes[0]


def test_a_network_of_a_class_of_its_own_is_compared_on_the_example():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.flat, self.dense = layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)

        def call(self, x, training=False):
            return self.dense(self.flat(self.conv(x)))

    model, network = Own(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 3))
    example = np.random.default_rng(0).normal(size=(2, 6, 5, 1))
    with pytest.raises(ConfigError, match=r"conv2d\S* \(Conv2D\) of the Keras side has no weights yet"):
        port(model, network, example=example)
    model(example)
    with pytest.raises(ConfigError, match=r"got input shape None\. Pass example="):
        port(model, network)
    report = port(model, network, example=example)
    assert report.max_difference < TOLERANCE
    assert report.input_shape == (2, 6, 5, 1)


def test_an_input_of_unknown_size_needs_an_example():
    model = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 3), BNLayer()])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r"got input shape \(None, None, None, 1\)\. Pass example="):
        port(model, network)
    report = port(model, network, example=IMAGES[:2])
    assert report.equivalent
    assert report.scale > 1


def test_a_difference_that_is_not_in_the_weights_is_reported_and_not_raised():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, activation="relu"), BNLayer()])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    report = port(model, network)
    assert not report.equivalent
    assert report.max_difference > 0.1
    assert "another activation" in report.notes[-1]
    assert "DIFFER" in str(report)


def test_the_target_keeps_its_type_and_the_rounding_is_said():
    layer, norm = norm_layer(), nn.BatchNorm2d(3, dtype=torch.float64)
    report = port(layer, norm)
    assert {tensor.dtype for tensor in (norm.weight, norm.running_var)} == {torch.float64}
    assert "Rounded" not in all_notes(report)
    report = port(torch_norm(dtype=torch.float64), layer)
    assert layer.moving_mean.dtype == "float32"
    assert "Rounded from float64 to float32" in all_notes(report)


def test_the_report_reads_as_a_table_and_as_json():
    report = port(trained_keras(), untrained_torch())
    lines = str(report).splitlines()
    assert lines[0].startswith("5 layers ported; outputs equal: they differ by at most ")
    assert lines[2].split() == [report.layers[1].source, "->", "norm1", "batch", "normalization", "[1,", "2]"]
    assert lines[6].strip() == "1. " + report.layers[1].notes[0]
    found = json.loads(json.dumps(report.to_dict()))
    assert found["layers"][1]["target"] == "norm1"
    assert found["equivalent"] is True
    assert found["input_shape"] == [4, 28, 28, 1]


# Errors: each leaves the target as it was


def assert_refused(error, match, source, target, **options):
    sides = {True: keras_bytes, False: torch_bytes}
    read = [sides[isinstance(thing, keras.Layer)] for thing in (source, target)]
    before = read[0](source), read[1](target)
    with pytest.raises(error, match=match):
        port(source, target, **options)
    assert (read[0](source), read[1](target)) == before


def test_two_of_one_framework_are_refused():
    for source, target, got in [
        (norm_layer(), norm_layer(), r"source BNLayer \(Keras\) and target BNLayer \(Keras\)"),
        (torch_norm(), torch_norm(), r"source BatchNorm2d \(PyTorch\) and target BatchNorm2d \(PyTorch\)"),
        (norm_layer(), "model.pt", r"source BNLayer \(Keras\) and target str \(neither\)"),
    ]:
        with pytest.raises(ConfigError, match=got):
            port(source, target)


def test_layers_with_weights_of_other_kinds_are_refused_by_name():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.DepthwiseConv2D(3), layers.LayerNormalization()])
    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.GroupNorm(1, 1))
    assert_refused(ConfigError, r"depthwise_conv2d\S* \(DepthwiseConv2D\) with kernel, bias", model, network)
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(1, 3), BNLayer()])
    assert_refused(ConfigError, r"got 1 \(GroupNorm\) with weight, bias in the PyTorch network", model, network)


def test_weights_beside_the_layers_are_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)
            self.shift = self.add_weight(shape=(2,), name="shift")

        def call(self, x, training=False):
            return self.dense(x) + self.shift

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ConfigError, match=r"belong to one of its `.layers`, got \S*shift"):
        port(model, nn.Linear(3, 2), example=np.ones((1, 3)))
    network = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    layer = layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(ConfigError, match="got ParametrizedLinear with a weight that is computed"):
        port(network, layer)


def test_other_numbers_of_layers_other_kinds_and_other_shapes_are_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, name="c"), BNLayer(name="b")])
    conv, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    fewer = r"got 2 in the source \(c, b\) and 1 in the target \(0\)"
    assert_refused(ConfigError, fewer, model, nn.Sequential(conv))
    swapped = nn.Sequential(norm, conv)
    assert_refused(ConfigError, "got c, a 2-D convolution, and 0, a batch normalization", model, swapped)
    other = nn.Sequential(nn.Conv2d(1, 2, 5), norm)
    shapes = r"weight of 0 and of c to have one shape, got \(2, 1, 5, 5\) and \(2, 1, 3, 3\)"
    assert_refused(ShapeError, shapes, model, other)
    assert_refused(ShapeError, r"weight of c and of 0 .* got \(2, 1, 3, 3\) and \(2, 1, 5, 5\)", other, model)
    assert_refused(ConfigError, "got two networks without any", keras.Sequential([keras.Input((2,))]), nn.ReLU())


def test_outputs_of_other_shapes_are_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, padding="same")])
    shapes = r"got \(4, 6, 6, 2\) from Keras and \(4, 4, 4, 2\) from PyTorch"
    assert_refused(ConfigError, shapes, model, nn.Conv2d(1, 2, 3))


def test_input_that_the_other_side_cannot_take_is_refused():
    assert_refused(ConfigError, r"PyTorch side to take input of shape \(4, 3\)", norm_layer((3,)), torch_norm())
    wrong = {"example": np.ones((2, 6, 5, 2))}
    assert_refused(ConfigError, r"side to take input of shape \(2, 6, 5, 2\)", norm_layer(), torch_norm(), **wrong)


def test_numbers_that_are_not_finite_are_refused():
    norm = torch_norm()
    norm.running_var[1] = float("nan")
    assert_refused(DataError, "got 1 that are not in running_var of BatchNorm2d", norm, norm_layer())
    layer = norm_layer()
    layer.beta.assign(np.array([np.inf, 0, -np.inf], "float32"))
    assert_refused(DataError, r"got 2 that are not in bias of bn_layer", layer, torch_norm())
    example = np.full((2, 6, 5, 3), np.nan)
    assert_refused(DataError, r"got shape \(2, 6, 5, 3\) with 180", norm_layer(), torch_norm(), example=example)


def test_numbers_too_large_for_the_target_are_refused():
    layer = norm_layer()
    layer.moving_variance.assign(np.array([1e6, 1, 1], "float32"))
    narrow = nn.BatchNorm2d(3, dtype=torch.float16)
    assert_refused(DataError, r"of float16, which ends at 65504, got 1e\+06", layer, narrow)


def test_layers_without_running_statistics_are_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert_refused(ConfigError, "got BatchNorm2d with track_running_stats=False", norm, norm_layer())
    assert_refused(ConfigError, "with track_running_stats=False", norm_layer(), norm)
    always = norm_layer(training=True)
    assert_refused(ConfigError, r"got bn_layer\S* with training=True", always, torch_norm())


def test_layers_without_weights_yet_are_refused():
    lazy = nn.Sequential(nn.LazyConv2d(2, 3))
    layer = layers.Conv2D(2, 3)
    with pytest.raises(
        ConfigError, match=r"conv2d\S* \(Conv2D\) of the Keras side has no weights yet: it is not built"
    ):
        port(layer, nn.Conv2d(1, 2, 3))
    layer.build((None, 6, 6, 1))
    with pytest.raises(ConfigError, match=r"0 \(LazyConv2d\) of the PyTorch side has no weights yet"):
        port(lazy, layer)
    with pytest.raises(ConfigError, match="of the PyTorch side has no weights yet"):
        port(nn.Conv2d(1, 2, 3, device="meta"), layer)
    with pytest.raises(ConfigError, match="it is not built"):
        port(keras.Sequential([layers.Conv2D(2, 3), BNLayer()]), nn.Conv2d(1, 2, 3))


def test_channels_on_an_axis_between_are_refused():
    with pytest.raises(ConfigError, match=r"axis=2 for input of 4 axes"):
        port(norm_layer((6, 3, 5), axis=2), torch_norm())


def test_an_epsilon_that_keras_cannot_have_is_refused():
    assert_refused(ConfigError, r"`epsilon` should be a number above 0.*epsilon=0", torch_norm(eps=0), norm_layer())


@pytest.mark.parametrize("count", [1, 2.5, True, "many"])
def test_a_number_of_values_that_gives_no_variance_is_refused(count):
    said = f"whole number of at least 2.*got {count!r}"
    assert_refused(ConfigError, said, norm_layer(), torch_norm(), values_per_channel=count)


def test_a_mapping_that_names_no_layer_is_refused():
    given = {"values_per_channel": {"norm": 4}}
    assert_refused(ConfigError, r"got norm\. There are: BatchNorm2d, bn_layer", norm_layer(), torch_norm(), **given)


def test_several_inputs_or_outputs_are_refused():
    one, two = keras.Input((3,)), keras.Input((3,))
    both = keras.Model([one, two], layers.Dense(2)(layers.Add()([one, two])))
    assert_refused(ConfigError, "a Keras network with one input, got 2", both, nn.Linear(3, 2))
    split = keras.Model(one, [layers.Dense(2)(one), layers.Dense(2)(one)])
    pair = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ShapeError):
        port(split, pair)
    split = keras.Model(one, [layers.Dense(3)(one), layers.Dense(3)(one)])
    pair = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert_refused(ConfigError, "a Keras network with one output, got list", split, pair)


def test_asking_for_port_imports_no_keras_and_neither_does_refusing():
    code = """
import sys, torch, mednorm
try:
    mednorm.port(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
except mednorm.MednormError:
    print("keras" in sys.modules, mednorm.PortReport.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "mednorm.surgery.report"]
    assert mednorm.port is port
