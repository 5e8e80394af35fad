"""Pair the layers of two networks for `mednorm.port`, and work out what each is to be given; writes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mednorm.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from mednorm.keras.portable import Norm, Part

Array = NDArray[Any]

# What a weight that is not there does.
_ABSENT = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Pair:
    """A layer, what is to be written into it, and what to say of that."""

    source: Part
    target: Part
    arrays: Mapping[str, Array]
    norm: Norm | None
    notes: tuple[str, ...]


def pair_up(sources: list[Part], targets: list[Part], values_per_channel: int | Mapping[str, int] | None) -> list[Pair]:
    """Pair in order, and convert.

    Raises:
        ConfigError: no layers, other numbers of layers, other kinds, or a weight that the target has no place for.
        ShapeError: other shapes.
        DataError: a value that is not finite, or too large for the target's type.

    """
    if not sources and not targets:
        raise ConfigError("port: expected layers with weights, got two networks without any. There is nothing to port.")
    for source, target in zip(sources, targets, strict=False):
        if source.kind != target.kind:
            raise ConfigError(
                f"port: expected layers of the same kind in the same order, got {source.name}, a {source.kind}, and "
                f"{target.name}, a {target.kind}. Nothing was written."
            )
    if len(sources) != len(targets):
        names = (", ".join(part.name for part in parts) or "none" for parts in (sources, targets))
        raise ConfigError(
            f"port: expected as many layers with weights in both, got {len(sources)} in the source ({next(names)}) and "
            f"{len(targets)} in the target ({next(names)}). Nothing was written."
        )
    counts = _counts(sources, targets, values_per_channel)
    return [_pair(source, target, n) for source, target, n in zip(sources, targets, counts, strict=True)]


def _counts(sources: list[Part], targets: list[Part], given: int | Mapping[str, int] | None) -> list[int | None]:
    """Values per channel in training, for each pair; None for unknown."""
    if given is None:
        return [None] * len(sources)
    who = "port: expected values_per_channel to be"
    if isinstance(given, Mapping):
        known = {part.name for part in (*sources, *targets) if part.norm}
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise ConfigError(
                f"{who} numbers by the names of batch normalization layers, got {', '.join(unknown)}. "
                f"There are: {', '.join(sorted(known))}."
            )
        counts = [
            given.get(source.name, given.get(target.name)) for source, target in zip(sources, targets, strict=True)
        ]
    else:
        counts = [given] * len(sources)
    for count in counts:
        if count is not None and (not isinstance(count, Integral) or isinstance(count, bool) or count < 2):
            raise ConfigError(
                f"{who} a whole number of at least 2, the batch size times height and width, got {count!r}."
            )
    return counts


def _pair(source: Part, target: Part, count: int | None) -> Pair:
    notes = [*source.notes, *target.notes]
    arrays = _arrays(source, target, notes)
    norm = None
    if source.norm and target.norm:
        arrays["running_var"] = arrays["running_var"] * _rescaling(source, target, count, notes)
        norm = _norm(source, target, notes)
    _check_values(source, target, arrays, notes)
    return Pair(source, target, arrays, norm, tuple(dict.fromkeys(notes)))


def _arrays(source: Part, target: Part, notes: list[str]) -> dict[str, Array]:
    for name, array in source.arrays.items():
        if name not in target.arrays and (array != _ABSENT[name]).any():
            raise ConfigError(
                f"port: expected a {name} in {target.name}, which has none, because that of {source.name} is not "
                f"{_ABSENT[name]:g} throughout. Build the target with one. Nothing was written."
            )
    arrays = {}
    for name, old in target.arrays.items():
        new = source.arrays.get(name)
        if new is None:
            new = np.full(old.shape, _ABSENT[name], old.dtype)
            notes.append(f"The {name} is {_ABSENT[name]:g} throughout: the source has none.")
        if new.shape != old.shape:
            raise ShapeError(
                f"port: expected {name} of {target.name} and of {source.name} to have one shape, got {old.shape} and "
                f"{new.shape} (in PyTorch's layout). Nothing was written."
            )
        arrays[name] = new
    return arrays


def _rescaling(source: Part, target: Part, count: int | None, notes: list[str]) -> float:
    """What the running variance is multiplied by."""
    assert source.norm
    assert target.norm
    if count is None or source.norm.biased == target.norm.biased:
        return 1.0
    if source.norm.biased is None or target.norm.biased is None:
        notes.append("The variance is copied in spite of values_per_channel: one taken from the range has no bias.")
        return 1.0
    factor = count / (count - 1) if source.norm.biased else (count - 1) / count
    way = "biased to unbiased" if source.norm.biased else "unbiased to biased"
    notes.append(f"The variance is multiplied by {factor:.7g}, {way} at {count} values per channel: inference follows.")
    return factor


def _norm(source: Part, target: Part, notes: list[str]) -> Norm:
    assert source.norm
    assert target.norm
    old, new = source.norm, target.norm
    to_keras = old.biased is False
    if old.momentum is None:
        momentum = new.momentum
        kept = 1 - (momentum or 0.0)
        notes.append(f"PyTorch's momentum None, the plain average, has no counterpart: Keras's stays {kept:.6g}.")
    else:
        momentum = old.momentum
        pair = f"{1 - momentum:.6g} for the old value in Keras is {momentum:.6g} for the new in PyTorch"
        notes.append(f"Momentum: {pair}; epsilon {old.eps:g} in both.")
    updates = old.updates
    if old.updates is None or new.updates is None:
        updates = None
        stays = "left behind" if to_keras else "left as it is"
        notes.append(f"Keras's layer counts no batches: num_batches_tracked is {stays}; nothing depends on it now.")
    elif to_keras and updates == 0 and _has_moved(source):
        updates = _settled(momentum)
        notes.append(f"num_updates is {updates}: at PyTorch's 0 the next batch would replace the statistics.")
    else:
        notes.append(f"Batches counted: {updates}, num_updates in Keras and num_batches_tracked in PyTorch.")
    return replace(old, momentum=momentum, updates=updates)


def _has_moved(part: Part) -> bool:
    return bool((part.arrays["running_mean"] != 0).any() or (part.arrays["running_var"] != 1).any())


def _settled(momentum: float | None) -> int:
    """After how many batches float32 sees nothing of the first in a moving average."""
    kept = 1 - (momentum or 0.0)
    return 1 if kept in (0.0, 1.0) else math.ceil(math.log(2**-24) / math.log(kept))


def _check_values(source: Part, target: Part, arrays: Mapping[str, Array], notes: list[str]) -> None:
    for name, array in source.arrays.items():
        if not np.isfinite(array).all():
            raise DataError(
                f"port: expected finite numbers, got {np.count_nonzero(~np.isfinite(array))} that are not in {name} of "
                f"{source.name}. The training diverged, or a batch overflowed; take an earlier checkpoint."
            )
    for name, dtype in target.dtypes.items():
        limits = torch.finfo(getattr(torch, dtype))
        largest = float(np.abs(arrays[name]).max(initial=0))
        if largest > limits.max:
            raise DataError(
                f"port: expected {name} of {source.name} to fit {target.name}, of {dtype}, which ends at "
                f"{limits.max:g}, got {largest:g}. Build the target with a wider type. Nothing was written."
            )
        wider = source.dtypes.get(name, dtype)
        if limits.eps > torch.finfo(getattr(torch, wider)).eps:
            notes.append(f"Rounded from {wider} to {dtype}.")
