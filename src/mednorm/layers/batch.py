"""Batch normalization at any rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.functional import Activation, activation_slope, batch_normalize, normalize
from mednorm.layers.tracking import BySite, Move, ProcessGroup, is_process_group, move, others_of, repeating_forward
from mednorm.layers.visible import visibly
from mednorm.moments import Moments, broadcast_mask


class Common(TypedDict, total=False):
    """Keywords of every layer of the family; `BatchNorm` says what they are."""

    activation: Activation | None
    negative_slope: float
    process_group: ProcessGroup
    bias: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class Manner(TypedDict):
    """Keywords of a normalization."""

    eps: float
    activation: Activation | None
    negative_slope: float


class BatchNorm(_BatchNorm):
    r"""Normalize each channel over the batch and every spatial axis; a drop-in for ``torch.nn.BatchNorm1d/2d/3d``.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta\right)

    In training :math:`\mu` and the biased :math:`\sigma^2` are those of the batch, and the running statistics move:
    :math:`r \leftarrow (1-m)\,r + m\,b` with momentum :math:`m` the weight of the *new* value b (PyTorch's convention;
    Keras's is the weight of the old), the running variance from the *unbiased* batch variance. In
    evaluation :math:`\mu,\sigma^2` are the running statistics, so an image's result does not depend on its neighbours.

    A batch whose mean or variance is not finite in any channel (an overflow in mixed precision, a NaN voxel) moves no
    running statistic and is counted in ``num_batches_skipped``; its output is what the arithmetic gives, so that a
    gradient scaler still sees the overflow. An empty batch moves nothing either; nor does the forward pass that
    activation checkpointing repeats during the backward pass (of a layer that was compiled inside what is checkpointed
    it does, as in PyTorch: compile around the checkpoint). Within `mednorm.accumulate` the running statistics move
    once, by the statistics of all micro-batches together.

    Args:
        num_features: channels C.
        eps: added to the variance, so that a constant channel divides by a number.
        momentum: weight of the new value in [0, 1]; None for the plain average over all batches since the last reset.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: keep running statistics. Without, evaluation uses the batch too.
        activation: ``"relu"`` or ``"leaky_relu"``, applied in the same operation; the backward pass then needs no copy
            of the activation's output.
        negative_slope: slope of ``"leaky_relu"`` below 0.
        process_group: take the statistics over the batches of all these processes, whatever their sizes: a
            ``torch.distributed.ProcessGroup``, or ``"world"`` for all processes; None for this process alone. Each of
            them must run each forward and backward pass, if need be with an empty batch. Evaluation needs none. As in
            PyTorch, a layer that holds a ProcessGroup cannot be copied or pickled; one with ``"world"`` can. Without,
            DistributedDataParallel keeps the running statistics of its first process alone.
        bias: learn :math:`\beta`; without, and with `affine`, :math:`\gamma` alone.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Attributes:
        batch_moments: `Moments` of the last batch that was normalized with its own statistics: batch mean, variance
            and range, over all processes that share them; None before the first.
        num_batches_skipped: how many batches were kept out of the running statistics. Not part of the state_dict,
            whose keys are those of ``torch.nn.BatchNorm2d``.

    Shape:
        Input and output ``(N, C, *)``. Half precision computes in float32 inside.

    Raises:
        ConfigError: an argument is out of its range.
        ShapeError: fewer than 2 axes, another number of channels, whole numbers, or in training a single value per
            channel, whose variance says nothing.

    Example:
        >>> import torch
        >>> layer = BatchNorm(4, activation="relu")
        >>> y = layer(torch.randn(8, 4, 16, 16, 16))
        >>> layer.batch_moments.range.shape
        torch.Size([4])

    Note:
        Below about 8 images a batch the batch statistics are noisy, and voxels of one image are correlated, so a large
        volume does not replace a large batch. Where images are padded to one size, pass ``mask`` (True on real voxels):
        the padding then stays out of the statistics.

    Reference:
        Ioffe & Szegedy (2015), "Batch Normalization", Algorithms 1 and 2.

    """

    _needs_running_stats: ClassVar[bool] = False
    _at_once: ClassVar[bool] = True  # whether it normalizes with the statistics as they were measured
    _moves_plainly: ClassVar[bool] = True  # whether the running statistics move towards the batch's by the momentum
    _by_range: ClassVar[bool] = False  # whether the spread is that of the range
    batch_moments: Moments | None
    num_batches_skipped: Tensor
    process_group: ProcessGroup

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        process_group: ProcessGroup = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_arguments(type(self).__name__, num_features, eps, momentum, process_group)
        activation_slope(activation, negative_slope)
        if self._needs_running_stats and not track_running_stats:
            raise ConfigError(
                f"{type(self).__name__}: expected track_running_stats=True, got {track_running_stats!r}: it normalizes "
                "with them. Use BatchNorm to normalize with those of the batch."
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:  # PyTorch's own keyword is younger than the oldest version we work with
            self.register_parameter("bias", None)
        self.activation = activation
        self.negative_slope = negative_slope
        self.process_group = process_group
        self.batch_moments = None
        self._pending: list[tuple[Moments, BySite]] | None = None  # what waits for the end of a step
        skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("num_batches_skipped", skipped, persistent=False)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is boolean, True on values that count, of the input's shape with or without channels."""
        self._check_input_dim(input)
        if not self._uses_batch:
            return self._normalize_with_running_statistics(input, mask)
        if mask is None and self._at_once and self._group() is None:
            self._check_count(input, None, None)
            y, moments = self._at_once_by(input, self.weight, self.bias)
            self.batch_moments = moments
        else:
            moments = self._measure(input, mask)
            y = self._normalize(input, moments, mask)
        self._track(moments)
        return y

    @property
    def _uses_batch(self) -> bool:
        """Whether the batch's own statistics normalize it: in training, and where there are no running ones."""
        return self.training or self.running_mean is None

    def _at_once_by(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: kernels.Groups | None = None
    ) -> tuple[Tensor, Moments]:
        """Measure and normalize in one operation, where nothing is to be done with the statistics in between."""
        return visibly(batch_normalize, x, weight, bias, groups=groups, **self._manner)

    @property
    def _manner(self) -> Manner:
        """What every normalization of this layer is told."""
        return {"eps": self.eps, "activation": self.activation, "negative_slope": self.negative_slope}

    def _measure(self, x: Tensor, mask: Tensor | None) -> Moments:
        """Take the statistics of a batch, over the processes that share them, and remember them."""
        moments = self._shared(kernels.measure(x, mask))
        self._check_count(x, moments, mask, known=self._group() is None)
        self.batch_moments = moments
        return moments

    def _shared(self, moments: Moments) -> Moments:
        """Pool with the other processes, where there are any."""
        group = self._group()
        return moments if group is None else moments.all_reduce(group)

    def _normalize(self, x: Tensor, moments: Moments, mask: Tensor | None) -> Tensor:
        """Normalize with the batch's statistics."""
        return self._normalize_by(x, moments, mask, self.weight, self.bias)

    def _normalize_by(
        self,
        x: Tensor,
        moments: Moments,
        mask: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        return visibly(
            normalize,
            x,
            moments,
            weight,
            bias,
            mask=mask,
            by_range=self._by_range,
            process_group=self._gradient_group(),
            **self._manner,
        )

    def _normalize_with_running_statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        return self._normalize_with(x, mask, self.running_mean, self.running_var, self.weight, self.bias)

    def _normalize_with(
        self,
        x: Tensor,
        mask: Tensor | None,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Normalize with given statistics, through which no gradient flows."""
        if mask is not None:  # NaN or infinity outside the mask must not reach the gradient of the weight
            x = x.masked_fill(~(broadcast_mask(mask, x, 1) | x.isfinite()), 0)
        # In the type training computes in: torch's kernel refuses parameters of any other.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight, bias = (None if vector is None else vector.to(dtype) for vector in (weight, bias))
        if kernels.on_cpu(x) and not torch.compiler.is_compiling():  # normalized and rectified in one pass
            given = Moments.given(mean.to(dtype), var.to(dtype))
            return visibly(normalize, x, given, weight, bias, fixed=True, **self._manner)
        slope = activation_slope(self.activation, self.negative_slope)
        values = x.to(dtype) if slope else x  # in half precision the slope itself would be rounded
        y = torch.nn.functional.batch_norm(
            values, mean.to(dtype), var.to(dtype), weight, bias, training=False, eps=self.eps
        )
        return kernels.activate_(y, slope).to(x.dtype)

    # What a copy or a pickle leaves behind: it belongs to a step that is under way.
    _passing: ClassVar[Mapping[str, Any]] = {"_pending": None}

    def __getstate__(self) -> dict[str, Any]:
        """Leave to a copy what belongs to it."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, **copy.deepcopy(dict(self._passing))}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.num_batches_skipped.is_meta and self.running_mean is not None and not self.running_mean.is_meta:
            # Built on the meta device and given its values by assignment, of which this buffer has none.
            self.num_batches_skipped = torch.zeros((), dtype=torch.int64, device=self.running_mean.device)

    def reset_running_stats(self) -> None:
        """Forget the running statistics and how many batches were tracked and skipped."""
        super().reset_running_stats()
        if hasattr(self, "num_batches_skipped"):  # not yet where torch's constructor calls this
            self.num_batches_skipped.zero_()

    def _track(self, moments: Moments, sites: BySite | None = None) -> None:
        """Let the running statistics know of a batch: now, or where micro-batches are accumulated, later."""
        if not self.training or not self.track_running_stats or repeating_forward():
            return
        if self._pending is None:
            self._commit(moments, sites or {})
        else:
            self._pending.append((moments, sites or {}))

    @property
    def accumulating(self) -> bool:
        """Whether batches wait for the end of a step, within `mednorm.accumulate`, which calls the next three."""
        return self._pending is not None

    def begin_accumulation(self) -> None:
        """Let batches wait from now on."""
        self._pending = []

    def commit_accumulated(self) -> None:
        """Move the running statistics by all batches that wait, as if they were one."""
        waiting, self._pending = self._pending, []
        if waiting:
            sites = {site for _, parts in waiting for site in parts}
            pooled = {site: self._pool([parts[site] for _, parts in waiting if site in parts]) for site in sites}
            self._commit(self._pool([moments for moments, _ in waiting]), pooled)

    def end_accumulation(self) -> None:
        """Discard what still waits, and let batches move the statistics at once again."""
        self._pending = None

    def _pool(self, batches: list[Moments]) -> Moments:
        """Pool micro-batches."""
        return Moments.pool(batches)

    @torch.no_grad()
    def _commit(self, moments: Moments, sites: BySite) -> None:
        """Move the running statistics towards the batch's, without a branch on the data, so that it compiles."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        running, counts = (self.running_mean, self.running_var), (self.num_batches_tracked, self.num_batches_skipped)
        if self._moves_plainly and not sites and kernels.can_move(running, counts, moments):
            kernels.move(*running, *counts, moments, self.momentum)
            return
        some = (moments.count > 0).all()
        batch = self._centre(moments), self._spread(moments)
        weight = self._weight_of_new(self.num_batches_tracked, moments.mean.dtype)
        moves: list[Move] = [((self.running_mean, self.running_var), batch, weight), *self._further_moves(sites)]
        moved = move(moves, some & moments.finite)
        self.num_batches_tracked += moved
        self.num_batches_skipped += some & ~moved
        self._count_sites(sites, moved)

    def _further_moves(self, sites: BySite) -> list[Move]:
        """Return what moves with the running statistics or not at all: those of sites, where a layer has them."""
        return []

    def _count_sites(self, sites: BySite, moved: Tensor) -> None:
        """Count the batches of each site, where a layer does."""

    def _centre(self, moments: Moments) -> Tensor:
        """Return what the running mean moves towards."""
        return moments.mean

    def _spread(self, moments: Moments) -> Tensor:
        """Return what the running variance moves towards."""
        return moments.unbiased_variance

    def _weight_of_new(self, tracked: Tensor, dtype: torch.dtype) -> Tensor | float:
        """Return the weight of a new batch, `tracked` batches having come before it."""
        return (tracked + 1).to(dtype).reciprocal() if self.momentum is None else self.momentum

    def _group(self) -> dist.ProcessGroup | None:
        """Return the processes to share statistics with; None where there are no others."""
        return others_of(self.process_group)

    def _gradient_group(self) -> dist.ProcessGroup | None:
        """Return the processes over which the backward pass adds up: those that share the statistics."""
        return self._group()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            got = (
                f"{input.shape[1]} (input shape {tuple(input.shape)})"
                if input.dim() > 1
                else f"shape {tuple(input.shape)}"
            )
            advice = f"Build it with num_features={input.shape[1]}" if input.dim() > 1 else "Add the missing batch axis"
            raise ShapeError(f"{self._who}: expected {self.num_features} channels in dim 1, got {got}. {advice}.")
        if not input.is_floating_point():
            raise ShapeError(f"{self._who}: expected floating-point values, got {input.dtype}. Pass `x.float()`.")

    def _check_count(self, x: Tensor, moments: Moments | None, mask: Tensor | None, known: bool = True) -> None:
        """Refuse a single value per channel; `known`: without a mask, the shape says how many there are."""
        count = (
            x.numel() // self.num_features if moments is None or (mask is None and known) else int(moments.count.min())
        )
        if count < 2 and not (x.numel() == 0 and count == 0):
            kept = "" if mask is None else " that the mask keeps"
            raise ShapeError(
                f"{self._who}: expected at least 2 values per channel{kept} to take statistics of, got {count} "
                f"(input shape {tuple(x.shape)}). Use a larger batch (or drop_last=True), torch.nn.GroupNorm or "
                f"LayerNorm, which need no batch, or .eval() to use the running statistics."
            )

    @property
    def _who(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features})"

    def extra_repr(self) -> str:
        """Add to what torch prints what differs from the defaults."""
        shown: str = super().extra_repr()  # type: ignore[no-untyped-call]
        shown += f", activation={self.activation!r}" if self.activation else ""
        return shown + (f", process_group={self.process_group!r}" if self.process_group is not None else "")


def _check_arguments(
    who: str, num_features: int, eps: float, momentum: float | None, process_group: ProcessGroup
) -> None:
    if not isinstance(num_features, Integral) or num_features < 1:
        raise ConfigError(f"{who}: expected num_features to be a whole number of at least 1, got {num_features!r}.")
    if not 0 <= eps < math.inf:
        raise ConfigError(f"{who}: expected eps of at least 0 and finite, got {eps!r}. The usual value is 1e-5.")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ConfigError(
            f"{who}: expected momentum in [0, 1] or None, got {momentum!r}. It is the weight of the new batch: "
            "Keras's 0.99 is 0.01 here."
        )
    if not is_process_group(process_group):
        raise ConfigError(
            f"{who}: expected process_group to be a ProcessGroup, 'world' or None, got {process_group!r}."
        )
