"""The suite that every normalization layer passes.

A layer's test file says what the layer is and takes the suite over:

    from tests.harness import *

    @pytest.fixture(params=[LayerSpec(...), ...], ids=str)
    def spec(request):
        return request.param

The oracle is a float64 NumPy layer with `train`, `backward`, `evaluate`, `buffers`, and `weight` and `bias` to set.
"""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

CHANNELS = 4
SHAPES = [(9, CHANNELS), (5, CHANNELS, 11), (4, CHANNELS, 5, 6), (2, CHANNELS, 3, 4, 5)]
SMALL_SHAPES = [(3, CHANNELS), (2, CHANNELS, 1, 2, 1)]

# Errors are relative to the largest magnitude of the tensor compared. float64 and float32: some hundred roundings of
# 1.1e-16 and 6e-8, which leaves float32's 1e-5 as a few dozen of them on the sums of this size.
# bfloat16 keeps 8 bits: rounding the result once costs at most 2^-9 of its magnitude, and everything before it is
# computed in float32, so 2^-8 allows that one rounding and a tie's neighbour, and would catch any bfloat16 arithmetic
# inside. Vectors over channels (parameters, buffers and their gradients) are float32 there and held to float32's error.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
ALL_SMALL_SHAPES = pytest.mark.parametrize("shape", SMALL_SHAPES, ids=lambda shape: "x".join(map(str, shape)))

COMPILERS = ["aot_eager", *(["inductor"] if shutil.which("c++") or shutil.which("g++") else [])]


@dataclass(frozen=True)
class LayerSpec:
    """One layer with one set of options, its oracle, and the layer of torch whose state_dict it shares, if one does.

    `derivative` is False where the gradient in training deliberately is not the derivative of the output, `compiles`
    where the way the layer is called here is not one that compiles.
    """

    name: str
    layer: Callable[..., nn.Module]
    oracle: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle_options: Mapping[str, Any] | None = None
    torch_layer: Callable[..., nn.Module] | None = nn.BatchNorm3d
    torch_options: Mapping[str, Any] = field(default_factory=dict)
    derivative: bool = True
    compiles: bool = True

    def __str__(self) -> str:
        return self.name

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
        """Build layer and oracle with the same parameters, away from 1 and 0 so that both matter."""
        parameters = torch.float64 if dtype == torch.float64 else torch.float32
        layer = self.layer(CHANNELS, **self.options, dtype=parameters)
        oracle = self.oracle(CHANNELS, **(self.options if self.oracle_options is None else self.oracle_options))
        if layer.weight is not None:
            with torch.no_grad():
                layer.weight.copy_(torch.tensor([1.5, 0.5, -0.75, 1.0])[:CHANNELS])
                layer.bias.copy_(torch.tensor([0.25, -0.5, 0.125, 1.0])[:CHANNELS])
            oracle.weight, oracle.bias = to_numpy(layer.weight), to_numpy(layer.bias)
        return layer, oracle


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Widen to float64, which holds every value of the narrower types exactly."""
    return tensor.detach().double().numpy()


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Draw values whose mean and spread differ by channel."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.arange(shape[1], dtype=torch.float64).view(1, -1, *([1] * (len(shape) - 2)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * (0.5 + channel) + 2 * channel - 3
    return values.to(dtype)


def assert_equal_to(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray, tolerance: float) -> None:
    """Compare shape, and values to `tolerance` times the largest expected magnitude."""
    actual, expected = (to_numpy(v) if isinstance(v, Tensor) else np.asarray(v, float) for v in (actual, expected))
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    error = np.abs(actual - expected).max(initial=0)
    scale = np.abs(expected).max(initial=0)
    assert error <= tolerance * scale, f"error {error:.3g} at scale {scale:.3g}: {error / scale:.3g} relative"


def train(layer: nn.Module, x: Tensor, grad: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the output and the gradient of x."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x, **inputs)
    y.backward(grad)
    assert x.grad is not None
    return y.detach(), x.grad


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, those outside the state_dict too, as bytes."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in named}


def vectors_tolerance(dtype: torch.dtype) -> float:
    """Parameters and buffers are never narrower than float32 in this suite."""
    return min(TOLERANCE[dtype], TOLERANCE[torch.float32])


def skip_unless(applies: bool, reason: str) -> None:
    """Skip what this layer deliberately is not."""
    if not applies:
        pytest.skip(reason)


def peer_of(spec: LayerSpec) -> nn.Module:
    """The layer of torch with the same state_dict."""
    if spec.torch_layer is None:
        pytest.skip("no layer of torch has these keys")
    return spec.torch_layer(CHANNELS, **spec.torch_options)


def as_function(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of input and parameters that moves no statistic, and values to differentiate it at."""
    names = [name for name, _ in layer.named_parameters()]
    parameters = [parameter.detach().requires_grad_() for parameter in layer.parameters()]

    def function(x, *values):
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        return torch.func.functional_call(layer, {**buffers, **dict(zip(names, values, strict=True))}, (x,))

    return function, (images(shape, torch.float64).requires_grad_(), *parameters)


@DTYPES
@ALL_SHAPES
def test_training_output_is_the_oracles_in_the_inputs_type(spec, shape, dtype):
    layer, oracle = spec.build(dtype)
    x = images(shape, dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert_equal_to(y, oracle.train(to_numpy(x)), TOLERANCE[dtype])


@DTYPES
@ALL_SHAPES
def test_gradients_of_input_weight_and_bias_are_the_oracles(spec, shape, dtype):
    layer, oracle = spec.build(dtype)
    x, grad = images(shape, dtype), torch.randn(shape).to(dtype)
    _, grad_x = train(layer, x, grad)
    oracle.train(to_numpy(x))
    expected = oracle.backward(to_numpy(grad))
    assert grad_x.dtype == dtype
    assert_equal_to(grad_x, expected[0], TOLERANCE[dtype])
    for parameter, wanted in zip(layer.parameters(), expected[1:], strict=False):
        assert_equal_to(parameter.grad, wanted, vectors_tolerance(dtype))


@DTYPES
@ALL_SHAPES
def test_evaluation_and_buffers_after_five_steps_are_the_oracles(spec, shape, dtype):
    layer, oracle = spec.build(dtype)
    for step in range(5):
        batch = images(shape, dtype, seed=step) * (1 + step)
        layer(batch)
        oracle.train(to_numpy(batch))
    for name, expected in oracle.buffers().items():
        assert_equal_to(getattr(layer, name), expected, vectors_tolerance(dtype))
    before = bytes_of(layer)
    x = images(shape, dtype, seed=99)
    y = layer.eval()(x)
    assert y.dtype == dtype
    assert_equal_to(y, oracle.evaluate(to_numpy(x)), TOLERANCE[dtype])
    assert bytes_of(layer) == before


@pytest.mark.parametrize("with_channels", [True, False], ids=["channels", "no channels"])
def test_masked_outputs_gradients_and_buffers_of_two_steps_are_the_oracles(spec, with_channels):
    layer, oracle = spec.build(torch.float64)
    shape = SHAPES[2] if with_channels else (SHAPES[2][0], *SHAPES[2][2:])
    for step in range(2):
        x, grad = images(SHAPES[2], torch.float64, seed=step), torch.randn(SHAPES[2], dtype=torch.float64)
        mask = torch.rand(shape) < 0.7
        y, grad_x = train(layer, x, grad, mask=mask)
        assert_equal_to(y, oracle.train(to_numpy(x), mask.numpy()), TOLERANCE[torch.float64])
        expected = oracle.backward(to_numpy(grad))
        assert_equal_to(grad_x, expected[0], TOLERANCE[torch.float64])
        for parameter, wanted in zip(layer.parameters(), expected[1:], strict=False):
            assert_equal_to(parameter.grad, wanted, TOLERANCE[torch.float64])
    for name, wanted in oracle.buffers().items():
        assert_equal_to(getattr(layer, name), wanted, TOLERANCE[torch.float64])


def test_nan_outside_the_mask_reaches_nothing_that_is_kept(spec):
    mask = torch.rand(SHAPES[2][0], *SHAPES[2][2:]) < 0.7
    kept = mask.unsqueeze(1).expand(SHAPES[2])
    clean, grad = images(SHAPES[2], torch.float64), torch.randn(SHAPES[2], dtype=torch.float64).masked_fill(~kept, 0)
    results = []
    for x in (clean, clean.masked_fill(~kept, torch.nan)):
        layer, _ = spec.build(torch.float64)
        y, grad_x = train(layer, x, grad, mask=mask)
        results.append((y[kept], grad_x[kept], *(p.grad for p in layer.parameters()), *layer.buffers()))
    for with_nan, without in zip(results[1], results[0], strict=True):
        assert_equal_to(with_nan, without, TOLERANCE[torch.float64])


@ALL_SMALL_SHAPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_are_the_finite_differences_of_the_output(spec, shape, training):
    skip_unless(spec.derivative or not training, "the gradient deliberately is not the derivative of the output")
    function, sources = as_function(spec.build(torch.float64)[0].train(training), shape)
    assert torch.autograd.gradcheck(function, sources)


@ALL_SMALL_SHAPES
def test_second_derivatives_in_training_are_the_finite_differences_of_the_gradients(spec, shape):
    skip_unless(spec.derivative, "the gradient deliberately is not the derivative of the output")
    function, sources = as_function(spec.build(torch.float64)[0], shape)
    assert torch.autograd.gradgradcheck(function, sources)


def test_gradients_kept_for_differentiation_equal_the_ordinary_ones(spec):
    skip_unless(spec.derivative, "the gradient deliberately is not the derivative of the output")
    layer, _ = spec.build(torch.float64)
    twin = copy.deepcopy(layer)
    x = images(SHAPES[2], torch.float64).requires_grad_()
    grad = torch.randn_like(x)
    plain = torch.autograd.grad(twin(x), (x, *twin.parameters()), grad)
    kept = torch.autograd.grad(layer(x), (x, *layer.parameters()), grad, create_graph=True)
    assert kept[0].requires_grad
    for ours, wanted in zip(kept, plain, strict=True):
        assert_equal_to(ours, wanted, TOLERANCE[torch.float64])


def test_torch_loads_the_layers_state_with_every_key_and_byte(spec):
    layer, _ = spec.build()
    layer(images(SHAPES[3]))
    peer = peer_of(spec)
    peer.load_state_dict(layer.state_dict(), strict=True)
    assert list(peer.state_dict()) == list(layer.state_dict())
    theirs = bytes_of(peer)
    assert theirs == {name: value for name, value in bytes_of(layer).items() if name in theirs}


def test_the_layer_loads_torchs_state_with_every_key_and_byte(spec):
    layer, _ = spec.build()
    peer = peer_of(spec)
    peer(images(SHAPES[3]))
    layer.load_state_dict(peer.state_dict(), strict=True)
    ours = bytes_of(layer)
    assert {name: ours[name] for name in bytes_of(peer)} == bytes_of(peer)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copy_continues_exactly_where_the_layer_stood(spec, way):
    layer, _ = spec.build()
    layer(images(SHAPES[2]))
    twin = pickle.loads(pickle.dumps(layer)) if way == "pickle" else copy.deepcopy(layer)
    x, grad = images(SHAPES[2], seed=1), torch.randn(SHAPES[2])
    for ours, wanted in zip(train(twin, x, grad), train(layer, x, grad), strict=True):
        assert torch.equal(ours, wanted)
    assert bytes_of(twin) == bytes_of(layer)
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_training_a_deep_copy_leaves_the_original_as_it_was(spec):
    layer, _ = spec.build()
    layer(images(SHAPES[2]))
    before = bytes_of(layer)
    copy.deepcopy(layer)(images(SHAPES[2], seed=1))
    assert bytes_of(layer) == before


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(SHAPES[2], torch.channels_last), (SHAPES[3], torch.channels_last_3d)],
    ids=["2d", "3d"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_channels_last_input_gives_the_same_numbers_in_channels_last(spec, shape, layout, training):
    layer, _ = spec.build(torch.float64)
    twin = copy.deepcopy(layer)
    x, grad = images(shape, torch.float64), torch.randn(shape, dtype=torch.float64)
    results = train(layer.train(training), x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout))
    for ours, wanted in zip(results, train(twin.train(training), x, grad), strict=True):
        assert ours.is_contiguous(memory_format=layout)
        assert_equal_to(ours, wanted, TOLERANCE[torch.float64])
    for ours, wanted in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_equal_to(ours.grad, wanted.grad, TOLERANCE[torch.float64])


STRIDES = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: torch.stack((x, x + 1), -1).flatten(-2)[..., ::2],
    "flipped channels": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
    "repeated without copying": lambda x: x[:, :, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("strides", list(STRIDES))
def test_strides_of_input_and_gradient_do_not_change_the_numbers(spec, strides):
    layer, _ = spec.build(torch.float64)
    twin = copy.deepcopy(layer)
    x = STRIDES[strides](images(SHAPES[2], torch.float64))
    grad = STRIDES[strides](torch.randn(SHAPES[2], dtype=torch.float64))
    assert not x.is_contiguous()
    for ours, wanted in zip(train(layer, x, grad), train(twin, x.contiguous(), grad.contiguous()), strict=True):
        assert_equal_to(ours, wanted, TOLERANCE[torch.float64])
    for ours, wanted in zip(layer.buffers(), twin.buffers(), strict=True):
        assert_equal_to(ours, wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("shape", [(0, CHANNELS), (0, CHANNELS, 3, 3), (2, CHANNELS, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_empty_batch_gives_zero_gradients_and_moves_no_statistic(spec, shape, training):
    layer, _ = spec.build()
    layer(images(SHAPES[2]))
    layer.train(training)
    before = bytes_of(layer)
    y, grad_x = train(layer, torch.empty(shape), torch.empty(shape))
    assert y.shape == grad_x.shape == shape
    assert all(torch.equal(parameter.grad, torch.zeros(CHANNELS)) for parameter in layer.parameters())
    assert bytes_of(layer) == before


def test_input_and_gradient_are_left_as_they_were(spec):
    layer, _ = spec.build()
    x, grad = images(SHAPES[2]), torch.randn(SHAPES[2])
    x_before, grad_before = x.clone(), grad.clone()
    train(layer, x, grad)
    assert torch.equal(x, x_before)
    assert torch.equal(grad, grad_before)


# torch's compiler warns about itself: it instantiates the autograd.Function it traces, and still uses torch.jit.
COMPILING = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning",
)


@COMPILING
def test_training_compiles_without_a_break_to_the_same_numbers(spec):
    skip_unless(spec.compiles, "called in this way it is not compiled")
    assert_compiles_to_the_same_numbers(spec, "aot_eager")


def assert_compiles_to_the_same_numbers(spec: LayerSpec, backend: str) -> None:
    """Train three steps and evaluate, compiled and not; `fullgraph` refuses any break.

    More than one step, because a backward pass that is compiled may read a running statistic after it has moved.
    """
    torch._dynamo.reset()
    layer, _ = spec.build()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    tolerance = TOLERANCE[torch.float32]
    for step in range(3):
        x, grad = images(SHAPES[2], seed=step), torch.randn(SHAPES[2])
        for ours, wanted in zip(train(compiled, x, grad), train(twin, x, grad), strict=True):
            assert_equal_to(ours, wanted, tolerance)
        for ours, wanted in zip(compiled.parameters(), twin.parameters(), strict=True):
            assert_equal_to(ours.grad, wanted.grad, tolerance)
    for name, wanted in twin.named_buffers():
        assert_equal_to(dict(layer.named_buffers())[name], wanted, tolerance)
    compiled.eval()
    twin.eval()
    assert_equal_to(compiled(x), twin(x), tolerance)


__all__ = [
    "CHANNELS",
    "COMPILERS",
    "COMPILING",
    "SHAPES",
    "TOLERANCE",
    "LayerSpec",
    "assert_compiles_to_the_same_numbers",
    "assert_equal_to",
    "bytes_of",
    "images",
    "to_numpy",
    "train",
    *(name for name in dir() if name.startswith("test_")),
]
