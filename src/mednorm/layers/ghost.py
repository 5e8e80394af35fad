"""Batch normalization with the statistics of small parts of a large batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Unpack

import torch
from torch import Tensor

from mednorm import kernels
from mednorm.errors import ConfigError, ShapeError
from mednorm.layers.batch import BatchNorm, Common
from mednorm.moments import Moments, broadcast_mask


class GhostBatchNorm(BatchNorm):
    r"""Normalize each part of `ghost_size` images of a batch ("ghost") with its own statistics.

    .. math:: y_i = \operatorname{act}\!\left(\gamma\,\frac{x_i-\mu_{g(i)}}{\sqrt{\sigma^2_{g(i)}+\epsilon}}
              + \beta\right), \qquad g(i) = \lfloor i / \text{ghost\_size} \rfloor

    A large batch then keeps the noise of small ones, which regularizes. The last ghost takes what is left; should that
    be a single value per channel, it joins the ghost before it.

    The running statistics move once a batch, by the moments of all ghosts pooled, which are those of the whole batch:
    so they hold the spread *between* ghosts too, and are those of `BatchNorm`. In evaluation the layer is `BatchNorm`.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the new value; None for the plain average.
        affine: learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: keep running statistics.
        ghost_size: images whose statistics are taken together, at least 1.
        **common: the keywords of `BatchNorm`. With `process_group` the running statistics move by the ghosts of all
            these processes; a ghost never spans two.

    Shape:
        Input and output ``(N, C, *)``.

    Raises:
        ConfigError: an argument is out of its range.
        ShapeError: as `BatchNorm`, for every ghost.

    Example:
        >>> import torch
        >>> layer = GhostBatchNorm(3, ghost_size=4)
        >>> y = layer(torch.randn(10, 3, 8, 8) + torch.arange(10).view(10, 1, 1, 1))
        >>> [round(ghost.mean().item(), 3) + 0.0 for ghost in y.split(4)]
        [0.0, 0.0, 0.0]

    Note:
        It makes statistics noisier on purpose, so it is no remedy where batches are small already. It shows what a
        network would meet at `ghost_size` images a device, on one device.

    Reference:
        Hoffer, Hubara & Soudry (2017), "Train longer, generalize better", Algorithm 1. There the running statistics
        move once a ghost and by the variance within ghosts alone.

    """

    ghost_size: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        ghost_size: int = 16,
        **common: Unpack[Common],
    ) -> None:
        if not isinstance(ghost_size, Integral) or isinstance(ghost_size, bool) or ghost_size < 1:
            raise ConfigError(
                f"GhostBatchNorm: expected ghost_size to be a whole number of at least 1, got {ghost_size!r}."
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **common)
        self.ghost_size = ghost_size

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; `mask` is boolean, True on values that count, of the input's shape with or without channels."""
        if not self._uses_batch:
            return super().forward(input, mask)
        self._check_input_dim(input)
        sizes = self._sizes(input)
        ghosts = input.split(sizes)
        for ghost in ghosts:
            if len(input) > 1 and len(ghost) * ghost[0, 0].numel() == 1:
                raise ShapeError(
                    f"{self._who}: expected at least 2 values per channel in every ghost, got 1 with "
                    f"ghost_size={self.ghost_size} (input shape {tuple(input.shape)}). Use a larger ghost_size."
                )
        if mask is None:
            self._check_count(ghosts[-1], None, None)
            y, measured = self._at_once_by(input, self.weight, self.bias, kernels.Groups(sizes))
            self.batch_moments = self._shared(measured.pooled())
        else:
            y = self._normalize_masked(ghosts, broadcast_mask(mask, input, 1).split(sizes))
        assert self.batch_moments is not None
        self._track(self.batch_moments)
        return y

    def _normalize_masked(self, ghosts: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Normalize one ghost after the other, by what its mask keeps."""
        measured = [Moments.of(ghost, mask=kept) for ghost, kept in zip(ghosts, masks, strict=True)]
        for ghost, kept, moments in zip(ghosts, masks, measured, strict=True):
            self._check_count(ghost, moments, kept)
        parts = map(self._normalize, ghosts, measured, masks)
        self.batch_moments = self._shared(Moments.pool(measured))
        return torch.cat(list(parts))

    def _sizes(self, x: Tensor) -> list[int]:
        """Return how many images each ghost has."""
        images, size = len(x), self.ghost_size
        sizes = [size] * (images // size) + ([images % size] if images % size else [])
        if len(sizes) > 1 and sizes[-1] * x[0, 0].numel() == 1:
            sizes[-2:] = [sizes[-2] + 1]
        return sizes or [0]

    def extra_repr(self) -> str:
        """Add the size of a ghost."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"

    def _gradient_group(self) -> None:
        """No gradient passes from one ghost to another."""
