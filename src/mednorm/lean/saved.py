"""What a node of autograd keeps of a tensor: the tensor, or how to compute it again from others that are kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from mednorm.lean.again import Call


class Saved:
    """One tensor that nodes of autograd keep: what a pack hook hands to them, and an unpack hook takes back.

    Args:
        tensor: to keep. It is detached, so that no node holds itself alive; storage and version stay shared.

    """

    __slots__ = ("__weakref__", "_leaves", "_recipe", "_tensor", "_version", "_whose")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor.detach()
        self._version = tensor._version
        self._whose = "a leaf" if tensor.grad_fn is None else f"output {tensor.output_nr} of {tensor.grad_fn.name()}"
        self._recipe: Recipe | None = None
        self._leaves: tuple[Saved, ...] = ()

    @classmethod
    def computed(cls, recipe: Recipe, leaves: tuple[Saved, ...]) -> Saved:
        """Keep a recipe, and what it starts from, in the tensor's place."""
        saved = cls.__new__(cls)
        saved.become(recipe, leaves)
        return saved

    def become(self, recipe: Recipe, leaves: tuple[Saved, ...]) -> None:
        """Let go of the tensor, and keep from now on how to compute it."""
        self._tensor, self._recipe, self._leaves = None, recipe, leaves

    @property
    def intact(self) -> bool:
        """Whether nothing wrote into the tensor since; of a recipe, into what it starts from."""
        if self._tensor is None:
            return all(leaf.intact for leaf in self._leaves)
        return self._tensor._version == self._version

    def get(self) -> Tensor:
        """Return the tensor, or compute it.

        Raises:
            RuntimeError: something wrote into it, or into what it is computed from, since: as autograd says it.

        """
        if self._recipe is not None:
            return self._recipe.get()
        assert self._tensor is not None
        if not self.intact:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self._tensor.type()} {list(self._tensor.shape)}], which is {self._whose}, is at version "
                f"{self._tensor._version}; expected version {self._version} instead. With lean activations, what is "
                "computed again needs the tensors it was made of as they were: write into a copy."
            )
        return self._tensor

    def tensors(self) -> Iterator[Tensor]:
        """List the tensors in memory that this holds."""
        if self._tensor is not None:
            yield self._tensor
        for leaf in self._leaves:
            yield from leaf.tensors()
        if self._recipe is not None:
            yield from self._recipe.constants()


# Where a recipe finds one of its inputs: what somebody else keeps (and so weakly), what it keeps itself, or another.
Source: TypeAlias = "weakref.ref[Saved] | Saved | Recipe"


class Recipe:
    """How to compute a tensor again, to the last bit.

    Args:
        call: the call that computed it the first time; it must come out in the same layout.
        inputs: where the inputs of the call are found.

    """

    __slots__ = ("_autocast", "_constants", "_found", "_fresh", "_function", "_inputs", "_layout", "_overwriting")

    def __init__(self, call: Call, inputs: Sequence[Source]) -> None:
        self._function, self._overwriting = call.function, call.overwriting
        self._inputs = tuple(inputs)
        self._constants = tuple(call.constants)
        self._layout = call.result.dtype, call.result.shape, call.result.stride()
        self._autocast = _autocast_of(call.result.device.type)
        self._fresh = call.fresh
        self._found: tuple[weakref.ref[Tensor], int] | None = None

    def leaves(self) -> tuple[Saved, ...] | None:
        """Return what the recipe starts from, to be held; None where something of it is gone or was written into."""
        found: list[Saved] = []
        for source in self._inputs:
            if isinstance(source, Recipe):
                further = source.leaves()
                if further is None:
                    return None
                found += further
                continue
            saved = source if isinstance(source, Saved) else source()
            if saved is None or not saved.intact:
                return None
            found.append(saved)
        return tuple(found)

    def constants(self) -> Iterator[Tensor]:
        """List what the functions hold in memory."""
        yield from self._constants
        for source in self._inputs:
            if isinstance(source, Recipe):
                yield from source.constants()

    @torch.no_grad()
    def get(self) -> Tensor:
        """Compute it, in the precision that held then; while somebody still holds it from the last time, that."""
        found = self._held()
        return self._computed() if found is None else found

    def _held(self) -> Tensor | None:
        found, version = (None, -1) if self._found is None else (self._found[0](), self._found[1])
        return found if found is not None and found._version == version else None

    def _computed(self) -> Tensor:
        first = self._inputs[0]
        with _in_autocast(self._autocast):
            if self._overwriting and isinstance(first, Recipe) and first._fresh and first._held() is None:
                result = self._overwriting(first._computed())  # a pass less, and nobody holds what is written into
                first._found = None
            else:
                result = self._function(*(_value(source) for source in self._inputs))
        dtype, shape, stride = self._layout
        if result.stride() != stride:  # out of place an activation may lay out axes of one value otherwise
            result = torch.empty_strided(shape, stride, dtype=dtype, device=result.device).copy_(result)
        self._found = weakref.ref(result), result._version
        return result


def _value(source: Source) -> Tensor:
    saved = source() if isinstance(source, weakref.ref) else source
    assert saved is not None  # whoever keeps a recipe holds its leaves
    return saved.get()


def _autocast_of(device: str) -> tuple[str, torch.dtype, bool]:
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _in_autocast(state: tuple[str, torch.dtype, bool]) -> AbstractContextManager[object]:
    device, dtype, enabled = state
    if state == _autocast_of(device):
        return nullcontext()
    return torch.autocast(device, dtype, enabled, cache_enabled=False)
