"""Compare layers and networks before and after a change, and leave no trace of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from mednorm.errors import ConfigError
from mednorm.guards import evaluation_mode
from mednorm.surgery.affine import Linear, channels
from mednorm.surgery.fold_report import allowed
from mednorm.surgery.watch import same_random_numbers

# Some hundred roundings for the sums within a layer; for half types some ten, which sum in float32.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def working_type(layer: Linear) -> torch.dtype:
    """Return the type to compare a layer in: its own, or float32 for a narrower one."""
    return torch.float64 if layer.weight.dtype == torch.float64 else torch.float32


def on_cpu(module: nn.Module, dtype: torch.dtype, changed: dict[str, Tensor | None] | None = None) -> nn.Module:
    """Return a layer beside the given one, with its numbers in a type, or with changed ones."""
    twin = copy.copy(module)
    tensors = {**dict(module._parameters), **(changed or {})}
    twin._parameters = {name: _moved(tensor, dtype) for name, tensor in tensors.items()}  # type: ignore[misc]
    twin._buffers = {name: _moved(tensor, dtype) for name, tensor in module._buffers.items()}
    return twin


def random_input(layer: Linear, dtype: torch.dtype, seed: int) -> Tensor:
    """Draw an input on which every tap of a layer counts; the generator of torch is not touched."""
    wanted, _ = channels(layer)
    if isinstance(layer, nn.Linear):
        sizes = []
    else:
        padding = [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else list(layer.padding)
        shapes = zip(layer.kernel_size, layer.dilation, layer.stride, padding, strict=True)
        if isinstance(layer, _ConvTransposeNd):
            sizes = [3 + 2 * p // s for _, _, s, p in shapes]
        else:
            sizes = [max(d * (k - 1) + 1 + s, p + 1) for k, d, s, p in shapes]
    shape = (2, wanted, *sizes) if sizes else (8, wanted)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def difference_by_channel(before: Tensor, after: Tensor, scale: Tensor, tolerance: float) -> tuple[float, bool]:
    """Return the largest difference, and whether it is rounding in every channel."""
    apart = (before - after).abs().transpose(0, 1).flatten(1).amax(1).double()
    limits = tolerance * (scale.transpose(0, 1).flatten(1).amax(1).double() + 0.1)
    return float(apart.max()), bool((apart <= limits).all())


class Run:
    """How a network runs on an example; it is left as it is.

    Attributes:
        ranks: of the input of each layer that was to be watched, by its id.

    """

    def __init__(self, model: nn.Module, example: tuple[Any, ...], seed: int) -> None:
        self.model, self.example, self.seed = model, example, seed
        self.ranks: dict[int, set[int]] = {}

    def outputs(self, watching: Sequence[nn.Module] = (), state: str = "") -> list[Tensor]:
        """Return the tensors in the output, in float64; note the ranks of the input of some layers.

        Raises:
            ConfigError: the network does not take the example, or there is none.

        """
        handles: list[RemovableHandle] = [module.register_forward_pre_hook(self._note_rank) for module in watching]
        inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self.example)
        try:
            with evaluation_mode(self.model), same_random_numbers(self.model, self.seed), _without_tf32():
                result = self.model(*inputs)
        except Exception as error:
            kind, shapes = (
                type(error).__name__,
                [tuple(x.shape) for x in tree_leaves(self.example) if isinstance(x, Tensor)],
            )
            raise ConfigError(
                f"fold: expected the {state}network to take the example, got {kind} for {shapes}: {error} "
                "Pass example=, a tensor or the tuple of the network's inputs, on its device. Nothing was changed."
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        tensors = [x.detach().to("cpu", torch.float64) for x in tree_leaves(result) if _is_real(x)]
        if not tensors:
            raise ConfigError(f"fold: expected a network whose output has tensors, got {type(result).__name__}.")
        return tensors

    def _note_rank(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            self.ranks.setdefault(id(module), set()).add(inputs[0].dim())


def compare(before: list[Tensor], after: list[Tensor], tolerance: float) -> tuple[float, float, bool]:
    """Return the largest difference of two outputs, its scale, and whether each tensor differs by rounding alone."""
    worst, scale, equal = 0.0, 0.0, len(before) == len(after)
    for old, new in zip(before, after, strict=False):
        apart = float("nan") if old.shape != new.shape else float((old - new).abs().nan_to_num(torch.inf).max())
        magnitude = float(old.abs().max())
        equal &= apart <= allowed(tolerance, magnitude)
        worst, scale = max(worst, apart), max(scale, magnitude)
    return worst, scale, equal


def _moved(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolve in float32 where a card would round to 10 bits: two ways of the same sum would then seem to differ."""
    flags = torch.backends.cudnn
    if not torch.cuda.is_available():
        yield
        return
    with flags.flags(enabled=flags.enabled, benchmark=False, deterministic=flags.deterministic, allow_tf32=False):
        yield
