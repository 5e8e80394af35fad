"""What a person may hand to a Keras layer; every message ends in the value received, as Keras's do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from mednorm.errors import ConfigError, ShapeError


def check_arguments(who: str, axis: object, momentum: object, epsilon: object, training: object) -> None:
    """Pass if a layer can be built with these.

    Raises:
        ConfigError: one is of the wrong type or out of its range.

    """
    if not isinstance(axis, Integral) or isinstance(axis, bool):
        raise ConfigError(
            f"{who}: argument `axis` should be one integer, the axis of the channels (-1, or 1 with channels first). "
            f"Received: axis={axis!r}"
        )
    check_number(who, "momentum", momentum, 0, 1, "It is the weight of the old value: PyTorch's 0.1 is 0.9 here. ")
    if not _is_number(epsilon) or not 0 < epsilon < math.inf:  # type: ignore[operator]
        raise ConfigError(
            f"{who}: argument `epsilon` should be a number above 0, added to the variance; the usual value is 1e-3. "
            f"Received: epsilon={epsilon!r}"
        )
    if training is not None and not isinstance(training, bool | np.bool_):
        raise ConfigError(
            f"{who}: argument `training` should be None (the call decides), True or False. "
            f"Received: training={training!r}"
        )


def check_number(who: str, name: str, value: object, low: float, high: float, advice: str = "") -> None:
    """Pass if `value` is a number in [low, high].

    Raises:
        ConfigError: it is not.

    """
    if not _is_number(value) or not low <= value <= high:  # type: ignore[operator]
        end = f"in [{low:g}, {high:g}]" if high < math.inf else f"of at least {low:g}"
        raise ConfigError(f"{who}: argument `{name}` should be a number {end}. {advice}Received: {name}={value!r}")


def check_whole(who: str, name: str, value: object, low: int) -> None:
    """Pass if `value` is a whole number of at least `low`.

    Raises:
        ConfigError: it is not.

    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise ConfigError(
            f"{who}: argument `{name}` should be a whole number of at least {low}. Received: {name}={value!r}"
        )


def refuse(who: str, arguments: dict[str, Any], **reasons: str) -> None:
    """Pass if none of the arguments named by `reasons` is asked for.

    Raises:
        ConfigError: one is.

    """
    for name, reason in reasons.items():
        if arguments.get(name):
            raise ConfigError(
                f"{who}: argument `{name}` is not supported: {reason}. Received: {name}={arguments[name]!r}"
            )


def check_axis(who: str, axis: int, shape: Sequence[int | None]) -> None:
    """Pass if input of this shape has channels of a known number on `axis`, and other axes to take statistics over.

    Raises:
        ShapeError: there is one axis only, `axis` is out of bounds, or the number of channels is not known.

    """
    if len(shape) < 2:
        raise ShapeError(f"{who}: expected a batch of at least 2 axes. Received: input_shape={tuple(shape)}")
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(
            f"{who}: axis {axis} is out of bounds for input of {len(shape)} axes. "
            f"Received: axis={axis}, input_shape={tuple(shape)}"
        )
    if shape[axis] is None:
        raise ShapeError(
            f"{who}: the number of channels, on axis {axis}, should be known when the layer is built: give "
            f"`keras.Input` the full shape of an image. Received: input_shape={tuple(shape)}"
        )


def mask_axis(who: str, axis: int, mask_shape: Sequence[int | None], shape: Sequence[int | None]) -> int:
    """Find the axis of the input that a mask lacks: the channels', or the last, as in one of `keras.layers.Masking`.

    Where both would do, the one whose lengths are equal rather than 1 or unknown, and then the channels'. Lengths of 1
    in the mask stand for any.

    Raises:
        ShapeError: the mask fits neither way.

    """
    channels, last = axis % len(shape), len(shape) - 1
    expected = {gone: (*shape[:gone], *shape[gone + 1 :]) for gone in (channels, last)}
    for fits in (operator.eq, _broadcasts):
        for gone, sizes in expected.items():
            if len(mask_shape) == len(sizes) and all(map(fits, mask_shape, sizes)):
                return gone
    wanted = expected[channels]
    raise ShapeError(
        f"{who}: the mask should be one dimension less than the inputs, their shape without axis {axis}: {wanted}. "
        f"Received: mask.shape={tuple(mask_shape)}, inputs.shape={tuple(shape)}"
    )


def _broadcasts(size: int | None, wanted: int | None) -> bool:
    return size in (1, None) or wanted is None or size == wanted


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
