"""Batch renormalization, with the schedule of its paper in steps or as a share of the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError
from mednorm.layers.batch import BatchNorm, Common
from mednorm.layers.tracking import repeating_forward
from mednorm.moments import Moments

# When the paper lets go, as shares of its schedule of 40,000 steps: batch normalization to 5,000, d at 25,000, r at the
# end.
_FREE_FROM, _D_AT, _R_AT = 1 / 8, 5 / 8, 1.0
_REPEATABLE = 16  # how many of the last forward passes checkpointing may repeat


def _none_yet() -> deque[tuple[Tensor, Tensor, Tensor]]:
    return deque(maxlen=_REPEATABLE)


class BatchRenorm(BatchNorm):
    r"""Normalize by the batch, corrected towards the running statistics, so that training sees what evaluation will.

    .. math:: y = \operatorname{act}\!\left(\gamma\left(\frac{x-\mu_B}{\sigma_B}\,r + d\right) + \beta\right), \qquad
              r = \operatorname{clip}_{[1/r_{max},\,r_{max}]}\frac{\sigma_B}{\sigma}, \qquad
              d = \operatorname{clip}_{[-d_{max},\,d_{max}]}\frac{\mu_B-\mu}{\sigma}

    with :math:`\mu_B` and :math:`\sigma_B=\sqrt{\sigma^2_B+\epsilon}` those of the batch, :math:`\mu` and
    :math:`\sigma` the running ones before this batch, and no gradient through r and d. Unclipped, the output is
    :math:`\gamma(x-\mu)/\sigma+\beta`: training equals evaluation, and only the gradient still knows the batch.

    The clips widen over `schedule` as in the paper: batch normalization (r = 1, d = 0) for the first eighth, then
    linearly to `d_max` at five eighths and to `r_max` at the end. The step is ``num_batches_tracked``, so a resumed
    run goes on where it stood, and a network trained before starts with the clips wide open. In evaluation, and in how
    the running statistics move, the layer is `BatchNorm`.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the new value; None for the plain average.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: keep running statistics.
        r_max: the widest clip of r, at least 1; 1 for none of the correction.
        d_max: the widest clip of d, at least 0.
        schedule: over how many steps the clips widen: a whole number of steps, or a share of the run in [0.0, 1.0].
            0 for at once, from the second step on. A step is a batch that moves the running statistics: a training
            pass, or all those within `mednorm.accumulate`. Resetting the statistics starts it again.
        total_steps: length of the run in such steps, which a share needs; `mednorm.set_total_steps` sets it for a whole
            network.
        **common: the keywords of `BatchNorm`.

    Shape:
        Input and output ``(N, C, *)``.

    Raises:
        ConfigError: an argument is out of its range; in training, `schedule` is a share and `total_steps` unknown.
        ShapeError: as `BatchNorm`.

    Example:
        >>> import torch
        >>> layer = BatchRenorm(4, schedule=0)
        >>> batches = 5 + 2 * torch.randn(100, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> for batch in batches:
        ...     y = layer(batch)
        >>> moved = (y - layer.eval()(batch)).abs().mean()  # evaluation of the batch just trained on
        >>> bool(moved < 0.05)
        True

    Note:
        Made for batches of one to eight volumes. It does not help where the running statistics themselves are wrong: a
        site that comes late, or fewer than some hundred steps. Of the forward passes that activation checkpointing may
        repeat, r and d of the last sixteen are kept.

    Reference:
        Ioffe (2017), "Batch Renormalization", Algorithm 1 and Section 4. The paper moves the running :math:`\sigma`;
        here the variance moves, so that the state is that of `BatchNorm`.

    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: int | float = 1000,
        total_steps: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        _check(r_max, d_max, schedule, total_steps)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **common)
        self.r_max = r_max
        self.d_max = d_max
        self.schedule = schedule
        self.total_steps = total_steps
        self._corrections = _none_yet()

    _at_once = False  # the correction is made from the batch's statistics
    _passing: ClassVar[Mapping[str, Any]] = {**BatchNorm._passing, "_corrections": deque(maxlen=_REPEATABLE)}

    def clips(self) -> tuple[Tensor, Tensor]:
        """Return the clips of r and d at the next step."""
        assert self.num_batches_tracked is not None
        tracked = self.num_batches_tracked
        step = tracked.float() if tracked.device.type == "mps" else tracked.double()  # which has no float64
        end = self._schedule_steps()
        if end == 0:
            passed_r = passed_d = (step > 0).to(step.dtype)
        else:
            start = _FREE_FROM * end
            passed_r = ((step - start) / (_R_AT * end - start)).clamp(0, 1)
            passed_d = ((step - start) / (_D_AT * end - start)).clamp(0, 1)
        return 1 + (self.r_max - 1) * passed_r, self.d_max * passed_d

    def _normalize(self, x: Tensor, moments: Moments, mask: Tensor | None) -> Tensor:
        if self.running_mean is None:
            return super()._normalize(x, moments, mask)
        r, d = self._corrected(moments)
        weight = r if self.weight is None else self.weight.to(r.dtype) * r
        bias = d if self.weight is None else self.weight.to(r.dtype) * d
        return self._normalize_by(x, moments, mask, weight, bias if self.bias is None else bias + self.bias)

    @torch.no_grad()
    def _corrected(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return r and d; where a forward pass is being repeated, those of the first time."""
        if repeating_forward() and self._corrections:
            # Which pass it is, its batch says: the sums of a repeated one are the same, but for non-determinism.
            nearest = min(self._corrections, key=lambda kept: float((kept[0] - moments.mean).abs().max()))
            return nearest[1:]
        assert self.running_mean is not None
        assert self.running_var is not None
        dtype = moments.mean.dtype
        r_clip, d_clip = (clip.to(dtype) for clip in self.clips())
        running_std = (self.running_var.to(dtype) + self.eps).sqrt()
        r = (moments.variance + self.eps).sqrt() / running_std
        d = (moments.mean - self.running_mean.to(dtype)) / running_std
        some = moments.count > 0
        r = torch.where(some, torch.clamp(r, r_clip.reciprocal(), r_clip), 1)
        d = torch.where(some, torch.clamp(d, -d_clip, d_clip), 0)
        if torch.compiler.is_compiling():
            # The compiler may compute these again in the backward pass, from running statistics that have moved
            # (PyTorch's issue 197039). It keeps what comes out of a reduction.
            return torch.stack([r] * 8).amax(0), torch.stack([d] * 8).amax(0)
        self._corrections.append((moments.mean, r, d))
        return r, d

    def _schedule_steps(self) -> float:
        if isinstance(self.schedule, Integral):
            return float(self.schedule)
        if self.total_steps is None:
            raise ConfigError(
                f"{self._who}: expected the length of the run, of which schedule={self.schedule!r} is a share, got "
                "total_steps=None. Call mednorm.set_total_steps(network, steps), or give schedule in whole steps."
            )
        return float(self.schedule) * self.total_steps

    def extra_repr(self) -> str:
        """Add the clips and their schedule."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, schedule={self.schedule}"


def set_total_steps(network: nn.Module, steps: int) -> int:
    """Tell every layer whose schedule is a share of the run how long the run is; return how many layers there were.

    Args:
        network: any network, or one layer.
        steps: training passes of the whole run, at least 1; with `mednorm.accumulate`, its optimizer steps.

    Raises:
        ConfigError: `steps` is no whole number of at least 1.

    Example:
        >>> layer = BatchRenorm(4, schedule=0.5)
        >>> set_total_steps(layer, 200)
        1
        >>> [round(clip.item(), 3) for clip in layer.clips()]
        [1.0, 0.0]

    """
    _check_total(steps)
    layers = [module for module in network.modules() if isinstance(module, BatchRenorm)]
    for layer in layers:
        layer.total_steps = steps
    return len(layers)


def _check(r_max: float, d_max: float, schedule: int | float, total_steps: int | None) -> None:
    if not 1 <= r_max < math.inf:
        raise ConfigError(f"BatchRenorm: expected r_max of at least 1 and finite, got {r_max!r}. The paper's is 3.")
    if not 0 <= d_max < math.inf:
        raise ConfigError(f"BatchRenorm: expected d_max of at least 0 and finite, got {d_max!r}. The paper's is 5.")
    whole = isinstance(schedule, Integral) and not isinstance(schedule, bool) and schedule >= 0
    share = isinstance(schedule, Real) and not isinstance(schedule, Integral) and 0 <= schedule <= 1
    if not whole and not share:
        raise ConfigError(
            f"BatchRenorm: expected schedule to be a whole number of steps or a share of the run in [0.0, 1.0], got "
            f"{schedule!r}."
        )
    if whole and schedule == 1:
        raise ConfigError(
            f"BatchRenorm: expected schedule to be 0 (at once), a number of steps above 1, or a share of the run, got "
            f"{schedule!r}, which could be either. The whole run is 1.0."
        )
    if total_steps is not None:
        _check_total(total_steps)


def _check_total(steps: int) -> None:
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(
            f"BatchRenorm: expected total_steps to be a whole number of at least 1, got {steps!r}. It is the number of "
            "optimizer steps of the whole run."
        )
