"""What a loader hands over, in whatever form: a batch's inputs of the network, its labels, sites and patients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError, DataError
from mednorm.layers import DomainBatchNorm, domain

Prepare = Callable[[Any], Any]


@dataclass(frozen=True)
class Batch:
    """One batch, ready for a network.

    Attributes:
        inputs: positional inputs of the network, on its device.
        labels: as the loader gave them; None where it gave none.
        sites: one a sample; None where a sample's site is unknown.
        patients: likewise; none at all where nobody asked for them.

    """

    inputs: tuple[Any, ...]
    labels: Any
    sites: tuple[str | None, ...]
    patients: tuple[str | None, ...] = ()

    @property
    def size(self) -> int:
        """How many samples there are."""
        return len(self.sites)


class Batches:
    """A loader read as batches, as often as wanted.

    A batch may be a tensor; a tuple or list of images and labels; a dictionary, with MONAI's tensors or without; or a
    list of dictionaries of single samples, as MONAI's patch transforms give, which are joined.

    Args:
        loader: gives the batches; each iteration begins anew.
        device: that the inputs are moved to.
        image: key of the images in a dictionary; several keys, with commas between, for a network with several inputs.
        label: key of the labels, None for none.
        site: key of the sites, in the dictionary or in the metadata of MONAI's tensors.
        patient: key of the patients, likewise; None where nothing depends on them.
        prepare: turns what the loader gives into one of those forms first.
        limit: stop after so many batches.

    Raises:
        ConfigError: the loader gives no batches, or gives them only once.
        DataError: while iterating: a batch has none of these forms, or is without images; or there is no batch at all.

    Example:
        >>> batches = Batches([{"image": torch.zeros(2, 1, 4, 4), "site": ["A", "B"]}])
        >>> [(batch.size, batch.sites) for batch in batches]
        [(2, ('A', 'B'))]

    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        *,
        image: str = "image",
        label: str | None = "label",
        site: str = "site",
        patient: str | None = None,
        prepare: Prepare | None = None,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"loader: expected a limit of at least 1 batch or None, got {limit!r}.")
        if not any(hasattr(type(loader), way) for way in ("__iter__", "__getitem__")):
            raise ConfigError(
                f"loader: expected what gives batches, such as a DataLoader or a list, got {type(loader).__name__}."
            )
        if iter(loader) is loader:
            raise ConfigError(
                f"loader: expected one that can be read again, such as a DataLoader or a list, got a "
                f"{type(loader).__name__}, which is used up after one pass. Pass list(…) of it."
            )
        self._loader, self._device, self._prepare, self._limit = loader, device, prepare, limit
        self._image, self._label, self._site, self._patient = image.split(","), label, site, patient

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches."""
        number = 0
        for number, given in enumerate(self._loader, start=1):
            yield self._read(given if self._prepare is None else self._prepare(given), number)
            if number == self._limit:
                return
        if number == 0:
            raise DataError("loader: expected at least one batch, got none. Does the data set hold any image?")

    def _read(self, given: Any, number: int) -> Batch:
        if isinstance(given, Sequence | Mapping) and not given:
            raise _empty(number, f"an empty {type(given).__name__}")
        if isinstance(given, Sequence) and all(isinstance(each, Mapping) for each in given):
            given = _joined(given)
        sites: Any = None
        patients: Any = None
        if isinstance(given, Mapping):
            missing = [key for key in self._image if key not in given]
            if missing:
                raise DataError(
                    f"batch {number}: expected the images under {missing[0]!r}, got the keys {list(given)}. Say "
                    "image='…' with the key they have."
                )
            inputs = [given[key] for key in self._image]
            labels = given.get(self._label) if self._label else None
            meta = getattr(inputs[0], "meta", None) or {}
            sites = given.get(self._site, meta.get(self._site))
            patients = given.get(self._patient, meta.get(self._patient))
        elif isinstance(given, Tensor):
            inputs, labels = [given], None
        elif isinstance(given, Sequence) and isinstance(given[0], Tensor):
            inputs, labels = [given[0]], given[1] if len(given) > 1 else None
        else:
            raise DataError(
                f"batch {number}: expected a tensor, a tuple of images and labels, or a dictionary, got "
                f"{type(given).__name__}. Pass prepare=… that makes one of it."
            )
        if not isinstance(inputs[0], Tensor) or inputs[0].dim() < 2:
            got = tuple(inputs[0].shape) if isinstance(inputs[0], Tensor) else type(inputs[0]).__name__
            raise DataError(f"batch {number}: expected images (N, C, *), got {got}.")
        if not inputs[0].numel():
            raise _empty(number, str(tuple(inputs[0].shape)))
        samples = len(inputs[0])
        return Batch(
            tuple(self._moved(each) for each in inputs),
            labels,
            _names(sites, samples, f"batch {number}: expected one site"),
            () if self._patient is None else _names(patients, samples, f"batch {number}: expected one patient"),
        )

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.as_subclass(Tensor).to(self._device)  # MONAI's tensors keep their history of transforms otherwise


def call(network: nn.Module, batch: Batch) -> Any:
    """Call a network on a batch, telling those that ask which site each sample is of."""
    asks = any(isinstance(module, DomainBatchNorm) for module in network.modules())
    with domain(network, batch.sites) if asks else nullcontext():
        return network(*batch.inputs)


def device_of(network: nn.Module) -> torch.device:
    """Return where a network is; the CPU where it has neither parameters nor buffers."""
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _empty(number: int, got: str) -> DataError:
    return DataError(f"batch {number}: expected at least one image, got {got}. Leave empty batches out of the loader.")


def _joined(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join dictionaries of single samples (C, *) into one of batches (N, C, *)."""
    joined: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample.get(key) for sample in samples]
        tensors = [value.as_subclass(Tensor) for value in values if isinstance(value, Tensor)]
        joined[key] = torch.stack(tensors) if len(tensors) == len(values) else values
        metas = [getattr(value, "meta", None) for value in values]
        for name in metas[0] or {}:
            if name not in samples[0]:
                joined.setdefault(name, [(meta or {}).get(name) for meta in metas])
    return joined


def _names(given: Any, samples: int, expected: str) -> tuple[str | None, ...]:
    """Return one name a sample, as text."""
    if given is None:
        return (None,) * samples
    values = given.tolist() if hasattr(given, "tolist") else [given] * samples if isinstance(given, str) else given
    if not isinstance(values, Sequence) or len(values) != samples:
        raise DataError(f"{expected} for each of {samples} samples, got {values!r}. Give a list as long as the batch.")
    return tuple(None if value is None else str(value) for value in values)
