"""The Triton kernels against the oracle and PyTorch's operators: on a GPU, or in Triton's interpreter where none is."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mednorm import Moments
from mednorm.kernels import aten, cuda
from mednorm.kernels.affine import Affine
from tests.harness import CHANNELS, SHAPES, assert_equal_to, images, to_numpy
from tests.oracle import batch_norm as oracle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HINDRANCE = cuda.unavailable(DEVICE)
with_triton = pytest.mark.skipif(HINDRANCE is not None, reason=f"{HINDRANCE} (the interpreter runs in a test below)")
triton_installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

EPS = 1e-3
NAMES = {None: None, 0.0: "relu", 0.3: "leaky_relu"}
SLOPES = pytest.mark.parametrize("slope", list(NAMES), ids=str)
ODD = [(1, 3, 17, 1), (2, 67, 3), (2, 2, 50, 53), (1, 1, 1)]  # one sample; more channels than a block; a ragged tile
CASES = [(shape, slope, len(shape) % 2 == 0) for shape in SHAPES for slope in NAMES]
CASES += [(shape, 0.3, channels_last) for shape in ODD for channels_last in (False, True)]
# Two roundings of the result's type. The interpreter cuts bfloat16 off where a GPU rounds it.
NARROW = {torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8, torch.float16: 2.0**-10, torch.float32: 1e-5}
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy speaks of NaN, in the interpreter


def laid_out(tensor, channels_last):
    tensor = tensor.to(DEVICE)
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else tensor


def parameters(channels, dtype):
    weight = torch.tensor([1.5, 0.5, -0.75, 1.0], dtype=dtype).repeat(channels)[:channels]
    return weight.to(DEVICE), torch.linspace(-0.5, 1, channels, dtype=dtype).to(DEVICE)


def batch_norm(x, grad, slope):
    """Batch normalization of what the kernels measured, forward and backward, as a layer composes it from them."""
    count = x.numel() // x.shape[1]
    mean, m2, _, _ = cuda.measure(x)
    weight, bias = parameters(x.shape[1], mean.dtype)
    invstd = (m2 / count + EPS).rsqrt()
    affine = Affine(mean, weight * invstd, bias, slope)
    y = cuda.normalize(x, affine)
    total, products = cuda.sums(grad, x, affine)
    k, m = affine.scale * products * invstd**2 / count, affine.scale * total / count
    return y, cuda.apply(grad, x, affine, k, m), products * invstd, total


def found_by_the_oracle(x, grad, slope):
    weight, bias = (to_numpy(p.cpu()) for p in parameters(x.shape[1], torch.float64))
    done = oracle.forward(to_numpy(x.cpu()), weight, bias, eps=EPS, activation=NAMES[slope], negative_slope=0.3)
    return done.y, *oracle.backward(done, to_numpy(grad.cpu()))


@with_triton
@pytest.mark.parametrize(("shape", "slope", "channels_last"), CASES, ids=str)
def test_output_and_gradients_are_the_oracles(shape, slope, channels_last):
    x, grad = (laid_out(images(shape, torch.float64, seed), channels_last) for seed in (0, 1))
    for ours, wanted in zip(batch_norm(x, grad, slope), found_by_the_oracle(x, grad, slope), strict=True):
        # An entry that is all cancellation (one value a channel has no gradient) is held to the gradient that went in.
        scale = max(abs(wanted).max(), 1e-2)
        assert abs(to_numpy(ours.cpu()) - wanted).max() <= 1e-12 * scale


@with_triton
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", list(NARROW), ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_narrow_types_round_the_result_alone(dtype, channels_last):
    x, grad = (laid_out(images(SHAPES[2], dtype, seed), channels_last) for seed in (0, 1))
    ours = batch_norm(x, grad, 0.3)
    assert [t.dtype for t in ours] == [dtype, dtype, torch.float32, torch.float32]
    for found, wanted in zip(ours, found_by_the_oracle(x, grad, 0.3), strict=True):
        assert_equal_to(found.cpu(), wanted, NARROW[found.dtype])


@with_triton
@SLOPES
def test_output_and_gradients_are_those_of_pytorchs_operators(slope):
    x, grad = (laid_out(images(SHAPES[3], torch.float32, seed), False) for seed in (0, 1))
    weight, bias = parameters(CHANNELS, torch.float32)
    moments = Moments.of(x)
    y = aten.normalize(x, moments, weight, bias, EPS, slope)
    back = aten.normalize_backward(grad, x, moments, weight, bias, EPS, slope, None)
    for ours, wanted in zip(batch_norm(x, grad, slope), (y, *back), strict=True):
        assert_equal_to(ours.cpu(), wanted.cpu(), 2e-6)


@with_triton
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_many_tiles_a_program_and_many_programs_a_channel_add_up(channels_last, monkeypatch):
    monkeypatch.setattr(cuda, "VALUES", 64)
    monkeypatch.setattr(cuda, "PROGRAMS", 4)
    x, grad = (laid_out(images((7, 3, 9, 11), torch.float64, seed), channels_last) for seed in (0, 1))
    tiling = cuda._Tiling.of(x)
    assert min(tiling.each, tiling.parts) >= 2
    for ours, wanted in zip(batch_norm(x, grad, 0.0), found_by_the_oracle(x, grad, 0.0), strict=True):
        assert_equal_to(ours.cpu(), wanted, 1e-12)


@with_triton
@pytest.mark.parametrize(
    ("background", "tolerance"), [(0, 5e-7), (64, 33 * 2.0**-23)], ids=["everywhere", "after a first tile of 0"]
)
def test_a_spread_of_1_about_ten_thousand_keeps_its_digits(background, tolerance, monkeypatch):
    monkeypatch.setattr(cuda, "VALUES", 64)
    monkeypatch.setattr(cuda, "PROGRAMS", 1)
    x = 1e4 + torch.randn(1, 1, 5000)
    x[:, :, :background] = 0
    assert cuda._Tiling.of(x).each == cuda.TILES_EACH  # as many as ever
    mean, m2, minimum, maximum = (t.cpu() for t in cuda.measure(x.to(DEVICE)))
    values = x.double().transpose(0, 1).flatten(1)
    assert_equal_to(mean, values.mean(1), 1e-7)
    assert_equal_to(m2, values.var(1, correction=0) * values.shape[1], tolerance)
    assert torch.equal(minimum, x.amin((0, 2)))
    assert torch.equal(maximum, x.amax((0, 2)))


@quiet
@with_triton
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_nan_and_infinity_reach_their_own_channel_as_in_pytorch(channels_last):
    x = images((2, 4, 5, 7))
    x[1, 0, 2, 3], x[0, 1, 4, 6], x[1, 2, 0, 0] = math.nan, math.inf, -math.inf
    mean, _, minimum, maximum = (t.cpu() for t in cuda.measure(laid_out(x, channels_last)))
    torch.testing.assert_close(minimum, x.amin((0, 2, 3)), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(maximum, x.amax((0, 2, 3)), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), equal_nan=True)


@quiet
@with_triton
@SLOPES
def test_nan_and_infinity_pass_the_activation_and_its_gradient_as_in_pytorch(slope):
    before = torch.tensor([[math.nan, -math.inf, math.inf, -2.0, -0.0, 0.0, 3.0]]).T.contiguous()
    grad = torch.arange(1.0, 8.0)[:, None]
    zero, one = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    affine = Affine(zero, one, zero, slope)
    wanted, grad_before = before, grad
    if slope is not None:
        wanted = aten.activate_(before.clone(), slope)
        grad_before = (
            torch.ops.aten.threshold_backward(grad, before, 0)
            if slope == 0
            else torch.ops.aten.leaky_relu_backward(grad, before, slope, False)
        )
    x = before.to(DEVICE)
    torch.testing.assert_close(cuda.normalize(x, affine).cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    assert cuda.sums(grad.to(DEVICE), x, affine)[0].item() == pytest.approx(grad_before.sum().item(), rel=1e-6)
    finite = before.isfinite()  # x itself enters the formula, if times 0: elsewhere it is NaN
    through = cuda.apply(grad.to(DEVICE), x, affine, zero, zero).cpu()
    assert torch.equal(through[finite], grad_before[finite])


@with_triton
def test_the_backward_pass_sees_the_very_signs_of_the_forward_pass():
    x = torch.randn(4, 2, 999).to(DEVICE)
    mean, m2, _, _ = cuda.measure(x)
    scale = (m2 / (4 * 999)).rsqrt() * 1e-3
    near = -(x[0, :, 0] - mean) * scale  # puts many values within a rounding of 0
    affine = Affine(mean, scale, near, 0.0)
    positive = (cuda.normalize(x, affine) > 0).sum((0, 2))
    assert torch.equal(cuda.sums(torch.ones_like(x), x, affine)[0], positive.float())


@with_triton
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_the_order_of_memory_is_kept(channels_last):
    x = laid_out(images(SHAPES[3]), channels_last)
    y, grad_x, _, _ = batch_norm(x, torch.ones_like(x), 0.0)
    assert y.stride() == x.stride() == grad_x.stride()


@with_triton
def test_other_strides_of_input_and_gradient_change_no_value():
    x, grad = (laid_out(images(SHAPES[2], torch.float32, seed), False) for seed in (0, 1))
    wide = x.repeat_interleave(2, 3)[..., ::2]
    assert not wide.is_contiguous()
    for ours, wanted in zip(batch_norm(wide, laid_out(grad, True), 0.3), batch_norm(x, grad, 0.3), strict=True):
        assert torch.equal(ours, wanted)
    one = torch.ones((), device=DEVICE).expand_as(x)
    for ours, wanted in zip(batch_norm(x, one, 0.3), batch_norm(x, torch.ones_like(x), 0.3), strict=True):
        assert torch.equal(ours, wanted)


@with_triton
def test_the_same_input_gives_the_same_bits():
    x, grad = torch.randn(2, 3, 40, 41).to(DEVICE), torch.randn(2, 3, 40, 41).to(DEVICE)
    for first, second in zip(batch_norm(x, grad, 0.0), batch_norm(x, grad, 0.0), strict=True):
        assert torch.equal(first, second)


@with_triton
def test_nothing_to_measure_gives_the_moments_of_nothing():
    x = torch.empty(0, 3, 4, device=DEVICE)
    assert [t.tolist() for t in cuda.measure(x)] == [[0.0] * 3, [0.0] * 3, [math.inf] * 3, [-math.inf] * 3]
    zero = torch.zeros(3, device=DEVICE)
    affine = Affine(zero, zero, zero, 0.0)
    assert cuda.sums(x, x, affine).tolist() == [[0.0] * 3] * 2
    assert cuda.normalize(x, affine).shape == cuda.apply(x, x, affine, zero, zero).shape == x.shape


@with_triton
@pytest.mark.skipif(INTERPRETED, reason="more values than 2^31 are for a GPU")
def test_values_beyond_the_reach_of_32_bits_are_normalized():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x = torch.zeros(1, 2, 2**30 + 64, dtype=torch.float16, device=DEVICE)
    x[0, 1, -1] = 8
    _, m2, _, maximum = cuda.measure(x)
    assert maximum.tolist() == [0.0, 8.0]
    assert m2[1].item() == pytest.approx(64)
    zero, one = torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE)
    assert cuda.normalize(x, Affine(zero, one, one, 0.0))[0, 1, -1].item() == 9


@triton_installed
@pytest.mark.skipif(INTERPRETED or HINDRANCE is None, reason="this is the interpreter, or a GPU does it for real")
def test_the_interpreter_passes_every_test_above():
    """In a process of its own: Triton decides when it is imported whether it compiles or interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@triton_installed
@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("channels_last", [False, True], ids=["float32 contiguous", "bfloat16 channels_last"])
@pytest.mark.parametrize("loop", ["measure", "merge", "normalize", "sums", "add", "apply"])
def test_each_loop_compiles_for_a_gpu_that_need_not_be_there(loop, channels_last, tmp_path, monkeypatch):
    """The interpreter takes more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget

    from mednorm.kernels import triton_loops

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_loops, loop)
    outer, channels, inner = (2, 1, 2048) if not channels_last else (64, 32, 1)
    constants = {
        "SLOPE": 0.0,
        "TYPE": triton_loops.ARITHMETIC[torch.float32],
        "OUTER": outer,
        "CHANNELS": channels,
        "INNER": inner,
    }
    constants |= {"PARTS": 64, "EVEN": min(inner, 16)} | ({"groups": 1} if channels_last else {})
    images_ = {"x", "y", "grad", "grad_x"}
    counts = {"outer", "channels", "groups", "tiles", "each", "count_of_parts", "last", "blocks"}
    signature, values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
        elif name in counts:
            signature[name] = "i32"
        else:
            image = "*bf16" if channels_last else "*fp32"
            signature[name] = image if name in images_ else "*fp64" if name == "parts" else "*fp32"
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, values, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000
    if loop in ("measure", "normalize", "sums", "apply") and not channels_last:
        assert "ld.global.v4.b32" in compiled.asm["ptx"]  # 16 bytes at once


def test_the_reason_names_what_is_missing():
    reason = cuda.unavailable(torch.device("cpu"))
    if importlib.util.find_spec("triton") is None:
        assert reason == "Triton is not installed"
    else:
        assert reason == (None if INTERPRETED else "Triton runs on GPUs, not on cpu")
