"""The Keras half of `mednorm.port`: layers with weights in PyTorch's layout and conventions, as NumPy, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from mednorm.errors import ConfigError
from mednorm.keras.arguments import check_arguments
from mednorm.keras.batch import BNLayer
from mednorm.keras.counting import CountingBNLayer
from mednorm.keras.flattened import in_order_of_pytorch, leaves_of
from mednorm.keras.moving import MovingBNLayer
from mednorm.keras.range import RangeBNLayer
from mednorm.keras.renorm import BatchRenormLayer

Array = NDArray[Any]

_CONVOLUTIONS = {layers.Conv1D: 1, layers.Conv2D: 2, layers.Conv3D: 3}


@dataclass(frozen=True)
class Norm:
    """What batch normalization has beside its weights, in PyTorch's conventions.

    Attributes:
        eps: added to the variance.
        momentum: weight of the new value; None for the plain average.
        updates: how many batches moved the statistics; None where the layer does not count.
        biased: whether its running variance follows the biased variance of the batches; None where it follows neither.

    """

    eps: float
    momentum: float | None
    updates: int | None
    biased: bool | None


@dataclass(frozen=True)
class Part:
    """A layer with weights.

    Attributes:
        layer: itself.
        name: where it is in its network.
        kind: what it has in common with its counterpart.
        arrays: copies of its weights under PyTorch's names and in PyTorch's layout, those that it has.
        dtypes: of the weights themselves; a copy of bfloat16 is float32.
        norm: None if it is no batch normalization.
        notes: what the report should say of it.
        order: after a Flatten, at which of Keras's features each of PyTorch's is; None where they are the same.

    """

    layer: Any
    name: str
    kind: str
    arrays: Mapping[str, Array]
    dtypes: Mapping[str, str]
    norm: Norm | None = None
    notes: tuple[str, ...] = ()
    order: Array | None = None


def is_keras(thing: object) -> bool:
    """Tell a layer or network of Keras: on the PyTorch backend it is a `torch.nn.Module` too."""
    return isinstance(thing, keras.Layer)


def parts_of(network: keras.Layer) -> list[Part]:
    """List the layers with weights, in the order of ``.layers``, nested models from within.

    Raises:
        ConfigError: a layer has weights and is of no kind that can be ported, or has no weights yet.

    """
    leaves = list(leaves_of(network))
    for layer, name in leaves:
        _check_built(layer, name)
    orders = in_order_of_pytorch(network)
    parts = {id(layer): _part(layer, name, orders.get(id(layer))) for layer, name in leaves}
    found = [part for part in parts.values() if part is not None]
    _check_nothing_is_left(network, found)
    return found


def write(part: Part, arrays: Mapping[str, Array], norm: Norm | None) -> None:
    """Give a layer its weights, and batch normalization its constants and counter."""
    for name, variable in _variables(part.layer).items():
        value = arrays[name]
        if part.order is not None and (part.norm or name == "weight"):
            value = np.take(value, np.argsort(part.order), axis=value.ndim - 1)
        variable.assign(np.ascontiguousarray(value.transpose(_to_keras(value.ndim))))
    if norm is None:
        return
    layer = part.layer
    layer.epsilon, layer.momentum = norm.eps, _momentum(part, norm)
    if norm.updates is not None and isinstance(layer, CountingBNLayer):
        layer.num_updates.assign(norm.updates)
    if getattr(layer, "renorm", False):
        std = np.sqrt(arrays["running_var"] + norm.eps)
        for variable, value in zip(_renorm_weights(layer), (std, arrays["running_mean"], std), strict=True):
            variable.assign(value)


def check_norm(part: Part, norm: Norm) -> None:
    """Pass if a layer can have these constants.

    Raises:
        ConfigError: it cannot.

    """
    if isinstance(part.layer, BNLayer):
        check_arguments(f"port, to {part.name}", part.layer.axis, _momentum(part, norm), norm.eps, None)


def forget_traces(network: keras.Layer) -> None:
    """Make ``fit``, ``evaluate`` and ``predict`` read the layers' constants anew: a compiled model keeps the old."""
    if isinstance(network, keras.Model):
        network.train_function = network.test_function = network.predict_function = None
        for layer in network.layers:
            forget_traces(layer)


def _momentum(part: Part, norm: Norm) -> float:
    """Weight of the old value: 1 − 0.1 is 0.9, without what rounding leaves behind."""
    return float(part.layer.momentum) if norm.momentum is None else round(1 - norm.momentum, 15)


def _part(layer: keras.Layer, name: str, order: Array | None) -> Part | None:
    kind = _kind(layer)
    variables = _variables(layer) if kind else {}
    known = {id(variable) for variable in (*variables.values(), *_counters(layer), *_renorm_weights(layer))}
    unknown = [variable.name for variable in layer.weights if id(variable) not in known]
    if unknown:
        raise ConfigError(
            f"port: expected convolutions, dense layers and batch normalization alone to have weights, got {name} "
            f"({type(layer).__name__}) with {', '.join(unknown)} in the Keras network. Nothing was written."
        )
    if kind is None:
        return None
    arrays = {key: np.array(keras.ops.convert_to_numpy(value)) for key, value in variables.items()}
    arrays = {key: value.astype(np.promote_types(value.dtype, "float32")) for key, value in arrays.items()}
    arrays = {key: value.transpose(_to_pytorch(value.ndim)) for key, value in arrays.items()}
    is_norm = isinstance(layer, layers.BatchNormalization)
    if order is not None:
        features = {key for key in arrays if is_norm or key == "weight"}
        arrays |= {key: np.take(arrays[key], order, axis=arrays[key].ndim - 1) for key in features}
    dtypes = {key: keras.backend.standardize_dtype(value.dtype) for key, value in variables.items()}
    norm, notes = (_norm(layer, name), _notes(layer)) if is_norm else (None, ())
    return Part(layer, name, kind, arrays, dtypes, norm, notes, order)


def _check_built(layer: keras.Layer, name: str) -> None:
    if not layer.built:
        raise ConfigError(
            f"port: {name} ({type(layer).__name__}) of the Keras side has no weights yet: it is not built. "
            "Call the network on a batch first, or start it with keras.Input."
        )


def _check_nothing_is_left(network: keras.Layer, parts: list[Part]) -> None:
    inside = {id(variable) for part in parts for variable in part.layer.weights}
    left = [variable.path for variable in network.weights if id(variable) not in inside]
    if left:
        raise ConfigError(
            f"port: expected every weight of the Keras network to belong to one of its `.layers`, got "
            f"{', '.join(left)} beside them. Nothing was written."
        )


def _kind(layer: keras.Layer) -> str | None:
    for of_rank, rank in _CONVOLUTIONS.items():
        if isinstance(layer, of_rank):
            return f"{rank}-D convolution"
    if isinstance(layer, layers.Dense):
        return "dense layer"
    return "batch normalization" if isinstance(layer, layers.BatchNormalization) else None


def _variables(layer: keras.Layer) -> dict[str, Any]:
    """The weights that have a counterpart, under PyTorch's names."""
    if isinstance(layer, layers.BatchNormalization):
        found = {"weight": layer.gamma, "bias": layer.beta}
        found |= {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
    else:
        found = {"weight": layer.kernel, "bias": layer.bias}
    return {name: variable for name, variable in found.items() if variable is not None}


def _counters(layer: keras.Layer) -> Iterator[Any]:
    if isinstance(layer, CountingBNLayer):
        yield layer.num_updates
    if isinstance(layer, MovingBNLayer):
        yield layer.num_steps


def _renorm_weights(layer: keras.Layer) -> tuple[Any, ...]:
    return (layer.moving_stddev, layer.renorm_mean, layer.renorm_stddev) if getattr(layer, "renorm", False) else ()


def _norm(layer: keras.Layer, name: str) -> Norm:
    rank = layer.input_spec.ndim
    if layer.axis % rank not in (1, rank - 1):
        raise ConfigError(
            f"port: expected channels on the last axis or axis 1, got {name} with axis={layer.axis} for input of "
            f"{rank} axes. PyTorch has no counterpart."
        )
    if getattr(layer, "fixed_training", None) is True and layer.trainable:
        raise ConfigError(
            f"port: expected layers that use their moving statistics in inference, got {name} with training=True, "
            "which normalizes by the batch always. Set its `fixed_training` to None first."
        )
    updates = int(layer.num_updates) if isinstance(layer, CountingBNLayer) else None
    biased = None if isinstance(layer, RangeBNLayer) else True
    return Norm(float(layer.epsilon), round(1 - layer.momentum, 15), updates, biased)


def _notes(layer: keras.Layer) -> tuple[str, ...]:
    """How training differs from that of PyTorch's layer."""
    notes = []
    who, equal = type(layer).__name__, "inference is equal, training is not."
    if isinstance(layer, RangeBNLayer):
        notes.append(
            f"{who} normalizes by the range of the batch in training, PyTorch's layer by its variance: {equal}"
        )
    if isinstance(layer, MovingBNLayer):
        notes.append(f"{who} normalizes by the moving statistics in training, PyTorch's layer by the batch's: {equal}")
    if isinstance(layer, BatchRenormLayer) or getattr(layer, "renorm", False):
        notes.append(f"{who} corrects the batch's statistics towards the moving ones in training: {equal}")
    if not layer.trainable or getattr(layer, "fixed_training", None) is False:
        notes.append(f"{who} is in inference always here; PyTorch's layer is so only after `.eval()`: {equal}")
    return tuple(notes)


def _to_pytorch(ndim: int) -> tuple[int, ...]:
    """Axes of (*kernel, in, out) as (out, in, *kernel); of a vector, itself."""
    return (0,) if ndim == 1 else (ndim - 1, ndim - 2, *range(ndim - 2))


def _to_keras(ndim: int) -> tuple[int, ...]:
    """The way back."""
    return (0,) if ndim == 1 else (*range(2, ndim), 1, 0)
