"""One conversion: prepared layer by layer without a change, then applied at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mednorm.errors import ConfigError
from mednorm.layers import DomainBatchNorm
from mednorm.surgery.building import build, group_of, groups_of, owned, remembered
from mednorm.surgery.carried import carried
from mednorm.surgery.conversion import ConvertedLayer, LeftLayer, kind_of
from mednorm.surgery.families import NEEDS_RANK, NEEDS_RUNNING, OURS, Norm
from mednorm.surgery.freeze import adopt_parameters
from mednorm.surgery.fuse import Fusion, release


@dataclass
class _Step:
    """A layer, and what it is to become."""

    name: str
    norm: Norm
    fresh: nn.Module
    fusion: Fusion | None
    exact: bool
    notes: list[str]
    own: tuple[set[str], set[str], set[str]]
    was: dict[str, Any]


class Plan:
    """One conversion: first prepared, layer by layer, without a change; then applied at once."""

    def __init__(self, model: nn.Module, to: str, options: Mapping[str, Any], dims: int | None) -> None:
        self.model, self.to, self.options, self.dims = model, to, options, dims
        self.steps: list[_Step] = []
        self.changed: list[ConvertedLayer] = []
        self.left: list[LeftLayer] = []
        tensors = (*model.parameters(), *model.buffers())
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.conv_ranks = {len(part.kernel_size) for part in model.modules() if isinstance(part, _ConvNd)}

    def prepare(self, name: str, norm: Norm, fusion: Fusion | None, unfused: str) -> None:
        """Prepare one layer, or note why it is left.

        Args:
            name: of the layer.
            norm: the layer.
            fusion: the activation that it is to take in.
            unfused: why it takes in none.

        Raises:
            ConfigError: something is missing without which no layer can be converted.

        """
        already = self._already(norm) and fusion is None
        reason = "is of this kind already" if already else self._why_not(norm)
        if reason:
            reason += f"; no activation taken in: {unfused}" if unfused else ""
            self.left.append(LeftLayer(name, kind_of(norm.module), reason))
            return
        if self.to == "domain" and norm.kind != "domain" and "domains" not in self.options:
            raise ConfigError("convert: expected domains=, the names of the sites or their number, got none.")
        notes: list[str] = []
        rank = self._rank(name, norm, notes)
        try:
            fresh = build(norm, self.to, self.options, rank, self.device)
        except ConfigError as error:
            self.left.append(LeftLayer(name, kind_of(norm.module), str(error)))
            return
        if not _can_become(norm.module, fresh):
            self.left.append(LeftLayer(name, kind_of(norm.module), "its class has __slots__, so it cannot change"))
            return
        exact = carried(norm, fresh, self.to, self.options, notes)
        if fusion is not None:
            fusion.into(fresh)
            notes.append("Takes in the activation after it.")
        elif unfused:
            notes.append(f"No activation taken in: {unfused}.")
        self.steps.append(_Step(name, norm, fresh, fusion, exact, notes, owned(norm), remembered(norm)))

    def apply(self) -> nn.Module:
        """Change what was prepared; return the network, another object where a single layer with activation was it."""
        for step in self.steps:
            source, activation = kind_of(step.norm.module), step.norm.activation
            slope = getattr(step.norm.module, "negative_slope", 0.0)
            module = step.norm.module
            _become(module, step.fresh, step.own)
            if self.to == "torch":
                module.__dict__.pop("_mednorm_was", None)
            else:
                module.__dict__["_mednorm_was"] = step.was
            adopt_parameters(module, [name for name in step.fresh._parameters if name.startswith("domain_")])
            if step.fusion is not None:
                step.fusion.apply(module)
            if activation is not None and self.to not in OURS:
                self.model, note = release(self.model, module, activation, slope)
                step.notes.append(note)
            target = kind_of(module)
            self.changed.append(ConvertedLayer(step.name, source, target, step.exact, tuple(step.notes)))
        return self.model

    def _already(self, norm: Norm) -> bool:
        if norm.kind != self.to:
            return False
        now: dict[str, Any] = {
            "momentum": getattr(norm.module, "momentum", None),
            "process_group": norm.process_group,
            **norm.own,
        }
        now["track_running_stats"] = norm.runs
        if "num_groups" in self.options:
            now["num_groups"] = norm.module.num_groups
        wanted = dict(self.options)
        if "process_group" in wanted:
            wanted["process_group"] = group_of(norm, self.to, wanted)
        if self.to == "group" and wanted:
            wanted["num_groups"] = groups_of(norm.channels, wanted)
        if self.to == "domain" and "domains" in wanted:
            wanted["domains"] = DomainBatchNorm(1, domains=wanted["domains"]).domains
        return all(now.get(name) == value for name, value in wanted.items())

    def _why_not(self, norm: Norm) -> str:
        if self.to in NEEDS_RUNNING and isinstance(norm.module, _BatchNorm) and not norm.runs:
            return f"keeps no running statistics, which {OURS[self.to][0].__name__} normalizes with"
        return ""

    def _rank(self, name: str, norm: Norm, notes: list[str]) -> int | None:
        if self.to not in NEEDS_RANK or norm.rank is not None:
            return norm.rank
        if self.to == "torch" and norm.torchs == "SyncBatchNorm":  # which is for any
            return None
        if self.dims is not None:
            return self.dims
        if len(self.conv_ranks) != 1:
            got = "convolutions of " + " and ".join(f"{rank}-D" for rank in sorted(self.conv_ranks))
            raise ConfigError(
                f"convert: expected to know the number of spatial axes of {name}, which is of no class of torch, got "
                f"{got if self.conv_ranks else 'no convolutions'} in the network. Pass dims=1, 2 or 3. Nothing was "
                "changed."
            )
        (rank,) = self.conv_ranks
        notes.append(f"{rank} spatial axes, as the convolutions have; dims= says otherwise.")
        return rank


def _can_become(module: nn.Module, fresh: nn.Module) -> bool:
    """Try on an empty object of the same class whether Python lets it change to the other."""
    empty = object.__new__(type(module))
    try:
        empty.__class__ = type(fresh)
    except TypeError:
        return False
    return True


def _become(module: nn.Module, fresh: nn.Module, own: tuple[set[str], set[str], set[str]]) -> None:
    """Turn a layer into another where it stands: hooks, mode and what a user added stay."""
    attributes, parameters, buffers = own
    state, bare = module.__dict__, vars(nn.Module())
    for name in attributes:
        state.pop(name, None)
    state.update({name: value for name, value in vars(fresh).items() if name not in bare})
    _refill(module._parameters, fresh._parameters, parameters)
    _refill(module._buffers, fresh._buffers, buffers)
    module._non_persistent_buffers_set -= buffers
    module._non_persistent_buffers_set |= fresh._non_persistent_buffers_set
    module.__class__ = type(fresh)


def _refill(held: dict[str, Any], new: Mapping[str, Any], old: set[str]) -> None:
    added = {name: value for name, value in held.items() if name not in old}
    held.clear()
    held.update({**new, **added})
