"""Weights and statistics of whole networks between Keras and PyTorch, either way, on each backend."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from mednorm import port
from mednorm.errors import ConfigError
from mednorm.keras import BNLayer, article_cnn
from tests.keras.backends import to_numpy
from tests.keras.porting import (
    IMAGES,
    LABELS,
    TOLERANCE,
    all_notes,
    channels_to_front,
    keras_bytes,
    norm_layer,
    probabilities,
    torch_bytes,
    trained_keras,
    trained_torch,
    untrained_torch,
)


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
