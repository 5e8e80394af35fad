r"""The arithmetic of folding: batch normalization in evaluation is :math:`y = s\,x + t` in each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from mednorm.layers.batch import BatchNorm

Linear = _ConvNd | nn.Linear
Weights = tuple[Tensor, Tensor | None]

# A class of the user's own that derives from one of these and has another `forward` computes something else.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {kind.forward for kind in (*_CONVOLUTIONS, nn.Linear, _BatchNorm, SyncBatchNorm)}
_INNER = {None, *(kind._conv_forward for kind in _CONVOLUTIONS)}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a convolution, transposed or not, or a dense layer."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is batch normalization, of any rank and maker."""
    return isinstance(module, _BatchNorm)


def why_not_linear(layer: nn.Module) -> str:
    """Say why the weights of a convolution or dense layer cannot be changed; empty if they can."""
    if type(layer).forward not in _FORWARDS or getattr(type(layer), "_conv_forward", None) not in _INNER:
        return f"is a {type(layer).__name__}, which computes in a way of its own"
    if is_parametrized(layer) or "weight" not in layer._parameters:
        return "has weights that are computed from others (parametrize.remove_parametrizations keeps what they are now)"
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta or not weight.is_floating_point():
        return f"has weights on the device 'meta' or of type {weight.dtype}"
    return ""


def why_not_norm(norm: nn.Module) -> str:
    """Say why a normalization is no affine map with numbers of its own; empty if it is one."""
    if not isinstance(norm, _BatchNorm):
        kept = getattr(norm, "running_mean", None) is not None
        return "it is no batch normalization" if kept else "it takes its statistics from each image, so they vary"
    if isinstance(norm, LazyModuleMixin):
        return "it is lazy and has no numbers yet"
    if hasattr(norm, "domain_mean"):
        return "it has statistics for each domain, and which are used depends on the image"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics, so it takes those of each batch"
    if type(norm).forward not in _FORWARDS and not isinstance(norm, BatchNorm):
        return f"it is a {type(norm).__name__}, which computes in a way of its own"
    if is_parametrized(norm):
        return "it has weights that are computed from others"
    if norm.running_mean.is_meta:
        return "its statistics are on the device 'meta'"
    scale, shift = scale_and_shift(norm)
    if not (scale.isfinite().all() and shift.isfinite().all()):
        return "its statistics or weights are not finite, or its variance is negative"
    return ""


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    r"""Return :math:`s = \gamma/\sqrt{\sigma^2+\epsilon}` and :math:`t = \beta - s\,\mu`, in float64, one a channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    scale = weight / (var + norm.eps).sqrt()
    return scale, bias - scale * mean


def activation_of(norm: nn.Module) -> nn.Module | None:
    """Return the activation that our layers apply themselves, as a module."""
    name = getattr(norm, "activation", None)
    if name is None:
        return None
    return nn.ReLU() if name == "relu" else nn.LeakyReLU(float(getattr(norm, "negative_slope", 0.01)))


def channels(layer: Linear) -> tuple[int, int]:
    """Return how many go in and how many come out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def pads_with_zeros(layer: Linear) -> bool:
    """Whether outputs near the border see fewer values than others, so that a shift of the input is no bias."""
    if isinstance(layer, nn.Linear):
        return False
    if isinstance(layer, _ConvTransposeNd):  # even without padding: the outermost outputs see one tap
        return True
    if isinstance(layer.padding, str):
        width = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        padded = layer.padding == "same" and any(width)
    else:
        padded = any(layer.padding)
    return bool(padded) and layer.padding_mode == "zeros"


def ranks_of(norm: nn.Module) -> set[int]:
    """Return the numbers of axes that a normalization takes."""
    for kind, ranks in ((nn.BatchNorm1d, {2, 3}), (nn.BatchNorm2d, {4}), (nn.BatchNorm3d, {5})):
        if isinstance(norm, kind):
            return ranks
    return {2, 3, 4, 5}


def folded_after(layer: Linear, weights: Weights, scale: Tensor, shift: Tensor) -> Weights:
    r"""Weights of a layer that gives :math:`s\,f(x) + t`, of one that gives :math:`f(x)`."""
    weight, bias = weights
    new_bias = shift if bias is None else scale * bias + shift
    if not isinstance(layer, _ConvTransposeNd):
        return weight * _along(scale, weight, 0), new_bias
    # (in, out/groups, *kernel): the inputs of a group stand together, and so do its outputs.
    grouped = weight.unflatten(0, (layer.groups, -1))
    by_group = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * by_group).flatten(0, 1), new_bias


def folded_before(layer: Linear, weights: Weights, scale: Tensor, shift: Tensor) -> Weights:
    r"""Weights of a layer that gives :math:`f(s\,x + t)`, of one that gives :math:`f(x)`, without zero padding."""
    weight, bias = weights
    if isinstance(layer, _ConvTransposeNd):  # only where nothing is shifted
        return weight * _along(scale, weight, 0), bias
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    grouped = weight.unflatten(0, (groups, -1))
    scales, shifts = (vector.view(groups, 1, -1, *[1] * (weight.dim() - 2)) for vector in (scale, shift))
    added = (grouped * shifts).flatten(0, 1).flatten(1).sum(1)
    if bias is None and not added.any():
        return (grouped * scales).flatten(0, 1), None
    return (grouped * scales).flatten(0, 1), added if bias is None else bias + added


def _along(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    return vector.view(*[1] * axis, -1, *[1] * (weight.dim() - axis - 1))
