"""Batch normalization of parts of a batch, each by itself, in float64 NumPy; shares no code with mednorm.

Ghost batches (Hoffer et al. 2017) are parts of the batch in its order; domains (Chang et al. 2019) are the samples of
one site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracle import batch_norm
from tests.oracle.batch_norm import Array, BatchNormOracle, Pass, along_channels
from tests.oracle.family import FamilyOracle, Mask

Rows = NDArray[np.int64]


class GroupedOracle(FamilyOracle):
    """Normalizes groups of samples each by its own statistics; the running ones are those of the whole batch."""

    def train_groups(self, x: Array, mask: Mask, groups: list[Rows], parameters: list[tuple[Array, Array]]) -> Array:
        self.move(self.plain(x, mask, self.weight, self.bias))
        self.groups = groups
        self.done: list[Pass] = []
        y = np.empty(x.shape)
        for rows, (weight, bias) in zip(groups, parameters, strict=True):
            self.done.append(self.plain(x[rows], None if mask is None else mask[rows], weight, bias))
            y[rows] = self.done[-1].y
        return y

    def backward_groups(self, grad_y: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """The gradient of x, and group by group those of weight and bias."""
        d_x, of_parameters = np.empty(grad_y.shape), []
        for rows, done in zip(self.groups, self.done, strict=True):
            d_x[rows], *of_both = batch_norm.backward(done, grad_y[rows])
            of_parameters.append(tuple(of_both))
        return d_x, of_parameters


class GhostBatchNormOracle(GroupedOracle):
    """Hoffer et al. (2017), Algorithm 1, the batch's order kept; a last single value joins the ghost before it."""

    def __init__(self, num_features: int, *, ghost_size: int = 16, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.ghost_size = ghost_size

    def train(self, x: Array, mask: Mask = None) -> Array:
        rows = np.arange(len(x))
        ghosts = [rows[start : start + self.ghost_size] for start in range(0, len(x), self.ghost_size)]
        if len(ghosts) > 1 and len(ghosts[-1]) * x[0, 0].size == 1:
            ghosts[-2:] = [np.concatenate(ghosts[-2:])]
        return self.train_groups(x, mask, ghosts, [(self.weight, self.bias)] * len(ghosts))

    def backward(self, grad_y: Array) -> tuple[Array, Array, Array]:
        d_x, of_parameters = self.backward_groups(grad_y)
        d_weight, d_bias = (sum(values) for values in zip(*of_parameters, strict=True))
        return d_x, d_weight, d_bias


class DomainBatchNormOracle(GroupedOracle):
    """Each site has running statistics of its own, and maybe a γ and β; -1 is a site that training does not know.

    Samples of unknown sites are a group, which moves no site's statistics; in inference they, and samples of a site
    that no batch came from, are normalized by the statistics of all batches pooled.
    """

    def __init__(
        self, num_features: int, *, domains: int | Sequence[str] = 2, domain_affine: bool = False, **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        count = domains if isinstance(domains, int) else len(domains)
        made = {"momentum": self.momentum, "eps": self.eps, "affine": domain_affine}
        self.sites = [BatchNormOracle(num_features, **made) for _ in range(count)]
        self.domain_affine = domain_affine

    def train(self, x: Array, mask: Mask = None, ids: Sequence[int] | None = None) -> Array:
        of_sample = np.full(len(x), -1) if ids is None else np.asarray(ids)
        self.present = [int(site) for site in np.unique(of_sample)]
        groups = [np.flatnonzero(of_sample == site) for site in self.present]
        for site, rows in zip(self.present, groups, strict=True):
            if site >= 0:
                self.sites[site].train(x[rows], None if mask is None else mask[rows])
        return self.train_groups(x, mask, groups, [self.parameters(site) for site in self.present])

    def parameters(self, site: int) -> tuple[Any, Any]:
        """γ and β of a site."""
        owner = self.sites[site] if self.domain_affine and site >= 0 else self
        return owner.weight, owner.bias

    def backward(self, grad_y: Array) -> tuple[Array, ...]:
        """Gradients of x, weight and bias; with parameters per site also of these, (D, C) each."""
        d_x, of_parameters = self.backward_groups(grad_y)
        shared, own = np.zeros((2, grad_y.shape[1])), np.zeros((2, len(self.sites), grad_y.shape[1]))
        for site, of_both in zip(self.present, of_parameters, strict=True):
            into = own[:, site] if self.domain_affine and site >= 0 else shared
            into += of_both
        return d_x, *shared, *(own if self.domain_affine else ())

    def evaluate(self, x: Array, ids: Sequence[int] | None = None) -> Array:
        of_sample = [-1] * len(x) if ids is None else ids
        y = np.empty(x.shape)
        for row, site in enumerate(of_sample):
            known = site >= 0 and self.sites[site].num_batches_tracked > 0
            source = self.sites[site] if known else self
            weight, bias = self.parameters(site)
            scale = (1.0 if weight is None else weight) / np.sqrt(source.running_var + self.eps)
            centred = x[row : row + 1] - along_channels(source.running_mean, x.ndim)
            shift = np.zeros(x.shape[1]) if bias is None else bias
            before = along_channels(scale, x.ndim) * centred + along_channels(shift, x.ndim)
            y[row] = batch_norm.activate(before, self.activation, self.negative_slope)[0][0]
        return y

    def buffers(self) -> dict[str, Array]:
        return {
            **super().buffers(),
            "domain_mean": np.stack([site.running_mean for site in self.sites]),
            "domain_var": np.stack([site.running_var for site in self.sites]),
            "domain_batches": np.array([site.num_batches_tracked for site in self.sites]),
        }
