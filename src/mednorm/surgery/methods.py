"""Methods other than ``forward`` that use a layer: read in their code, as running them could do anything."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

from mednorm.surgery.flow import named


class Methods:
    """What the public methods of a network's classes use.

    The best that reading can do: a method uses a layer if it takes that, or the part of the network it is in, from
    ``self`` by its name, other than for an attribute of it such as its weight.

    Example:
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()
        ...     def forward(self, x):
        ...         return self.act(self.norm(x))
        ...     def embed(self, x):
        ...         return self.norm(x)
        >>> Methods(Encoder()).splitting("norm", "act")
        "the network (Encoder) has a method 'embed' that seems to use 'norm' without 'act'"

    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            self.names.setdefault(id(module), []).append(name)
        self.known: dict[type, list[tuple[str, set[str]]]] = {}

    def splitting(self, first: str, second: str) -> str:
        """Say which method seems to use one of two layers without the other; empty for none."""
        paths = [self.names[id(self.modules[layer])] for layer in (first, second)]
        for holder in sorted({above for path in (*paths[0], *paths[1]) for above in _above(path)}):
            parts = [{part for path in each if (part := _part(holder, path))} for each in paths]
            for method, uses in self._of(type(self.modules[holder])):
                used = [bool(each & uses) for each in parts]
                if used[0] != used[1]:
                    alone, other = (first, second) if used[0] else (second, first)
                    what = named(self.modules[holder], holder)
                    return f"{what} has a method {method!r} that seems to use {alone!r} without {other!r}"
        return ""

    def _of(self, cls: type) -> list[tuple[str, set[str]]]:
        if cls not in self.known:
            self.known[cls] = [(name, _uses(code)) for name, code in _methods(cls)]
        return self.known[cls]


def _above(path: str) -> list[str]:
    """Names of the modules that hold one, the network first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))] if path else []


def _part(holder: str, path: str) -> str:
    """Name of the child of a module that a layer is, or is in; empty if it is not in that module."""
    prefix = f"{holder}." if holder else ""
    return path[len(prefix) :].split(".")[0] if path.startswith(prefix) else ""


def _methods(cls: type) -> Iterator[tuple[str, CodeType]]:
    """Public methods and properties that a user's class defines, apart from ``forward``."""
    seen = {"forward"}
    for part in cls.__mro__:
        if part.__module__.startswith(("torch.", "builtins")):
            continue
        for name, value in vars(part).items():
            if name in seen or name.startswith("_"):
                continue
            seen.add(name)
            function: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            function = inspect.unwrap(function) if callable(function) else None
            if inspect.isfunction(function):
                yield name, function.__code__


def _uses(code: CodeType) -> set[str]:
    """Names of attributes that are taken in a function and in those within it, as more than the way to another."""
    steps = list(dis.get_instructions(code))
    used = set()
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            on_the_way = following is not None and following.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR")
            if not on_the_way or following.argval in ("forward", "__call__"):  # type: ignore[union-attr]
                used.add(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            used |= _uses(constant)
    return used
