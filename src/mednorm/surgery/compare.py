"""Run a Keras network and its PyTorch counterpart on the same input, for `mednorm.port`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mednorm.errors import ConfigError, DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """Both networks and the input, which like all outputs here is in Keras's layout.

    Attributes:
        x: the input.
        run_keras: how the Keras network runs, in inference.
        run_pytorch: how the other does, in its own layout.
        channels_last: whether Keras's layout has the channels of images last.
        ending: the function that the Keras network ends in, softmax or sigmoid; None for another or none.

    """

    x: Array
    run_keras: Callable[[Array], Array]
    run_pytorch: Callable[[Array], Array]
    channels_last: bool
    ending: str | None

    def check(self) -> None:
        """Pass if both take the input and their outputs have one shape.

        Raises:
            ConfigError: they do not.

        """
        ours, theirs = self._of_keras().shape, self._of_pytorch().shape
        if ours != theirs:
            raise ConfigError(
                f"port: expected outputs of the same shape, got {ours} from Keras and {theirs} from PyTorch, in "
                f"Keras's layout, for input {self.x.shape}. Compare paddings, strides and pooling. Nothing was written."
            )

    def compare(self, to_keras: bool) -> tuple[float, float, list[str]]:
        """Return the largest difference, the largest output of the source, and what to say of them."""
        ours, theirs = self._of_keras(), self._of_pytorch()
        notes = []
        if self.ending is not None:
            made = _softmax(theirs) if self.ending == "softmax" else 0.5 + 0.5 * np.tanh(theirs / 2)
            if _difference(ours, made) < _difference(ours, theirs):
                theirs = made
                notes.append(
                    f"Keras's network ends in {self.ending}, PyTorch's in logits: {self.ending} of them was compared."
                )
        scale = float(np.abs(theirs if to_keras else ours).max(initial=0))
        return _difference(ours, theirs), scale, notes

    def _of_keras(self) -> Array:
        return self._taking_input("Keras", lambda: self.run_keras(self.x))

    def _of_pytorch(self) -> Array:
        x = np.moveaxis(self.x, -1, 1) if self.channels_last and self.x.ndim > 2 else self.x
        y = self._taking_input("PyTorch", lambda: self.run_pytorch(x))
        return np.moveaxis(y, 1, -1) if self.channels_last and y.ndim > 2 else y

    def _taking_input(self, side: str, run: Callable[[], Array]) -> Array:
        try:
            return run()
        except ConfigError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"port: expected the {side} side to take input of shape {self.x.shape} (in Keras's layout), got: "
                f"{error} Compare the layers of both, or pass example=. Nothing was written."
            ) from error


def random_input(shape: tuple[int, ...]) -> Array:
    """Draw from a standard normal distribution, always the same numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def checked_input(example: ArrayLike) -> Array:
    """Return an example as float32.

    Raises:
        DataError: it is empty or not finite.

    """
    x = np.asarray(example).astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(x))
    if bad or not x.size:
        raise DataError(f"port: expected finite numbers in example, got shape {x.shape} with {bad} that are not.")
    return x


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    made: Array = powers / powers.sum(-1, keepdims=True)
    return made


def _difference(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max(initial=0))
