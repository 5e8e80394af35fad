"""Batch normalization whose statistics never move."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mednorm.layers.batch import BatchNorm


class FrozenBatchNorm(BatchNorm):
    r"""Normalize with the running statistics as they are, in training too; at any rank.

    .. math:: y = \operatorname{act}\!\left(\gamma\,\frac{x-r_\mu}{\sqrt{r_{\sigma^2}+\epsilon}} + \beta\right)

    The running statistics are constants: nothing moves them but loading a state_dict, whatever the mode. :math:`\gamma`
    and :math:`\beta` learn like any parameter; set ``requires_grad_(False)`` on the layer to hold them too. Any batch
    size does, and a single value per channel.

    Arguments, attributes, shapes and errors are those of `BatchNorm`; ``track_running_stats=False`` is refused.

    Example:
        >>> import torch
        >>> layer = FrozenBatchNorm(2)
        >>> layer.running_mean.fill_(3)
        tensor([3., 3.])
        >>> y = layer.train()(torch.full((1, 2, 4, 4), 3.0))
        >>> y.abs().max().item(), layer.num_batches_tracked.item()
        (0.0, 0)

    Note:
        The usual choice for fine-tuning a pretrained network on few volumes. It assumes that the new images come as
        the old ones did: a scanner with other intensities shifts every layer, and nothing here corrects it.
        `mednorm.freeze` does the same to a layer of any kind, and `mednorm.unfreeze` undoes it.

    Reference:
        He et al. (2017), "Mask R-CNN", Section 3.1, and Wu & Johnson (2021), "Rethinking 'Batch' in BatchNorm".

    """

    _needs_running_stats = True

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; there are no statistics that a mask could keep values out of."""
        self._check_input_dim(input)
        if self.running_mean is None:  # taken away for a look at the batch's own
            return super().forward(input, mask)
        return self._normalize_with_running_statistics(input, mask)

    def reset_running_stats(self) -> None:
        """Nothing, once the layer is built: PyTorch's ``update_bn`` resets before it moves, and nothing moves here."""
        if not hasattr(self, "num_batches_skipped"):
            super().reset_running_stats()

    def _track(self, *_: Any) -> None:
        """Nothing moves."""
