"""Which loops run: those compiled for the machine, or PyTorch's own operators."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from mednorm.errors import ConfigError

NAMES = ("numba", "triton", "aten")
_VARIABLE = "MEDNORM_KERNELS"
_COMPILED_FOR = (torch.float32, torch.float64)


def use(name: str) -> Restoring:
    """Choose the loops of this process from now on; in a ``with`` statement, within it alone.

    Args:
        name: ``"numba"``, compiled loops for float32 and float64 on the CPU; ``"triton"``, these, and Triton's on CUDA;
            ``"aten"``, PyTorch's operators for everything. The environment variable ``MEDNORM_KERNELS`` says the same.

    Raises:
        ConfigError: another name, or loops that cannot run here.

    Example:
        >>> import torch
        >>> from mednorm import BatchNorm, kernels
        >>> layer, images = BatchNorm(4), torch.randn(2, 4, 8, 8)
        >>> with kernels.use("aten"):
        ...     expected = layer(images)
        >>> torch.allclose(layer(images), expected, atol=1e-5)
        True

    """
    global _chosen
    checked = _checked(name, "kernels.use")
    before, _chosen = _chosen, checked
    return Restoring(before)


class Restoring:
    """What `use` returns: at the end of a ``with`` block it takes the choice back."""

    def __init__(self, before: str) -> None:
        self._before = before

    def __enter__(self) -> None:
        """Leave the choice as it is."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Choose what was chosen before."""
        global _chosen
        _chosen = self._before


def chosen() -> str:
    """Return the name of the loops in use."""
    return _chosen


def _from_environment() -> str:
    name = os.environ.get(_VARIABLE, "")
    if name:
        return _checked(name, _VARIABLE)
    return "aten" if _why_not_numba() else "numba"


def _checked(name: str, who: str) -> str:
    if name not in NAMES:
        raise ConfigError(f"{who}: expected one of {', '.join(NAMES)}, got {name!r}.")
    reason = _why_not_numba() if name == "numba" else None
    if name == "triton":
        from mednorm.kernels import cuda

        reason = cuda.unavailable()
    if reason:
        raise ConfigError(f"{who}: expected loops that can run here, got {name!r}: {reason}. 'aten' always can.")
    return name


def _why_not_numba() -> str | None:
    return None if importlib.util.find_spec("numba") else "Numba is not installed"


_chosen = _from_environment()  # at once, since torch.compile does not follow a look at the environment


def on_cpu(x: Tensor) -> bool:
    """Tell whether the compiled loops take x, under torch.compile as the operators of `mednorm.kernels.ops`."""
    if x.device.type != "cpu" or x.dtype not in _COMPILED_FOR or chosen() == "aten" or x.numel() == 0:
        return False
    return torch.compiler.is_compiling() or plain(x)


def on_cuda(x: Tensor) -> bool:
    """Tell whether Triton's loops take x; under torch.compile the compiler makes its own from PyTorch's operators."""
    if x.device.type != "cuda" or chosen() != "triton" or x.numel() == 0:
        return False
    return not torch.compiler.is_compiling() and plain(x)


def plain(x: Tensor) -> bool:
    """Tell whether x is memory and no stand-in: a subclass, a trace, a transform of `torch.func`."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch._C._has_storage(x)  # what `vmap` batches has none
        and not x.is_neg()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


@dataclass(frozen=True)
class Info:
    """Which loops run, and on what.

    Attributes:
        kernels: ``"numba"``, ``"triton"`` or ``"aten"``.
        threads: as many as PyTorch uses (`torch.set_num_threads`).
        pool: whose threads they are.
        compiled: types of images the loops are compiled for in this process so far.
        cache: the folder that keeps the compiled code for the next process; None where there is none, or not yet.
        cuda: why Triton's loops cannot run here; None where they can.

    """

    kernels: str
    threads: int
    pool: str
    compiled: tuple[str, ...]
    cache: str | None
    cuda: str | None


def info() -> Info:
    """Return which loops run here.

    Example:
        >>> info().kernels in NAMES
        True

    """
    from mednorm.kernels import cuda
    from mednorm.kernels.cpu import compiled, threads

    own = chosen() != "aten"
    return Info(
        kernels=chosen(),
        threads=torch.get_num_threads(),
        pool=threads.pool() if own else "PyTorch's",
        compiled=compiled.ready(),
        cache=compiled.cache_folder(),
        cuda=cuda.unavailable(),
    )
