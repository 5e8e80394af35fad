"""Gradients of a layer on whatever backend Keras runs, and its numbers as float64 NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

# What a program makes of wrong input, and how a benchmark counts, does not depend on the backend.
once = pytest.mark.skipif(BACKEND != "tensorflow", reason="does not depend on the backend: runs on TensorFlow's")


def to_numpy(tensor: Any) -> np.ndarray:
    """Widen to float64, which holds every value of the narrower types exactly."""
    return np.asarray(
        keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64" if wide() else "float32")), np.float64
    )


def wide() -> bool:
    """Whether Keras computes in float64: on JAX and PyTorch its own reductions take float32."""
    return BACKEND == "tensorflow"


def train(
    layer: keras.Layer, x: Any, grad: Any, mask: Any = None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One training step without an optimizer: output, gradient of x, and gradients of the weights by name."""
    x, grad = (keras.ops.cast(value, layer.compute_dtype) for value in (x, grad))
    if not layer.built:
        layer.build(x.shape)
    y, grad_x, grads = _STEPS[BACKEND](layer, x, grad, mask)
    names = [weight.name for weight in layer.trainable_weights]
    return to_numpy(y), to_numpy(grad_x), {name: to_numpy(g) for name, g in zip(names, grads, strict=True)}


def _on_tensorflow(layer: keras.Layer, x: Any, grad: Any, mask: Any) -> tuple[Any, Any, list[Any]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, mask=mask)
    weights = [weight.value for weight in layer.trainable_weights]
    grads = tape.gradient(y, [x, *weights], output_gradients=grad)
    return y, grads[0], grads[1:]


def _on_jax(layer: keras.Layer, x: Any, grad: Any, mask: Any) -> tuple[Any, Any, list[Any]]:
    import jax

    fixed = [weight.value for weight in layer.non_trainable_variables]

    def run(x: Any, weights: list[Any]) -> tuple[Any, list[Any]]:
        return layer.stateless_call(weights, fixed, x, training=True, mask=mask)

    weights = [weight.value for weight in layer.trainable_variables]
    y, pull, moved = jax.vjp(run, x, weights, has_aux=True)
    for variable, value in zip(layer.non_trainable_variables, moved, strict=True):
        variable.assign(value)
    grad_x, grads = pull(grad)
    return y, grad_x, grads


def _on_torch(layer: keras.Layer, x: Any, grad: Any, mask: Any) -> tuple[Any, Any, list[Any]]:
    import torch

    x = x.detach().requires_grad_()
    weights = [weight.value for weight in layer.trainable_weights]
    y = layer(x, training=True, mask=mask)
    grads = torch.autograd.grad(y, [x, *weights], grad)
    return y.detach(), grads[0], list(grads[1:])


_STEPS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}
