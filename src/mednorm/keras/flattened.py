"""How the layers of a Keras network follow one another, and what its Flatten makes of the channels."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

Order = NDArray[np.intp]

# These leave each feature of a vector where it is.
_IN_PLACE = (
    layers.Activation,
    layers.AlphaDropout,
    layers.BatchNormalization,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
)


def leaves_of(network: keras.Layer) -> Iterator[tuple[keras.Layer, str]]:
    """Yield the layers that are no models, nested ones too, with the path of each; a layer alone is its own leaf."""
    if not isinstance(network, keras.Model):
        yield network, network.name
        return
    for layer in network.layers:
        nested = f"{layer.name}/" if isinstance(layer, keras.Model) else ""
        if not isinstance(layer, layers.InputLayer):
            yield from ((leaf, nested + name) for leaf, name in leaves_of(layer))


def channels_first(network: keras.Layer) -> bool | None:
    """Whether feature maps have their channels on axis 1, as the first layer that tells has it; None if none does."""
    for leaf, _ in leaves_of(network):
        if isinstance(leaf, layers.BatchNormalization):
            rank = leaf.input_spec.ndim
            if rank > 2:
                return bool(leaf.axis % rank == 1)
        elif not isinstance(leaf, layers.Flatten) and hasattr(leaf, "data_format"):
            return bool(leaf.data_format == "channels_first")
    return None


def in_order_of_pytorch(network: keras.Layer) -> dict[int, Order]:
    """Find the layers that take a flattened feature map: by id, at which of Keras's features each of PyTorch's is.

    PyTorch flattens (C, *space), Keras (*space, C): a dense layer after it has its inputs in another order, and so has
    batch normalization between them.
    """
    outputs: dict[int, Order | None] = {}
    inputs: dict[int, Order] = {}
    first = bool(channels_first(network))
    for leaf, before in _with_what_feeds_them(network, None):
        order = None if before is None else outputs.get(id(before))
        if order is not None:
            inputs[id(leaf)] = order
        if isinstance(leaf, layers.Flatten):
            order = _flattened(leaf, first, order)
        elif not isinstance(leaf, _IN_PLACE):
            order = None
        outputs[id(leaf)] = order
    return inputs


def _flattened(layer: keras.layers.Flatten, first: bool, order: Order | None) -> Order | None:
    shape = (layer.get_build_config() or {}).get("input_shape", ())[1:]
    if len(shape) < 2 or None in shape:
        return order
    features = np.arange(np.prod(shape))
    if layer.data_format == "channels_first":  # then Flatten moves axis 1 to the end first, whatever it holds
        features = np.moveaxis(features.reshape(*shape[1:], shape[0]), -1, 0)
    features = features.reshape(shape)
    return (features if first else np.moveaxis(features, -1, 0)).ravel()


def _with_what_feeds_them(
    network: keras.Layer, before: keras.Layer | None
) -> Iterator[tuple[keras.Layer, keras.Layer | None]]:
    """Yield each leaf with the one whose output it takes; where no graph is known, with the one before it."""
    if not isinstance(network, keras.Model):
        yield network, before
        return
    last: dict[int, keras.Layer | None] = {}
    previous = before
    for layer in network.layers:
        if isinstance(layer, layers.InputLayer):
            last[id(layer)] = before
            continue
        for leaf, feeding in _with_what_feeds_them(layer, last.get(_producer(layer), previous)):
            yield leaf, feeding
            previous = leaf
        last[id(layer)] = previous


def _producer(layer: keras.Layer) -> int:
    """The id of the layer or operation that made a layer's input; 0 where that is not known."""
    try:
        tensor = layer.input
    except (AttributeError, ValueError):  # never called on a symbolic tensor
        return 0
    history = getattr(tensor, "_keras_history", None)
    return 0 if history is None else id(history.operation)
