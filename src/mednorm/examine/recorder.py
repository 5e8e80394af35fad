"""Measure what reaches each normalization layer while a network runs; patients alone make what is kept grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.examine.pooling import (
    as_row,
    by_image,
    channels,
    joined,
    merged,
    of_layer,
    only,
    per_sample,
    pooled,
    seen_in,
    single,
)
from mednorm.examine.records import BatchesSeen, Patients, Seen
from mednorm.moments import Moments


class Recorder:
    """Hooks that measure the inputs of all batch normalization layers of a network, which are found by type.

    Within the context each batch is a call of the network and one of `end`. An image that is not finite in some
    channel of a layer is left out there. An input with k times as many samples as there are images, such as the slices
    of volumes, is taken to hold those of each image one after the other; where no whole number of samples comes to an
    image, each sample counts as an image of no site.

    Attributes:
        layers: by name, in the order of the network.
        calls: of each layer that was called, how often in one pass, in the order of first calls.
        dtypes: of their inputs.
        values: that reached a layer of one image, at most, over all channels and calls.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()).eval()
        >>> with Recorder(network) as recorder:
        ...     _ = network(torch.ones(2, 1, 4, 4))
        ...     recorder.end(2, ("A", None))
        >>> recorder.seen("0").moments.mean, recorder.sites("0")["A"].images
        (tensor([1.], dtype=torch.float64), 1)

    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
        self.calls: dict[str, int] = {}
        self.dtypes: dict[str, str] = {}
        self.values: dict[str, int] = {}
        self._paused = False
        # The channels of all layers lie side by side, so that a batch is pooled in one go, however many layers there
        # are: a layer's own is a slice.
        widths = torch.tensor([layer.num_features for layer in self.layers.values()], dtype=torch.int64)
        ends = widths.cumsum(0).tolist()
        self._columns = {name: slice(end - int(n), end) for name, end, n in zip(self.layers, ends, widths, strict=True)}
        self._owner = torch.arange(len(widths)).repeat_interleave(widths)
        self._handles: list[Any] = []
        self._waiting: dict[str, list[Moments]] = {}
        self._sites: dict[str | None, Seen] = {}
        self._patients: dict[str, Counter[str | None]] = {}  # images of each patient of a site
        self._total: Seen | None = None  # of all sites, once it is asked for
        self._odd: dict[str, Seen] = {}
        self._batches: tuple[Moments, Moments] | None = None
        self._not_finite = torch.zeros(len(widths), dtype=torch.int64)

    def __enter__(self) -> Recorder:
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Measure nothing within."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def end(self, images: int, sites: Sequence[str | None], patients: Sequence[str | None] = ()) -> None:
        """Take in what the layers saw of a batch of so many images, of these sites and patients."""
        for site, patient in zip(sites, patients or (None,) * images, strict=True):
            if site is not None:
                self._patients.setdefault(site, Counter())[patient] += 1
        waiting, self._waiting = self._waiting, {}
        odd: dict[str, list[Moments]] = {}
        for name, calls in waiting.items():
            self.calls[name] = max(self.calls.get(name, 0), len(calls))
            values = sum(int(each.count.sum()) for each in calls) // images
            self.values[name] = max(self.values.get(name, 0), values)
            if any(len(each.count) % images for each in calls):
                odd[name] = calls
                waiting[name] = [as_row(each.pooled(), images) for each in calls]
            elif any(len(each.count) != images for each in calls):
                waiting[name] = [by_image(each, images) for each in calls]
        if not waiting:
            return
        calls = [self._side_by_side(waiting, turn, images) for turn in range(max(map(len, waiting.values())))]
        for each in calls:
            self._add_batch(pooled(each.count, each))
        rows = self._finite_images(calls[0] if len(calls) == 1 else Moments.pool(calls), odd)
        for site in set(sites):
            own = torch.tensor([each == site for each in sites])
            part = rows if own.all() else Moments(*(field[own] for field in rows.fields()))
            self._sites[site] = joined(self._sites.get(site), seen_in(part))
        self._total = None
        for name, parts in odd.items():
            for part in parts:
                finite = (part.mean.isfinite() & part.m2.isfinite()).all(1, keepdim=True)
                self._odd[name] = joined(
                    self._odd.get(name), seen_in(only(part.to("cpu").to(torch.float64), finite.to("cpu")))
                )

    def order(self) -> tuple[str, ...]:
        """Return the layers' names in the order of their first calls, then those that were not called."""
        return tuple(dict.fromkeys((*self.calls, *self.layers)))

    def seen(self, name: str) -> Seen | None:
        """Return what reached a layer; None where it was not called."""
        if name not in self.calls:
            return None
        if self._total is None:
            for seen in self._sites.values():
                self._total = joined(self._total, seen)
        assert self._total is not None
        return joined(self._odd.get(name), of_layer(self._total, self._columns[name]))

    def sites(self, name: str) -> dict[str, Seen]:
        """Return what reached a layer from each site that is named."""
        if name not in self.calls:
            return {}
        named = {site: of_layer(seen, self._columns[name]) for site, seen in self._sites.items() if site is not None}
        whose = self.patients()
        return {site: replace(seen, patients=whose.get(site)) for site, seen in sorted(named.items()) if seen.images}

    def patients(self) -> dict[str, Patients]:
        """Return whose the images of each site are that is named, where a patient of it is, too."""
        return {
            site: Patients.of(sizes[name] for name in named).merge(Patients.alone(sizes[None]))
            for site, sizes in sorted(self._patients.items())
            if (named := sizes.keys() - {None})
        }

    def batches(self, name: str) -> BatchesSeen | None:
        """Return what reached a layer batch by batch, each call of it being one; None where it was not called."""
        if name not in self.calls or self._batches is None:
            return None
        means, variances = (channels(moments, self._columns[name]) for moments in self._batches)
        return BatchesSeen(means, variances, int(self._not_finite[list(self.layers).index(name)]))

    def _hook(self, name: str) -> Any:
        def measure(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            if not self._paused and x.numel():
                mask = args[1] if len(args) > 1 else kwargs.get("mask")
                self.dtypes.setdefault(name, str(x.dtype).removeprefix("torch."))
                self._waiting.setdefault(name, []).append(per_sample(x, mask))

        return measure

    def _side_by_side(self, waiting: dict[str, list[Moments]], turn: int, images: int) -> Moments:
        """Join the moments of one call of each layer, ``(N, ΣC)``, in float64 on the CPU."""
        home = next(iter(waiting.values()))[0].mean
        parts = [
            waiting[name][turn].to(home.device)
            if turn < len(waiting.get(name, ()))
            else Moments.of(home.new_empty(images, layer.num_features, 0), per_sample=True)
            for name, layer in self.layers.items()
        ]
        fields = (torch.cat(field, 1).to("cpu") for field in zip(*(part.fields() for part in parts), strict=True))
        return Moments(*fields).to(torch.float64)

    def _add_batch(self, batch: Moments) -> None:
        finite = batch.mean.isfinite() & batch.m2.isfinite()
        if not finite.all():
            finite = self._all_channels(finite)
            for place in self._owner[~finite].unique():
                self._not_finite[place] += 1
        means = single(batch.mean, finite & (batch.count > 0))
        variances = single(batch.unbiased_variance, finite & (batch.count > 1))
        if self._batches is not None:
            means, variances = merged(self._batches[0], means), merged(self._batches[1], variances)
        self._batches = means, variances

    def _finite_images(self, rows: Moments, odd: dict[str, list[Moments]]) -> Moments:
        """Leave out of each layer the images that are not finite in it, and of odd layers all."""
        finite = rows.mean.isfinite() & rows.m2.isfinite()
        if not odd and finite.all():
            return rows
        kept = self._all_channels(finite)
        for name in odd:
            kept[:, self._columns[name]] = False
        return only(rows, kept)

    def _all_channels(self, true: Tensor) -> Tensor:
        """Say for each channel whether something is true of all channels of its layer; ``(…, ΣC)``."""
        false = torch.zeros(*true.shape[:-1], len(self.layers)).index_add_(-1, self._owner, (~true).float())
        return (false == 0)[..., self._owner]
