"""Time BN + ReLU on a GPU: PyTorch eager and compiled, mednorm in PyTorch's operators and in Triton kernels.

Forward and backward, by PyTorch's benchmark timer, in rounds that alternate between the ways, so that a GPU that grows
warm slows all. Writes benchmarks/results/cuda.json, which on a machine without a GPU says just that. (This file is not
named cuda.py: beside it, PyTorch would take it for the package `cuda` that it imports.)

    python benchmarks/gpu.py            # seven rounds of every case
    python benchmarks/gpu.py --smoke    # one short round of the smallest case
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from mednorm import BatchNorm, Moments, __version__
from mednorm.bench.timing import quartiles
from mednorm.kernels import aten, cuda
from mednorm.kernels.affine import Affine

Step = Callable[[], object]

SHAPES = (
    (2, 32, 64, 64, 64),
    (8, 64, 32, 32, 32),
    (32, 64, 56, 56),
    (128, 32, 28, 28),
    (256, 64, 14, 14),
    (4, 16, 128, 128),
    (512, 256),
)
DTYPES = (torch.float32, torch.bfloat16)
EPS = 1e-5
RESULTS = Path(__file__).parent / "results" / "cuda.json"


def layers(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return what is compared: normalization followed by ReLU, as layers with autograd."""
    plain = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    eager = nn.Sequential(plain(shape[1]), nn.ReLU()).cuda()
    return {
        "torch": eager,
        "torch.compile": torch.compile(nn.Sequential(plain(shape[1]), nn.ReLU()).cuda()),
        "mednorm": BatchNorm(shape[1], activation="relu").cuda(),
    }


def loops(x: Tensor, grad: Tensor) -> dict[str, Step]:
    """Return what lies below the layer: the same normalization in PyTorch's operators and in Triton kernels."""
    count = x.numel() // x.shape[1]
    weight = torch.ones(x.shape[1], device=x.device)
    bias = torch.zeros(x.shape[1], device=x.device)

    def in_operators() -> None:
        moments = Moments.of(x)
        aten.normalize(x, moments, weight, bias, EPS, 0.0)
        aten.normalize_backward(grad, x, moments, weight, bias, EPS, 0.0, None)

    def in_triton() -> None:
        mean, m2, _, _ = cuda.measure(x)
        invstd = (m2 / count + EPS).rsqrt()
        affine = Affine(mean, weight * invstd, bias, 0.0)
        cuda.normalize(x, affine)
        total, products = cuda.sums(grad, x, affine)
        share = affine.scale / count
        cuda.apply(grad, x, affine, share * products * invstd.square(), share * total)

    return {"loops in PyTorch's operators": in_operators, "loops in Triton": in_triton}


def step(layer: nn.Module, x: Tensor, grad: Tensor) -> Step:
    """Return forward and backward of a layer as one call."""
    return lambda: layer(x).backward(grad)


def measure(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, rounds: int, seconds: float) -> dict:
    """Return median and quartiles of milliseconds, and the bytes a second that the ideal seven passes would make."""
    memory = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if channels_last else None
    order = {} if memory is None else {"memory_format": memory}
    x, grad = (torch.randn(shape, device="cuda").to(dtype).contiguous(**order) for _ in range(2))
    steps = loops(x, grad)
    x = x.clone().requires_grad_()
    steps |= {name: step(layer, x, grad) for name, layer in layers(shape).items()}
    timers = {name: Timer("step()", globals={"step": each}) for name, each in steps.items()}
    for timer in timers.values():
        timer.timeit(3)  # compiles
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            found[name].append(timer.blocked_autorange(min_run_time=seconds).median * 1e3)
    milliseconds = {name: quartiles(times) for name, times in found.items()}
    # Forward reads x twice and writes y, backward reads x and the gradient twice and writes one: eight passes.
    gigabytes = 8 * x.numel() * x.element_size() / 1e9
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "memory_format": "channels_last" if channels_last else "contiguous",
        "milliseconds": milliseconds,
        "gigabytes_per_second": {name: gigabytes / (time["median"] / 1e3) for name, time in milliseconds.items()},
    }


def measure_all(smoke: bool) -> dict[str, object]:
    """Run every case on this machine's GPU."""
    rounds, seconds = (1, 0.01) if smoke else (7, 0.3)
    cases = []
    for shape in SHAPES[-2:-1] if smoke else SHAPES:
        for dtype in DTYPES:
            for channels_last in (False, True) if len(shape) > 2 else (False,):
                cases.append(measure(shape, dtype, channels_last, rounds, seconds))
                print(json.dumps(cases[-1]), flush=True)
    major, minor = torch.cuda.get_device_capability()
    return {
        "measured": True,
        "machine": {"gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "cuda": torch.version.cuda},
        "rounds": rounds,
        "cases": cases,
    }


def main() -> None:
    """Measure, or say why not, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round of one shape")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        found: dict[str, object] = {"measured": False, "reason": "PyTorch finds no GPU on this machine"}
    elif (reason := cuda.unavailable(torch.device("cuda"))) is not None:
        found = {"measured": False, "reason": reason}
    else:
        found = measure_all(arguments.smoke)
    versions = {"mednorm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**found, "versions": versions}, indent=1) + "\n")
    print(f"{arguments.out}: " + ("measured" if found["measured"] else f"not measured: {found['reason']}"))


if __name__ == "__main__":
    main()
