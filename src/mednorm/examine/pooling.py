"""Moments of samples, and of what images and batches showed, pooled for all layers of a network at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mednorm import kernels
from mednorm.examine.records import Seen
from mednorm.moments import Moments

_SMALL = 8  # values of a channel below which the compiled loops gain nothing over PyTorch's operators


def per_sample(x: Tensor, mask: Tensor | None = None) -> Moments:
    """Measure each channel of each sample, ``(N, C)``, in one pass where the loops are compiled."""
    x = x.detach().as_subclass(Tensor)
    shape = x.shape[:2]
    if mask is not None or x.numel() < _SMALL * shape.numel():
        return Moments.of(x, mask=mask, per_sample=True)
    # To the loops, the channels of all samples are channels of one.
    found = kernels.measure(x.reshape(1, shape.numel(), -1))
    return Moments(*(field.reshape(shape) for field in found.fields()))


def seen_in(rows: Moments) -> Seen:
    """Return what images showed, of the moments of each, ``(N, C)`` in float64; an image without values is none."""
    there = rows.count > 0
    means, variances = single(rows.mean, there), single(rows.variance, there)
    return Seen(pooled(rows.count, rows), pooled(there, means), pooled(there, variances))


def pooled(weight: Tensor, rows: Moments) -> Moments:
    """Do what `Moments.pooled` does, in float64, which needs no anchor, and so faster for many channels."""
    counts = weight.to(torch.float64)
    count = counts.sum(0)
    mean = (counts * rows.mean).sum(0) / count.clamp(min=1)
    m2 = rows.m2.sum(0) + (counts * (rows.mean - mean).square()).sum(0)
    return Moments(count.to(torch.int64), mean, m2, rows.minimum.amin(0), rows.maximum.amax(0))


def merged(a: Moments, b: Moments) -> Moments:
    """Do what `Moments.merge` does, likewise."""
    count = a.count + b.count
    share = b.count / count.clamp(min=1)
    apart = b.mean - a.mean
    return Moments(
        count,
        a.mean + apart * share,
        a.m2 + b.m2 + apart.square() * a.count * share,
        torch.minimum(a.minimum, b.minimum),
        torch.maximum(a.maximum, b.maximum),
    )


def joined(known: Seen | None, new: Seen) -> Seen:
    """Pool what some images showed with what is known already."""
    if known is None:
        return new
    return Seen(
        merged(known.moments, new.moments),
        merged(known.of_means, new.of_means),
        merged(known.of_variances, new.of_variances),
    )


def single(values: Tensor, there: Tensor) -> Moments:
    """Return moments of one value each, of none where it is not there."""
    found = Moments(there.to(torch.int64), values, torch.zeros(()).to(values).expand_as(values), values, values)
    return found if there.all() else only(found, there)


def only(moments: Moments, kept: Tensor) -> Moments:
    """Return moments of no values in the places that are not kept."""
    empty = (0, 0.0, 0.0, torch.inf, -torch.inf)
    return Moments(*(torch.where(kept, field, nothing) for field, nothing in zip(moments.fields(), empty, strict=True)))


def by_image(rows: Moments, images: int) -> Moments:
    """Pool the samples of each image, which lie one after the other."""
    return Moments(*(field.unflatten(0, (images, -1)).transpose(0, 1) for field in rows.fields())).pooled()


def as_row(moments: Moments, images: int) -> Moments:
    """Return one row of moments with empty ones below it."""
    first = torch.arange(images, device=moments.mean.device)[:, None] == 0
    return only(Moments(*(field.expand(images, -1) for field in moments.fields())), first)


def channels(moments: Moments, columns: slice) -> Moments:
    """Return those of some channels."""
    return Moments(*(field[columns] for field in moments.fields()))


def of_layer(seen: Seen, columns: slice) -> Seen:
    """Return what images showed of the channels of one layer."""
    return Seen(channels(seen.moments, columns), channels(seen.of_means, columns), channels(seen.of_variances, columns))
