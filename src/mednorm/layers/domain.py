"""Batch normalization with the statistics of each site."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.layers.batch import BatchNorm, Common
from mednorm.layers.tracking import BySite, Move, repeating_forward
from mednorm.moments import Moments, broadcast_mask

Site = str | int | None
Apply = Callable[[Tensor, Tensor | None, int | None], Tensor]


class DomainBatchNorm(BatchNorm):
    r"""Normalize the samples of each site with that site's own statistics, in training and in evaluation.

    .. math:: y_i = \operatorname{act}\!\left(\gamma\,\frac{x_i-\mu_{s(i)}}{\sqrt{\sigma^2_{s(i)}+\epsilon}}
              + \beta\right)

    with s(i) the site (hospital, scanner, protocol) of sample i, said by `mednorm.domain`:

    - training: :math:`\mu_s,\sigma^2_s` are those of the batch's samples of site s, and move that site's running
      statistics; the batch as a whole moves the pooled ones, ``running_mean`` and ``running_var``.
    - evaluation: the running statistics of the sample's site. A site that is not among `domains`, or of which no batch
      was seen, gets the pooled statistics.
    - samples of unknown sites (None or -1) are one group in training, which moves the pooled statistics alone. Where
      nobody says where samples come from, all are: then the layer is `BatchNorm`.

    So a difference in gain or contrast between sites is taken out at each layer, and γ, β and all other weights are
    learned from every site together. With `domain_affine`, γ and β are each site's own too.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the new value; None for the plain average.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: keep running statistics.
        domains: names of the sites, or how many there are.
        domain_affine: :math:`\gamma,\beta` for every site; those of samples of unknown sites stay ``weight``, ``bias``.
        **common: the keywords of `BatchNorm`.

    Attributes:
        domain_mean: running mean of each site, ``(D, C)``; so `domain_var`; and `domain_batches`, ``(D,)``, the number
            of batches with samples of the site. All in the state_dict, with `domain_names`, by which a state_dict is
            put in order when it is loaded.

    Shape:
        Input and output ``(N, C, *)``.

    Raises:
        ConfigError: an argument is out of its range; in training, the name of a site that is not among `domains`.
        ShapeError: as `BatchNorm`, for the samples of every site in a training batch; or the number of samples is not
            that of the sites said.

    Example:
        >>> import torch
        >>> from mednorm import domain
        >>> layer = DomainBatchNorm(1, domains=["Basel", "Lund"])
        >>> x = torch.randn(8, 1, 32, 32) + torch.tensor([0.0, 50.0]).repeat(4).view(8, 1, 1, 1)
        >>> with domain(layer, ["Basel", "Lund"] * 4):
        ...     y = layer(x)
        >>> [round(each.mean().item(), 3) + 0.0 for each in (y[::2], y[1::2])]
        [0.0, 0.0]

    Note:
        It removes whatever differs between sites, also what should not go: where one hospital sends the sick and the
        other the healthy, the difference between them is partly the disease. A site seen in few images has poor
        statistics; one never seen is served by the pooled ones, as by `BatchNorm`. Where activation checkpointing
        repeats a forward pass, it remembers the sites of the last one. DistributedDataParallel hands the statistics of
        its first process to all: use ``process_group="world"``, or a site that process never sees is lost.
        ``torch.compile`` makes a graph for each new list of sites.

    Reference:
        Chang et al. (2019), "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation"; Li et al. (2021),
        "FedBN"; Karani et al. (2018), "A Lifelong Learning Approach to Brain MR Segmentation Across Scanners and
        Protocols".

    """

    _needs_running_stats = True
    domain_mean: Tensor
    domain_var: Tensor
    domain_batches: Tensor
    domain_weight: nn.Parameter | None
    domain_bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        domains: int | Sequence[str],
        domain_affine: bool = False,
        **common: Unpack[Common],
    ) -> None:
        names = _names(domains)
        if domain_affine and not affine:
            raise ConfigError(f"DomainBatchNorm: expected affine=True with domain_affine=True, got {affine!r}.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **common)
        self.domains = names
        self.domain_affine = domain_affine
        self.sites: tuple[Site, ...] | None = None  # of the samples of the next batch; `domain` sets it
        self._last_sites: tuple[Site, ...] | None = None
        shape, device = (len(names), num_features), common.get("device")
        like: dict[str, Any] = {"device": device, "dtype": common.get("dtype")}
        self.register_buffer("domain_mean", torch.zeros(shape, **like))
        self.register_buffer("domain_var", torch.ones(shape, **like))
        self.register_buffer("domain_batches", torch.zeros(len(names), device=device, dtype=torch.int64))
        self.register_buffer("domain_names", names_buffer(names, device))
        for name, start, common_one in (
            ("domain_weight", torch.ones, self.weight),
            ("domain_bias", torch.zeros, self.bias),
        ):
            wanted = domain_affine and common_one is not None
            self.register_parameter(name, nn.Parameter(start(shape, **like)) if wanted else None)

    _passing: ClassVar[Mapping[str, Any]] = {**BatchNorm._passing, "sites": None, "_last_sites": None}

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is boolean, True on values that count, of the input's shape with or without channels."""
        sites = self._last_sites if repeating_forward() else self.sites
        self._last_sites = sites
        if sites is None and self._group() is None:
            return super().forward(input, mask)
        self._check_input_dim(input)
        groups = self._groups(len(input), sites)
        if not self._uses_batch:
            return self._by_site(input, mask, groups, self._evaluate_site)
        if mask is None and self._group() is None:
            return self._normalize_sites_at_once(input, groups)
        measured: dict[int | None, Moments] = {}

        def normalize_site(x: Tensor, kept: Tensor | None, site: int | None) -> Tensor:
            measured[site] = self._measure(x, kept)
            return self._normalize_by(x, measured[site], kept, *self._affine(site))

        y = self._by_site(input, mask, groups, normalize_site)
        self.batch_moments = Moments.pool(measured.values())
        self._track(self.batch_moments, {site: each for site, each in measured.items() if site is not None})
        return y

    def _normalize_sites_at_once(self, x: Tensor, groups: Mapping[int | None, list[int]]) -> Tensor:
        """Measure and normalize all sites in one operation."""
        sizes = [len(places) for places in groups.values()]
        for size in sizes:
            self._check_count(x[:size], None, None)
        places = [place for each in groups.values() for place in each]
        order = None if places == list(range(len(x))) else torch.tensor(places, device=x.device)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if self.domain_weight is not None:
            weights, biases = zip(*(self._affine(site) for site in groups), strict=True)
            weight, bias = torch.stack(weights), None if self.domain_bias is None else torch.stack(biases)
        y, measured = self._at_once_by(x, weight, bias, kernels.Groups(sizes, order))
        self.batch_moments = measured.pooled()
        each = (Moments(*fields) for fields in zip(*measured.fields(), strict=True))
        self._track(self.batch_moments, {site: m for site, m in zip(groups, each, strict=True) if site is not None})
        return y

    def _by_site(self, x: Tensor, mask: Tensor | None, groups: Mapping[int | None, list[int]], apply: Apply) -> Tensor:
        """Apply something to the samples of each site, and put them in their places again."""
        full = None if mask is None else broadcast_mask(mask, x, 1)
        if len(groups) == 1:
            return apply(x, full, next(iter(groups)))
        parts, order = [], [place for places in groups.values() for place in places]
        for site, places in groups.items():
            index = torch.tensor(places, dtype=torch.int64, device=x.device)
            parts.append(apply(x[index], None if full is None else full[index], site))
        back = torch.tensor(order, dtype=torch.int64, device=x.device).argsort()
        return torch.cat(parts)[back]

    def _evaluate_site(self, x: Tensor, mask: Tensor | None, site: int | None) -> Tensor:
        if site is None:
            return self._normalize_with_running_statistics(x, mask)
        assert self.running_mean is not None
        assert self.running_var is not None
        seen = self.domain_batches[site] > 0
        mean = torch.where(seen, self.domain_mean[site], self.running_mean)
        var = torch.where(seen, self.domain_var[site], self.running_var)
        return self._normalize_with(x, mask, mean, var, *self._affine(site))

    def _affine(self, site: int | None) -> tuple[Tensor | None, Tensor | None]:
        if site is None or self.domain_weight is None:
            return self.weight, self.bias
        return self.domain_weight[site], None if self.domain_bias is None else self.domain_bias[site]

    def _further_moves(self, sites: BySite) -> list[Move]:
        moves: list[Move] = []
        for site, moments in sites.items():
            running = self.domain_mean[site], self.domain_var[site]
            # Among several processes every site is here, and one without a sample stays where it is.
            batch = tuple(
                torch.where(moments.count > 0, value, old)
                for value, old in zip((moments.mean, moments.unbiased_variance), running, strict=True)
            )
            weight = self._weight_of_new(self.domain_batches[site], moments.mean.dtype)
            moves.append((running, (batch[0], batch[1]), weight))
        return moves

    def _count_sites(self, sites: BySite, moved: Tensor) -> None:
        for site, moments in sites.items():
            self.domain_batches[site] += moved & (moments.count > 0).all()

    def _groups(self, samples: int, sites: Sequence[Site] | None) -> dict[int | None, list[int]]:
        """Return the samples of each site there is, None for unknown ones; of every site where processes share them."""
        sites = [None] * samples if sites is None else sites
        if len(sites) != samples:
            raise ShapeError(
                f"{self._who}: expected one site a sample, got {len(sites)} sites for {samples} samples. Pass "
                "mednorm.domain the sites of this batch."
            )
        groups: dict[int | None, list[int]] = {}
        if self._group() is not None:  # each of them must run each reduction
            groups = {site: [] for site in (*range(len(self.domains)), None)}
        for place, site in enumerate(sites):
            groups.setdefault(self._number(site), []).append(place)
        return dict(sorted(groups.items(), key=lambda item: len(self.domains) if item[0] is None else item[0])) or {
            None: []
        }

    def _number(self, site: Site) -> int | None:
        if isinstance(site, str):
            if site not in self.domains and self.training:
                near = difflib.get_close_matches(site, self.domains, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else "None stands for an unknown site."
                raise ConfigError(
                    f"{self._who}: expected sites of {', '.join(self.domains)} in training, got {site!r}. {hint}"
                )
            return self.domains.index(site) if site in self.domains else None
        if site is None or site == -1:
            return None
        if not 0 <= site < len(self.domains):
            raise ConfigError(
                f"{self._who}: expected the number of a site in 0 … {len(self.domains) - 1}, or -1 for an unknown one, "
                f"got {site!r}."
            )
        return site

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: list[str],
    ) -> None:
        """Put the sites of a state_dict into this layer's order, by their names."""
        key = f"{prefix}domain_names"
        if key in state_dict:
            names = _names_in(state_dict[key])
            if sorted(names) != sorted(self.domains):
                errors.append(
                    f"{self._who} at {prefix or 'the root'}: expected statistics of the sites "
                    f"{', '.join(self.domains)}, got those of {', '.join(names) or 'none'}."
                )
                return
            order = [names.index(name) for name in self.domains]
            for name in ("domain_mean", "domain_var", "domain_batches", "domain_weight", "domain_bias"):
                if f"{prefix}{name}" in state_dict:
                    state_dict[f"{prefix}{name}"] = state_dict[f"{prefix}{name}"][order]
            state_dict[key] = names_buffer(self.domains, state_dict[key].device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def reset_running_stats(self) -> None:
        """Forget the running statistics of all and of each site."""
        super().reset_running_stats()
        if hasattr(self, "domain_mean"):  # not yet where torch's constructor calls this
            self.domain_mean.zero_()
            self.domain_var.fill_(1)
            self.domain_batches.zero_()

    def extra_repr(self) -> str:
        """Add the sites."""
        own = f"domains={list(self.domains)}, domain_affine={self.domain_affine}"
        return f"{super().extra_repr()}, {own}"


def names_buffer(names: Sequence[str], device: torch.device | str | None) -> Tensor:
    """Return the names of sites as the bytes of their JSON text, so that a state_dict of tensors alone holds them."""
    return torch.tensor(list(json.dumps(list(names)).encode()), dtype=torch.uint8, device=device)


def _names_in(buffer: Tensor) -> list[str]:
    """Read what `names_buffer` wrote; what is no such thing names no site."""
    try:
        names = json.loads(bytes(buffer.cpu().tolist()))
    except (TypeError, ValueError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _names(domains: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(domains, int) and not isinstance(domains, bool) and domains > 0:
        return tuple(str(number) for number in range(domains))
    several = isinstance(domains, Sequence) and not isinstance(domains, str)
    if isinstance(domains, int) or not several or not domains or not all(isinstance(name, str) for name in domains):
        raise ConfigError(
            f"DomainBatchNorm: expected domains to be the names of sites, or their number, got {domains!r}."
        )
    if len(set(domains)) < len(domains):
        raise ConfigError(f"DomainBatchNorm: expected each site once in domains, got {list(domains)}.")
    return tuple(domains)
