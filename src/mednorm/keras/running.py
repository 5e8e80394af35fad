"""Run a Keras network on an array for `mednorm.port`: which input it takes, and how its output is made."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from mednorm.errors import ConfigError
from mednorm.keras.flattened import leaves_of

Array = NDArray[Any]

_BATCH = 4


def run(network: keras.Layer, x: Array) -> Array:
    """Return the output in inference.

    Raises:
        ConfigError: it is more than one array.

    """
    y = network(x, training=False)
    if not keras.ops.is_tensor(y):
        raise ConfigError(f"port: expected a Keras network with one output, got {type(y).__name__} of several.")
    y = np.asarray(keras.ops.convert_to_numpy(y))
    return y.astype(np.promote_types(y.dtype, "float32"))


def input_shape(network: keras.Layer) -> tuple[int, ...]:
    """Tell a shape of input that the network takes, four images.

    Raises:
        ConfigError: it takes several inputs, or not all sizes are known.

    """
    if not isinstance(network, keras.Model):
        return _shape_for_layer(network)
    inputs = getattr(network, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ConfigError(f"port: expected a Keras network with one input, got {len(inputs)}.")
    shape = None if inputs is None else tuple(inputs[0].shape)
    if shape is None or None in shape[1:]:
        raise ConfigError(
            f"port: expected a Keras network whose input has known sizes, to compare both on random input, got input "
            f"shape {shape}. Pass example=, an array of a few images in Keras's layout."
        )
    return (_BATCH, *shape[1:])


def ending(network: keras.Layer) -> str | None:
    """Name the function that makes probabilities of the last layer's values: softmax, sigmoid, or None."""
    last = [leaf for leaf, _ in leaves_of(network)][-1]
    if isinstance(last, layers.Softmax):
        return "softmax"
    activation = getattr(last, "activation", None)
    return {keras.activations.softmax: "softmax", keras.activations.sigmoid: "sigmoid"}.get(activation)


def _shape_for_layer(layer: keras.Layer) -> tuple[int, ...]:
    """Invent space for a layer alone, of which only the number of channels is known."""
    spec = layer.input_spec
    ((axis, channels),) = spec.axes.items()
    rank = spec.ndim or spec.min_ndim
    reach = getattr(layer, "kernel_size", ()), getattr(layer, "dilation_rate", ())
    space = [2 + (size - 1) * rate + index for index, (size, rate) in enumerate(zip(*reach, strict=True))]
    shape = [_BATCH, *(space or range(5, 5 + rank - 2))]
    shape.insert(len(shape) if axis % rank == rank - 1 else axis % rank, channels)
    return tuple(shape)
