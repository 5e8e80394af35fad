"""What a pass over a tensor does with each channel: subtract, scale, add, activate."""

from typing import NamedTuple

from torch import Tensor


class Affine(NamedTuple):
    """The map `y = act((x - mean) * scale + bias)` of one layer, channel by channel.

    Attributes:
        mean: What is subtracted, of shape (C,), in the type of the arithmetic (float32 for half and single
            precision, float64 for double).
        scale: What the difference is multiplied by, of shape (C,); for batch norm weight / standard deviation.
        bias: What is added, of shape (C,).
        slope: The activation: None for none, 0 for ReLU (a selection: NaN passes and -inf gives 0), otherwise the
            slope of a leaky ReLU below 0.
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor
    slope: float | None
