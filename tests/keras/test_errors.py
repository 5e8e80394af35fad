"""What a person may get wrong: a ValueError in Keras's style that names the value received."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mednorm.errors import MednormError
from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer, article_cnn, batch_statistics

LAYERS = pytest.mark.parametrize("made", [BNLayer, RangeBNLayer, MovingBNLayer, BatchRenormLayer])


@LAYERS
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"axis": 1.5}, "axis=1.5"),
        ({"axis": [1, 2]}, r"axis=\[1, 2\]"),
        ({"axis": True}, "axis=True"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"momentum": float("nan")}, "momentum=nan"),
        ({"momentum": "0.9"}, "momentum='0.9'"),
        ({"momentum": None}, "momentum=None"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": -1e-3}, "epsilon=-0.001"),
        ({"epsilon": float("inf")}, "epsilon=inf"),
        ({"epsilon": "small"}, "epsilon='small'"),
        ({"training": "yes"}, "training='yes'"),
        ({"training": 1}, "training=1"),
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_named_with_its_value(made, arguments, said):
    with pytest.raises(ValueError, match=f"{made.__name__}.*Received: {said}$") as raised:
        made(**arguments)
    assert isinstance(raised.value, MednormError)


@pytest.mark.parametrize(
    ("made", "arguments", "said"),
    [
        (BatchRenormLayer, {"rmax": 0.5}, "rmax=0.5"),
        (BatchRenormLayer, {"dmax": -1}, "dmax=-1"),
        (BatchRenormLayer, {"schedule_steps": -1}, "schedule_steps=-1"),
        (BatchRenormLayer, {"schedule_steps": 0.5}, "schedule_steps=0.5"),
        (BatchRenormLayer, {"renorm": True}, "renorm=True"),
        (MovingBNLayer, {"refresh_every": 0}, "refresh_every=0"),
        (MovingBNLayer, {"refresh_every": "4"}, "refresh_every='4'"),
        (MovingBNLayer, {"renorm": True}, "renorm=True"),
        (RangeBNLayer, {"synchronized": True}, "synchronized=True"),
        (RangeBNLayer, {"renorm": True}, "renorm=True"),
    ],
    ids=str,
)
def test_a_layers_own_argument_is_named_with_its_value(made, arguments, said):
    with pytest.raises(ValueError, match=f"{made.__name__}.*Received: {said}$"):
        made(**arguments)


def test_an_unknown_argument_is_refused_as_keras_does():
    with pytest.raises(ValueError, match="momentun"):
        BNLayer(momentun=0.9)


@LAYERS
@pytest.mark.parametrize("axis", [4, -5])
def test_an_axis_out_of_bounds_names_axis_and_shape(made, axis):
    with pytest.raises(ValueError, match=rf"out of bounds.*Received: axis={axis}, input_shape=\(2, 3, 3, 4\)"):
        made(axis=axis)(np.zeros((2, 3, 3, 4)))


@LAYERS
def test_channels_of_unknown_number_name_the_shape(made):
    with pytest.raises(ValueError, match=r"Received: input_shape=\(None, 28, 28, None\)"):
        made()(keras.Input((28, 28, None)))


def test_another_number_of_channels_than_before_is_refused():
    layer = BNLayer()
    layer(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"with shape \(2, 4\)"):
        layer(np.zeros((2, 4)))


@LAYERS
@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 3, 4), (2, 3, 3, 4), (3, 3, 3)])
def test_a_mask_of_the_wrong_shape_names_both_shapes(made, shape):
    layer = made()
    images = np.zeros((2, 3, 3, 4), "float32")
    layer.build(images.shape)
    for training in (True, False):
        with pytest.raises(ValueError, match="one dimension less") as raised:
            layer(images, training=training, mask=np.ones(shape, bool))
        said = str(raised.value)
        assert f"mask.shape={shape}" in said
        assert "inputs.shape=(2, 3, 3, 4)" in said


@LAYERS
def test_a_vector_is_no_batch(made):
    with pytest.raises(ValueError, match=r"at least 2 axes.*Received: input_shape=\(3,\)"):
        made()(np.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 2.0}, "num_classes=2.0"),
        ({"input_shape": (28, 28)}, r"input_shape=\(28, 28\)"),
        ({"input_shape": (5, 28, 1)}, r"input_shape=\(5, 28, 1\)"),
        ({"input_shape": (None, None, 1)}, r"input_shape=\(None, None, 1\)"),
        ({"normalization": "bm"}, "normalization='bm'"),
        ({"normalization": 3}, "normalization=3"),
        ({"normalization": BNLayer(name="one")}, "normalization=<BNLayer name=one, built=False>"),
    ],
    ids=str,
)
def test_the_network_names_what_it_cannot_be_built_of(arguments, said):
    with pytest.raises(ValueError, match=f"article_cnn.*Received: {said}$"):
        article_cnn(**arguments)


def test_a_name_that_is_nearly_right_is_guessed():
    with pytest.raises(ValueError, match="Did you mean 'renorm'"):
        article_cnn(normalization="renrom")


@pytest.mark.parametrize(
    ("x", "axis", "said"), [(np.zeros((2, 3)), 2, "axis=2"), (np.zeros(3), -1, r"input_shape=\(3,\)")]
)
def test_statistics_of_the_wrong_axis_or_of_no_batch_are_refused(x, axis, said):
    with pytest.raises(ValueError, match=f"batch_statistics.*Received: {said}"):
        batch_statistics(x, axis)
