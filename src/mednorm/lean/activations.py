"""Keep less for the backward pass: what a few cheap passes give again, to the last bit, is not kept but computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mednorm.errors import ConfigError
from mednorm.lean.again import Call, call_again, is_made_again, may_keep
from mednorm.lean.saved import Recipe, Saved, Source


@contextmanager
def lean_activations(model: nn.Module) -> Iterator[None]:
    """Let the forward passes inside keep less: outputs of batch normalization are computed again, not kept.

    A block of convolution, batch normalization and ReLU keeps two tensors of the same size: the input of the
    normalization, and the output of ReLU for the next convolution. The second follows from the first and a few numbers
    per channel. So here it is computed when the backward pass asks for it; and so are what follows from it by
    concatenation, pooling, padding, interpolation, a change of type or a view. It is computed by the same call on the
    same numbers: on a CPU gradients are those of the ordinary pass to the last bit.

    Args:
        model: the network, with batch normalization of ours or of PyTorch. Of ours with its activation fused
            (`convert` with ``fuse_activation=True``) it is cheapest.

    Raises:
        ConfigError: no batch normalization in it.
        RuntimeError: in the backward pass, as autograd has it: something wrote into a tensor that is needed. That may
            be one which ordinarily is not: a part of a concatenation.

    Example:
        >>> from mednorm import BatchNorm
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4, activation="relu"), nn.Conv2d(4, 1, 3))
        >>> with lean_activations(network):
        ...     loss = network(torch.randn(2, 1, 16, 16)).mean()
        >>> loss.backward()

    Note:
        The backward pass may run inside or after. A tensor that nothing makes cheaply is kept as ever, and so is one
        that was written into. Inside what activation checkpointing runs, and wherever hooks for saved tensors of
        somebody else are in force, those decide; inside ``torch.compile`` nothing is lean. ``torch.func``'s transforms
        allow no such hooks and refuse.

    Reference:
        Rota Bulò, Porzi & Kontschieder (2018), "In-Place Activated BatchNorm", which inverts the activation to compute
        the normalized values again; here they are computed again from the layer's input, so that ReLU serves too.

    """
    if not isinstance(model, nn.Module) or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ConfigError(
            f"lean_activations: expected a network with batch normalization, got {type(model).__name__} without: its "
            "outputs are what would be computed again."
        )
    if not hooks_are_free():
        yield
        return
    observer = Observer()
    with saved_tensors_hooks(observer.pack, Saved.get), observer:
        yield


def hooks_are_free() -> bool:
    """Tell whether hooks for saved tensors may be set and none are: only the innermost are ever called."""
    autograd: Any = torch._C._autograd
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)  # younger than the oldest PyTorch we work with
    free: bool = autograd._saved_tensors_hooks_is_enabled() and (top is None or top(True) is None)
    return free


class Observer(TorchFunctionMode):
    """Sees which function made which tensor, so that a tensor to be kept can be replaced by a `Recipe`.

    Tensors are told apart by what they are, never by how they look: the object, or the one that it is a view of, and
    its version, which grows whenever something writes into it.

    Args:
        watch: called with whatever a node keeps.

    """

    def __init__(self, watch: Callable[[Saved], None] | None = None) -> None:
        super().__init__()
        self._watch = watch
        self._known: MutableMapping[Tensor, tuple[int, weakref.ref[Saved] | Recipe]] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, and where its result can be computed again, remember how."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not is_made_again(func, args):
            return func(*args, **kwargs)
        first = args[0] if isinstance(args[0], Tensor) else None  # it may be written into
        if first is not None and first.is_inference():  # which nothing can keep
            return func(*args, **kwargs)
        before, version = (None, -1) if first is None else (self._source(first), first._version)
        found = func(*args, **kwargs)
        call = call_again(func, args, kwargs, found)
        if call is None or not call.result.requires_grad or self._is_view_of_known(call.result):
            return found
        if call.result is first and first._version == version:  # given on as it was
            return found
        sources: list[Source | None]
        sources = [before] if call.result is first else [self._source(tensor) for tensor in call.inputs]
        if may_keep(func):
            sources = _with_kept(sources, call.inputs, call.result)
        complete = [source for source in sources if source is not None]
        if len(complete) == len(sources):
            self._remember(call.result, Recipe(call, complete))
        return found

    def pack(self, tensor: Tensor) -> Saved:
        """Keep a tensor, or how to compute it."""
        source = self._source(tensor)
        saved = source() if isinstance(source, weakref.ref) else None
        leaves = source.leaves() if isinstance(source, Recipe) else None
        if isinstance(source, Recipe) and leaves is not None:
            saved = Saved.computed(source, leaves)
        if saved is None:
            saved = Saved(tensor)
            if tensor.dim() > 1 and not isinstance(tensor, nn.Parameter):  # no vector is worth an entry
                self._known[tensor] = tensor._version, weakref.ref(saved)
        if self._watch is not None:
            self._watch(saved)
        return saved

    def _remember(self, result: Tensor, recipe: Recipe) -> None:
        version, source = self._known.get(result, (-1, None))
        if version == result._version and isinstance(source, weakref.ref):  # the function itself kept its result
            saved, leaves = source(), recipe.leaves()
            if leaves is None:
                return
            if saved is not None:
                saved.become(recipe, leaves)
        self._known[result] = result._version, recipe

    def _source(self, tensor: Tensor) -> weakref.ref[Saved] | Recipe | None:
        """Return where a tensor can be had without keeping more than is kept."""
        source = self._found(tensor)
        base = tensor._base
        if source is not None or base is None:
            return source
        source = self._found(base)
        if source is None:
            return None
        shape, stride, offset = tensor.shape, tensor.stride(), tensor.storage_offset() - base.storage_offset()
        view: Callable[[Tensor], Tensor] = lambda whole: whole.as_strided(  # noqa: E731
            shape, stride, whole.storage_offset() + offset
        )
        return Recipe(Call(tensor, [base], view), [source])

    def _is_view_of_known(self, tensor: Tensor) -> bool:
        return tensor._base is not None and self._found(tensor._base) is not None

    def _found(self, tensor: Tensor) -> weakref.ref[Saved] | Recipe | None:
        if tensor.is_inference():
            return None
        version, source = self._known.get(tensor, (-1, None))
        if version != tensor._version or (isinstance(source, weakref.ref) and source() is None):
            return None
        return source


def _with_kept(sources: list[Source | None], inputs: Sequence[Tensor], result: Tensor) -> list[Source | None]:
    """Keep the inputs that nobody keeps, where they take less than the result does."""
    missing = [tensor for tensor, source in zip(inputs, sources, strict=True) if source is None]
    if sum(tensor.untyped_storage().nbytes() for tensor in missing) >= result.untyped_storage().nbytes():
        return sources
    return [Saved(tensor) if source is None else source for tensor, source in zip(inputs, sources, strict=True)]
