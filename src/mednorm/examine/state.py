"""What a batch normalization layer holds."""

from __future__ import annotations

from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.examine.records import State
from mednorm.layers import FrozenBatchNorm
from mednorm.surgery.freeze import is_frozen


def holds_still(layer: _BatchNorm) -> bool:
    """Whether the running statistics normalize in training too: held by `mednorm.freeze`, or by the layer's type."""
    return isinstance(layer, FrozenBatchNorm) or is_frozen(layer)


def state_of(layer: _BatchNorm) -> State:
    """Read what a layer holds.

    Example:
        >>> from torch import nn
        >>> state = state_of(nn.BatchNorm2d(2, momentum=0.01))
        >>> state.momentum, state.running_var, state.initial_share
        (0.01, tensor([1., 1.], dtype=torch.float64), 1.0)

    """
    tracked, skipped = layer.num_batches_tracked, getattr(layer, "num_batches_skipped", None)
    return State(
        eps=layer.eps,
        momentum=layer.momentum,
        weight=_vector(layer.weight),
        bias=_vector(layer.bias),
        running_mean=_vector(layer.running_mean),
        running_var=_vector(layer.running_var),
        training=layer.training,
        frozen=holds_still(layer),
        synchronized=isinstance(layer, SyncBatchNorm) or getattr(layer, "process_group", None) is not None,
        updates=None if tracked is None else int(tracked),
        skipped=0 if skipped is None else int(skipped),
        learns=any(parameter.requires_grad for parameter in layer.parameters(recurse=False)),
    )


def _vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu").double().clone()
