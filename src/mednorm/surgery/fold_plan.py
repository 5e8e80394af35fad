"""Work out what `mednorm.fold` is to write, and compare each pair of layers; writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from mednorm.errors import ConfigError
from mednorm.surgery.affine import (
    Linear,
    Weights,
    activation_of,
    channels,
    folded_after,
    folded_before,
    is_batch_norm,
    is_linear,
    pads_with_zeros,
    ranks_of,
    scale_and_shift,
    why_not_linear,
    why_not_norm,
)
from mednorm.surgery.chains import pairs_in
from mednorm.surgery.flow import flows_of, named
from mednorm.surgery.fold_report import FoldedLayer, FoldReport, LeftNorm
from mednorm.surgery.parity import TOLERANCES, difference_by_channel, on_cpu, random_input, working_type

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass
class Plan:
    """What is to be done, worked out and compared; nothing is written."""

    model: nn.Module
    example: tuple[Any, ...] | None
    ranks: dict[int, set[int]]
    seed: int
    tolerance: float | None
    folded: list[FoldedLayer] = field(default_factory=list)
    left: list[LeftNorm] = field(default_factory=list)
    weights: dict[str, Weights] = field(default_factory=dict)
    replacements: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        flows = flows_of(self.model, lambda m: is_linear(m) or isinstance(m, _NORMS), self.example)
        self.holders = Counter(
            tensor.untyped_storage().data_ptr()
            for module in self.modules.values()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and not nn.parameter.is_lazy(tensor)
        )
        preceding = pairs_in(self.model, flows, is_linear, is_batch_norm)
        following = pairs_in(self.model, flows, is_batch_norm, is_linear, at_once=True)
        self.notes = tuple(dict.fromkeys((*preceding.notes, *following.notes)))
        layer_before = {norm: layer for layer, norm in preceding.pairs}
        layer_after = dict(following.pairs)
        for name, norm in self.modules.items():
            if not isinstance(norm, _NORMS):
                continue
            reason = why_not_norm(norm)
            if not reason:
                first = self._reason(name, layer_before, "before") if name in layer_before else None
                first = preceding.reasons.get(name, "") if first is None else first
                second = self._reason(name, layer_after, "after") if first and name in layer_after else None
                second = following.reasons.get(name, "") if second is None else second
                reason = first and second and (first if first == second else f"{first}; {second}")
            if reason:
                self.left.append(LeftNorm(name, type(norm).__name__, reason))

    @property
    def tolerance_of_all(self) -> float:
        """What the whole network is held to: as the narrowest type that was folded."""
        types = {weight.dtype for weight, _ in self.weights.values()} or {torch.float32}
        return max(self._tolerance(dtype) for dtype in types)

    def report(self, max_difference: float | None = None, scale: float | None = None) -> FoldReport:
        """Return the report of what was done."""
        limit = self.tolerance_of_all
        return FoldReport(self.model, tuple(self.folded), tuple(self.left), self.notes, limit, max_difference, scale)

    def _tolerance(self, dtype: torch.dtype) -> float:
        return TOLERANCES.get(dtype, 1e-5) if self.tolerance is None else self.tolerance

    def _reason(self, name: str, partners: dict[str, str], direction: str) -> str:
        """Plan to fold one normalization into its neighbour; return why not, or nothing."""
        norm, layer = self.modules[name], self.modules[partners[name]]
        assert isinstance(norm, _BatchNorm)
        assert isinstance(layer, Linear)
        what = named(layer, partners[name])
        reason = why_not_linear(layer)
        if reason:
            return f"{what} {reason}"
        tensors = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
        if any(self.holders[tensor.untyped_storage().data_ptr()] > 1 for tensor in tensors):
            return f"{what} shares its weights with another layer"
        rank = 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)
        wrong = self.ranks.get(id(layer), set()) - {rank}
        if rank not in ranks_of(norm):
            wrong |= ranks_of(norm)
        if wrong:
            return f"{what} takes {min(wrong)} axes, so its channels are not those that it normalizes"
        facing = channels(layer)[direction == "before"]
        if facing != norm.num_features:
            return f"{what} has {facing} channels there and it has {norm.num_features}, so they are not the same"
        scale, shift = (vector.cpu() for vector in scale_and_shift(norm))
        if direction == "after" and activation_of(norm) is not None:
            return f"its activation stands between it and {what}"
        if direction == "after" and pads_with_zeros(layer) and shift.any():
            kind = "spreads its input unevenly" if isinstance(layer, _ConvTransposeNd) else "pads with zeros"
            return f"{what} {kind}, and the normalization shifts, by up to {float(shift.abs().max()):.3g}"
        return self._fold(name, partners[name], direction, scale, shift)

    def _fold(self, name: str, into: str, direction: str, scale: Tensor, shift: Tensor) -> str:
        norm, layer = self.modules[name], self.modules[into]
        assert isinstance(layer, Linear)
        dtype, work = layer.weight.dtype, working_type(layer)
        old = self.weights.get(into, (layer.weight.detach(), None if layer.bias is None else layer.bias.detach()))
        exact = old[0].to("cpu", torch.float64), None if old[1] is None else old[1].to("cpu", torch.float64)
        arithmetic = folded_after if direction == "before" else folded_before
        new = tuple(None if t is None else t.to(dtype) for t in arithmetic(layer, exact, scale, shift))
        if not all(t is None or bool(t.isfinite().all()) for t in new):
            return f"its weights in {named(layer, into)} would not be finite in {dtype}"
        assert new[0] is not None

        x = random_input(layer, work, self.seed)
        first = on_cpu(layer, work, {"weight": old[0], "bias": old[1]})
        then = on_cpu(layer, work, {"weight": new[0], "bias": new[1]})
        one = on_cpu(norm, work)
        activation = activation_of(norm)
        with torch.no_grad():
            middle = first(x) if direction == "before" else one(x)
            before = one(middle) if direction == "before" else first(middle)
            after = then(x) if activation is None else activation(then(x))
            # Where the two terms of s·f(x) + t nearly cancel, they are what rounding is relative to.
            size = before.abs()
            if direction == "before":
                size = size.maximum((middle * scale.view(1, -1, *[1] * (middle.dim() - 2))).abs().to(size.dtype))
        apart, equal = difference_by_channel(before, after, size, self._tolerance(dtype))
        if not equal:
            raise ConfigError(
                f"fold: expected {named(norm, name)} folded into {named(layer, into)} to give the same, within a "
                f"relative {self._tolerance(dtype):.2g}, got a difference of {apart:.2g} at up to "
                f"{float(size.max()):.3g}. Nothing was changed."
            )
        self.weights[into] = (new[0], new[1])
        self.replacements[name] = (activation or nn.Identity()).train(norm.training)
        instead = type(self.replacements[name]).__name__
        self.folded.append(FoldedLayer(name, into, direction, instead, apart, float(before.abs().max())))
        return ""
