"""Calls of our functions that a `torch.overrides.TorchFunctionMode` sees, as it sees those of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

P = ParamSpec("P")
R = TypeVar("R")


def visibly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function, through the mode that is in force where there is one."""
    # Asked of no tensor, the answer is that of modes alone: subclasses of tensors go their ordinary way.
    if not torch.compiler.is_compiling() and has_torch_function_unary(None):
        seen: R = handle_torch_function(function, (), *args, **kwargs)
        return seen
    return function(*args, **kwargs)
