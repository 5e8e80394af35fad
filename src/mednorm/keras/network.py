"""The article's network."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import keras
from keras import layers

from mednorm.errors import ConfigError
from mednorm.keras.arguments import check_whole
from mednorm.keras.batch import BNLayer
from mednorm.keras.moving import MovingBNLayer
from mednorm.keras.range import RangeBNLayer
from mednorm.keras.renorm import BatchRenormLayer

NORMALIZATIONS: dict[str, Callable[[], keras.Layer]] = {
    "bn": BNLayer,
    "keras": layers.BatchNormalization,
    "range": RangeBNLayer,
    "moving": MovingBNLayer,
    "renorm": BatchRenormLayer,
}


def article_cnn(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    normalization: str | Callable[[], keras.Layer] | None = "bn",
) -> keras.Sequential:
    """Build and compile the article's network: two convolutions, each normalized, and a dense layer.

    Conv 32 3×3 ReLU, norm, conv 64 3×3 ReLU, norm, max-pool 2×2, flatten, dense softmax; compiled with Adam, sparse
    categorical cross-entropy and accuracy. Call ``compile`` again for other choices.

    Args:
        num_classes: of the labels, which are whole numbers from 0.
        input_shape: (height, width, channels), each side at least 6.
        normalization: "bn" (`BNLayer`), "keras" (`keras.layers.BatchNormalization`), "range", "moving", "renorm", None
            for none, or a function of no arguments that makes a layer, such as
            ``lambda: BNLayer(momentum=0.9)`` or `keras.layers.LayerNormalization`.

    Raises:
        ConfigError: an argument is out of its range, or the name of no normalization.

    Example:
        >>> model = article_cnn(num_classes=2)
        >>> [type(layer).__name__ for layer in model.layers]
        ['Conv2D', 'BNLayer', 'Conv2D', 'BNLayer', 'MaxPooling2D', 'Flatten', 'Dense']
        >>> model.count_params(), article_cnn(num_classes=2, normalization=None).count_params()
        (37634, 37250)

    """
    check_whole("article_cnn", "num_classes", num_classes, 1)
    _check_input_shape(input_shape)
    normalized = _normalization(normalization)
    model = keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(32, (3, 3), activation="relu"),
            *normalized(),
            layers.Conv2D(64, (3, 3), activation="relu"),
            *normalized(),
            layers.MaxPooling2D((2, 2)),
            layers.Flatten(),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _normalization(choice: str | Callable[[], keras.Layer] | None) -> Callable[[], list[keras.Layer]]:
    if choice is None:
        return list
    if isinstance(choice, keras.Layer):
        raise ConfigError(
            "article_cnn: argument `normalization` should make a layer for each of its two places, such as "
            f"`lambda: {type(choice).__name__}(…)`. Received: normalization={choice!r}"
        )
    if callable(choice):
        return lambda: [choice()]
    if choice not in NORMALIZATIONS:
        near = difflib.get_close_matches(str(choice), NORMALIZATIONS, n=1)
        advice = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"article_cnn: argument `normalization` should be one of {', '.join(map(repr, NORMALIZATIONS))}, None or a "
            f"function that makes a layer. {advice}Received: normalization={choice!r}"
        )
    return lambda: [NORMALIZATIONS[choice]()]


def _check_input_shape(shape: tuple[int, int, int]) -> None:
    try:
        height, width, channels = (int(size) for size in shape)
    except (TypeError, ValueError):
        height = width = channels = 0
    if min(height, width) < 6 or channels < 1:
        raise ConfigError(
            "article_cnn: argument `input_shape` should be (height, width, channels) with sides of at least 6, so that "
            f"something is left after two convolutions and the pooling. Received: input_shape={shape!r}"
        )
