"""Batch normalization at any rank."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.functional import Activation, activation_slope, normalize
from mednorm.moments import Moments


class BatchNorm(_BatchNorm):
    r"""Normalize each channel over the batch and every spatial axis; a drop-in for ``torch.nn.BatchNorm1d/2d/3d``.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta\right)

    In training :math:`\mu` and the biased :math:`\sigma^2` are those of the batch, and the running statistics move:
    :math:`r \leftarrow (1-m)\,r + m\,b` with momentum :math:`m` the weight of the *new* value b (PyTorch's convention;
    Keras's is the weight of the old), the running variance from the *unbiased* batch variance. In
    evaluation :math:`\mu,\sigma^2` are the running statistics, so an image's result does not depend on its neighbours.

    A batch whose mean or variance is not finite in any channel (an overflow in mixed precision, a NaN voxel) moves no
    running statistic and is counted in ``num_batches_skipped``; its output is what the arithmetic gives, so that a
    gradient scaler still sees the overflow. An empty batch moves nothing either.

    Args:
        num_features: channels C.
        eps: added to the variance, so that a constant channel divides by a number.
        momentum: weight of the new value in [0, 1]; None for the plain average over all batches since the last reset.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: keep running statistics. Without, evaluation uses the batch too.
        activation: ``"relu"`` or ``"leaky_relu"``, applied in the same operation; the backward pass then needs no copy
            of the activation's output.
        negative_slope: slope of ``"leaky_relu"`` below 0.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Attributes:
        batch_moments: `Moments` of the last batch that was normalized with its own statistics: batch mean, variance
            and range; None before the first.
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

    batch_moments: Moments | None
    num_batches_skipped: Tensor

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_arguments(num_features, eps, momentum)
        activation_slope(activation, negative_slope)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.activation = activation
        self.negative_slope = negative_slope
        self.batch_moments = None
        skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("num_batches_skipped", skipped, persistent=False)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is boolean, True on values that count, of the input's shape with or without channels."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return self._normalize_with_running_statistics(input)
        moments = Moments.of(input, mask=mask)
        self._check_count(input, moments, mask)
        if self.training and self.track_running_stats and input.numel() > 0:
            self._update_running_statistics(moments)
        self.batch_moments = moments
        return normalize(
            input,
            moments,
            self.weight,
            self.bias,
            eps=self.eps,
            mask=mask,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def _normalize_with_running_statistics(self, x: Tensor) -> Tensor:
        # In the type training computes in: torch's kernel refuses parameters of any other.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, var, weight, bias = (
            None if vector is None else vector.to(dtype)
            for vector in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)
        return kernels.activate_(y, activation_slope(self.activation, self.negative_slope))

    def reset_running_stats(self) -> None:
        """Forget the running statistics and how many batches were tracked and skipped."""
        super().reset_running_stats()
        if hasattr(self, "num_batches_skipped"):  # not yet where torch's constructor calls this
            self.num_batches_skipped.zero_()

    @torch.no_grad()
    def _update_running_statistics(self, moments: Moments) -> None:
        """Move the running statistics towards the batch's, without a branch on the data, so that it compiles."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        weight: Tensor | float
        if self.momentum is None:
            weight = (self.num_batches_tracked + 1).to(moments.mean.dtype).reciprocal()
        else:
            weight = self.momentum
        # In the buffers' own type: a variance that float32 holds may be infinite in float16.
        mean = ((1 - weight) * self.running_mean + weight * moments.mean).to(self.running_mean.dtype)
        var = ((1 - weight) * self.running_var + weight * moments.unbiased_variance).to(self.running_var.dtype)
        finite = moments.finite & mean.isfinite().all() & var.isfinite().all()
        self.running_mean.copy_(torch.where(finite, mean, self.running_mean))
        self.running_var.copy_(torch.where(finite, var, self.running_var))
        self.num_batches_tracked += finite
        self.num_batches_skipped += ~finite

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

    def _check_count(self, x: Tensor, moments: Moments, mask: Tensor | None) -> None:
        if x.numel() == 0:
            return
        count = x.numel() // self.num_features if mask is None else int(moments.count.min())
        if count < 2:
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
        """Add the activation to what torch prints."""
        shown: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return shown + (f", activation={self.activation!r}" if self.activation else "")


def _check_arguments(num_features: int, eps: float, momentum: float | None) -> None:
    if not isinstance(num_features, Integral) or num_features < 1:
        raise ConfigError(f"BatchNorm: expected num_features to be a whole number of at least 1, got {num_features!r}.")
    if not 0 <= eps < math.inf:
        raise ConfigError(f"BatchNorm: expected eps of at least 0 and finite, got {eps!r}. The usual value is 1e-5.")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ConfigError(
            f"BatchNorm: expected momentum in [0, 1] or None, got {momentum!r}. It is the weight of the new batch: "
            "Keras's 0.99 is 0.01 here."
        )
