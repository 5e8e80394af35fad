"""How many bytes PyTorch's tensors take at once, counted operator by operator: the same at every run."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Count the bytes of tensors that are made within the context, as long as each lives.

    What was there before does not count, nor what an operator takes and frees within itself.

    Attributes:
        now: bytes of those that live.
        peak: the most at once.

    Example:
        >>> with TensorMemory() as memory:
        ...     x = torch.zeros(100)
        ...     y = (x + 1).view(10, 10).sum()  # a view takes nothing, and x + 1 is gone afterwards
        >>> memory.peak, memory.now
        (804, 404)

    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count what it made."""
        made = func(*args, **(kwargs or {}))
        taken = [id(storage) for storage in _storages((args, kwargs))]  # a view's, or of what changes in place
        for storage in _storages(made):
            if id(storage) not in taken and id(storage) not in self._alive:
                self._count(storage)
        return made

    def _count(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: weakref.ref[UntypedStorage]) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> list[UntypedStorage]:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
    return [leaf.untyped_storage() for leaf in leaves]
