"""Batch normalization followed by ReLU, forward and backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mednorm.bench.cases import Case, MissingPeerError, Peer, with_allocators
from mednorm.bench.floor import Floor, tensors
from mednorm.bench.timing import milliseconds

SHAPES = (
    (2, 32, 64, 64, 64),
    (8, 64, 32, 32, 32),
    (32, 64, 56, 56),
    (128, 32, 28, 28),
    (256, 64, 14, 14),
    (4, 16, 128, 128),
    (512, 256),
)
CHANNELS_LAST = ((4, 16, 128, 128),)
_NORMS: dict[int, Callable[[int], nn.Module]] = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
PEERS = (
    *with_allocators(("torch", "torch-inplace", "torch-compile", "mednorm")),
    Peer("keras-tensorflow", backend="tensorflow"),
    Peer("keras-jax", backend="jax"),
)


class Step:
    """A layer's forward and backward pass, and the floor on tensors of the same shape.

    Args:
        call: does both passes; it is called twice unmeasured.
        floor: of the same tensors.
        steps: measure so many steps in a row, for layers that do not do the same in each.

    """

    def __init__(self, call: Callable[[], Any], floor: Floor, steps: int | None = None) -> None:
        self._call, self._floor, self._steps = call, floor, steps
        for _ in range(steps or 2):
            call()

    def round(self, seconds: float) -> dict[str, float]:
        """Time the step and the floor."""
        floor = self._floor.milliseconds(seconds / 2)
        return {"milliseconds": milliseconds(self._call, seconds, self._steps), "floor": floor}

    def facts(self, shared: Path) -> dict[str, Any]:
        """Say nothing more."""
        return {}


def name_of(shape: tuple[int, ...]) -> str:
    """Return a shape as tables show it."""
    return "×".join(map(str, shape)) + (" channels_last" if shape in CHANNELS_LAST else "")


def cases(smoke: bool) -> list[Case]:
    """Return a case for each shape."""
    shapes = ((4, 8, 14, 14),) if smoke else SHAPES
    return [
        Case("layers", name_of(shape), PEERS, {"shape": list(shape), "channels_last": shape in CHANNELS_LAST})
        for shape in shapes
    ]


def build(of: dict[str, Any], peer: str) -> Step:
    """Build the layer of a peer.

    Raises:
        MissingPeerError: what it needs is not installed.

    """
    x, grad = tensors(of["shape"], of["channels_last"])
    floor = Floor(x, grad)
    if peer.startswith("keras"):
        return Step(_keras(peer, x, grad), floor)
    return Step(backward_of(_layer(peer, of["shape"]), x, grad), floor)


def backward_of(layer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], Any]:
    """Return a training step of a layer: the gradients are returned, and added to none from before."""
    x.requires_grad_()
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []

    def step() -> Any:
        return torch.autograd.grad(layer(x), [x, *parameters], grad)

    return step


def plain_norm(shape: list[int]) -> nn.Module:
    """Return PyTorch's batch normalization for a shape."""
    return _NORMS[len(shape)](shape[1])


def _layer(peer: str, shape: list[int]) -> nn.Module:
    from mednorm import BatchNorm

    if peer == "mednorm":
        return BatchNorm(shape[1], activation="relu")
    layer = nn.Sequential(plain_norm(shape), nn.ReLU(inplace=peer == "torch-inplace"))
    if peer == "torch-compile":
        layer.compile()
    return layer


def _keras(peer: str, x: Tensor, grad: Tensor) -> Callable[[], Any]:
    """Return a step under the backend's own compiled function, channels last as is Keras's way."""
    try:
        import keras
    except ImportError as error:
        raise MissingPeerError(f"Keras on its backend: {error}") from None
    values, gradient = (each.movedim(1, -1).contiguous().numpy() for each in (x, grad))
    layer = keras.layers.BatchNormalization()
    layer.build(values.shape)
    return _tensorflow(layer, values, gradient) if peer == "keras-tensorflow" else _jax(layer, values, gradient)


def _tensorflow(layer: Any, values: Any, gradient: Any) -> Callable[[], Any]:
    tf: Any = importlib.import_module("tensorflow")
    x, upstream = tf.constant(values), tf.constant(gradient)

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.relu(layer(x, training=True))
        weights = [variable.value for variable in layer.trainable_variables]
        return y, tape.gradient(y, [x, *weights], output_gradients=upstream)

    def done() -> Any:
        y, gradients = step(x, upstream)
        return y[(0,) * (len(y.shape) - 1)].numpy(), [each.numpy() for each in gradients[1:]]

    return done


def _jax(layer: Any, values: Any, gradient: Any) -> Callable[[], Any]:
    import jax

    x, upstream = jax.numpy.asarray(values), jax.numpy.asarray(gradient)
    weights, state = ([each.value for each in kind] for kind in _variables(layer))

    @jax.jit
    def step(x: Any, weights: Any, state: Any, upstream: Any) -> Any:
        def forward(x: Any, weights: Any) -> Any:
            y, moved = layer.stateless_call(weights, state, x, training=True)
            return jax.nn.relu(y), moved

        y, pull, moved = jax.vjp(forward, x, weights, has_aux=True)
        return y, pull(upstream), moved

    return partial(_blocked, jax, step, x, weights, state, upstream)


def _blocked(jax: Any, step: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(step(*arguments))


def _variables(layer: Any) -> tuple[list[Any], list[Any]]:
    return layer.trainable_variables, layer.non_trainable_variables
