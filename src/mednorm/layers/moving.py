"""Batch normalization by moving statistics in training too ("dynamic statistics")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from mednorm import kernels
from mednorm.errors import ConfigError
from mednorm.functional import activation_slope
from mednorm.layers.batch import BatchNorm, Common
from mednorm.layers.projection import NormalizeProjected, Project, Window
from mednorm.layers.tracking import repeating_forward
from mednorm.layers.visible import visibly
from mednorm.moments import Moments

Centering = Literal["mean", "weights"]


class MovingBatchNorm(BatchNorm):
    r"""Normalize with moving statistics in training, and correct the gradient by moving averages of its own.

    .. math:: y = \operatorname{act}(\gamma\,\hat x + \beta), \qquad \hat x = \frac{x-\mu}{\sigma}, \qquad
              \sigma = \sqrt{r_{\sigma^2}+\epsilon}

    with :math:`\mu = r_\mu` and :math:`r_{\sigma^2}` the running statistics after this batch moved them. So training is
    evaluation, and a batch of one or two images no longer brings its own noise. With :math:`g` the gradient of
    :math:`\hat x`, and averages (bars) over the last `window` backward passes,

    .. math:: \partial x = \frac1\sigma\left(g - \bar B - (\hat x-\bar m)\,
              \frac{\bar A - \bar B\bar m}{\bar c-\bar m^2+\epsilon/\sigma^2}\right), \qquad
              B=E[g],\; A=E[g\hat x],\; m=E[\hat x],\; c=E[\hat x^2]

    Where the statistics are those of the batch, m = 0 and the denominator is 1 (with an unbiased running variance
    (n−1)/n): the paper's correction, without which the weights before the layer grow without bound. Where they are some
    steps old, it is the projection for the mean and variance that :math:`\hat x` really has. γ and β learn by the
    gradient of this batch.

    The running statistics move with weight :math:`m/(1-(1-m)^t)` at the t-th step, so that nothing is left of their
    initial values, and every `refresh_every` steps alone: in between no statistics are taken. Evaluation is that of
    `BatchNorm`.

    ``centering="weights"`` is the paper's form: no mean is subtracted (the running mean stays 0), the running variance
    is the mean *square*, and the weights of the convolution before the layer are to be centred
    (`mednorm.centralize`). It saves the least stable of the statistics, and changes what the network computes.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the new value; None for the plain average.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: must be True.
        refresh_every: training passes (within `mednorm.accumulate`: steps) from one move of the running statistics to
            the next, at least 1.
        window: backward passes whose means are averaged, at least 1. Where micro-batches are accumulated, each is one.
        centering: ``"mean"`` or ``"weights"``.
        **common: the keywords of `BatchNorm`.

    Shape:
        Input and output ``(N, C, *)``.

    Raises:
        ConfigError: an argument is out of its range.
        ShapeError: as `BatchNorm`.
        RuntimeError: second derivatives are asked for; the gradient is no derivative of the output.

    Example:
        >>> import torch
        >>> layer = MovingBatchNorm(4)
        >>> for batch in 5 + 2 * torch.randn(50, 1, 4, 16, 16):
        ...     y = layer(batch)
        >>> torch.equal(y, layer.eval()(batch))
        True

    Note:
        The means of the backward passes (`backward_window`) are state outside the state_dict, whose keys are those of
        `BatchNorm`: a run resumed from a checkpoint fills its window anew. With a gradient scaler, means from before a
        change of its scale stay in the window for as long. A large `refresh_every` wants a small learning rate: the
        statistics must not fall behind the weights. ``torch.compile`` makes a graph for each step between two
        refreshes, eight at most by default. With a mask, the means are over the values that it keeps. A layer that a
        step uses twice and activation checkpointing repeats is repeated with statistics that have moved once more.

    Reference:
        Yan, Wan, Zhang, Zhang, Wei & Sun (2020), "Towards Stabilizing Batch Statistics in Backward Propagation of
        Batch Normalization" (MABN), Sections 3.2 to 4. The denominator is ours; so is ``centering="mean"``.

    """

    _needs_running_stats = True
    _moves_plainly = False
    refresh_every: int
    window: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        refresh_every: int = 1,
        window: int = 16,
        centering: Centering = "mean",
        **common: Unpack[Common],
    ) -> None:
        for name, value in (("refresh_every", refresh_every), ("window", window)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"MovingBatchNorm: expected {name} to be a whole number of at least 1, got {value!r}."
                )
        if centering not in ("mean", "weights"):
            raise ConfigError(f"MovingBatchNorm: expected centering to be 'mean' or 'weights', got {centering!r}.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **common)
        self.refresh_every = refresh_every
        self.window = window
        self.centering = centering
        self._since_refresh = 0
        self._step_begun = False
        # No buffers: DistributedDataParallel would hand one process's round, and half precision overflow.
        self.backward_window = Window(window, num_features)

    _passing: ClassVar[Mapping[str, Any]] = {**BatchNorm._passing, "_step_begun": False}

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is boolean, True on values that count, of the input's shape with or without channels."""
        if not self.training or self.running_mean is None:
            return super().forward(input, mask)
        self._check_input_dim(input)
        refresh = self._since_refresh == 0
        moments = self._measure(input, mask) if refresh or self._first_step else None
        if not repeating_forward():
            if refresh and moments is not None:
                self._track(moments)
            self._count_step()
        mean, var = self._forward_statistics(input, moments if self._first_step else None)
        if mask is None and kernels.has_sums(input, squares=True):
            weight, bias = (None if vector is None else vector.to(mean.dtype) for vector in (self.weight, self.bias))
            y: Tensor = visibly(
                NormalizeProjected.apply,
                input,
                weight,
                bias,
                mean,
                var,
                *self.backward_window.on(mean),
                self.eps,
                activation_slope(self.activation, self.negative_slope),
                self.centering == "mean",
                self._group(),
            )
            return y
        std = (var + self.eps).sqrt()
        # In the type of the arithmetic: in half precision the gradient would be rounded on its way to the projection.
        projected: Tensor = Project.apply(  # type: ignore[no-untyped-call]
            input.to(mean.dtype),
            mean,
            std,
            mask,
            *self.backward_window.on(mean),
            self.eps,
            self.centering == "mean",
            self._group(),
        )
        return self._normalize_with(projected, mask, mean, var, self.weight, self.bias).to(input.dtype)

    @property
    def _first_step(self) -> bool:
        """Whether micro-batches wait for the end of the very first step, so that the running statistics say nothing."""
        assert self.num_batches_tracked is not None
        return self.accumulating and int(self.num_batches_tracked) == 0

    @torch.no_grad()
    def _forward_statistics(self, x: Tensor, own: Moments | None) -> tuple[Tensor, Tensor]:
        """Return the statistics to normalize with, in the type of the arithmetic: the running ones unless given."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = (self.running_mean, self.running_var) if own is None else (self._centre(own), self._spread(own))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return mean.to(dtype, copy=True), var.to(dtype, copy=True)

    def _count_step(self) -> None:
        """Count to the next refresh: forward passes, or where micro-batches accumulate, whole steps."""
        if self.accumulating:
            self._step_begun = True
        elif self.refresh_every > 1:
            self._since_refresh = (self._since_refresh + 1) % self.refresh_every

    def begin_accumulation(self) -> None:
        """Let batches wait from now on."""
        super().begin_accumulation()
        self._step_begun = False

    def commit_accumulated(self) -> None:
        """Move the running statistics, where it is their turn, and count the step."""
        super().commit_accumulated()
        if self._step_begun:
            self._since_refresh = (self._since_refresh + 1) % self.refresh_every
        self._step_begun = False

    def _weight_of_new(self, tracked: Tensor, dtype: torch.dtype) -> Tensor | float:
        if self.momentum in (None, 0, 1):
            return super()._weight_of_new(tracked, dtype)
        # 1 − (1 − m)^t, which for a small momentum is a difference of nearly equal numbers, had it been written so.
        return self.momentum / -torch.expm1((tracked + 1).to(dtype) * math.log1p(-self.momentum))

    def _centre(self, moments: Moments) -> Tensor:
        return moments.mean if self.centering == "mean" else torch.zeros_like(moments.mean)

    def _spread(self, moments: Moments) -> Tensor:
        if self.centering == "mean":
            return moments.unbiased_variance
        return moments.variance + moments.mean.square()

    def reset_running_stats(self) -> None:
        """Forget the running statistics and those of the backward passes."""
        super().reset_running_stats()
        self._since_refresh = 0
        if hasattr(self, "backward_window"):  # not yet where torch's constructor calls this
            self.backward_window.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.backward_window.clear()  # it was of other weights

    def extra_repr(self) -> str:
        """Add what sets the layer apart."""
        own = f"refresh_every={self.refresh_every}, window={self.window}, centering={self.centering!r}"
        return f"{super().extra_repr()}, {own}"
