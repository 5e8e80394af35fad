"""The layer that stands where a normalization would, and normalizes nothing."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn

from mednorm.errors import ConfigError, ShapeError


class NoNorm(nn.Module):
    r"""Give the input back, or with `bias` shift each channel by a number that is learned.

    .. math:: y = x \quad\text{or}\quad y = x + \beta

    Networks that expect a normalization often build their convolutions without a bias, because the normalization's
    :math:`\beta` would follow. Taking the normalization away there takes the shift away too, and a comparison would
    then measure both. With ``bias=True``, :math:`\beta` stays and is all that stays. Training and evaluation are alike.

    Args:
        num_features: channels C.
        bias: learn :math:`\beta`, started at 0. Without, there are no parameters.
        device: of the parameter.
        dtype: of the parameter.

    Shape:
        Input and output ``(N, C, *)``, of the input's type.

    Raises:
        ConfigError: `num_features` is no whole number of at least 1.
        ShapeError: with `bias`, fewer than 2 axes, another number of channels, or whole numbers.

    Example:
        >>> import torch
        >>> layer = NoNorm(4, bias=True)
        >>> [tuple(parameter.shape) for parameter in layer.parameters()]
        [(4,)]
        >>> images = torch.randn(2, 4, 8, 8)
        >>> torch.equal(layer(images), images)
        True

    Note:
        Without `bias` the output *is* the input. Where a block keeps its input for a skip connection and an activation
        that works in place comes first (MONAI's SegResNet), that would change the skip connection: use ``bias=True``.

    """

    num_features: int
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(num_features, Integral) or num_features < 1:
            raise ConfigError(
                f"NoNorm: expected num_features to be a whole number of at least 1, got {num_features!r}."
            )
        super().__init__()
        self.num_features = num_features
        shift = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", shift)

    def forward(self, input: Tensor) -> Tensor:
        """Give the input back, shifted where there is a shift."""
        if self.bias is None:
            return input
        self._check_input(input)
        return input + self.bias.to(input.dtype).view(1, -1, *([1] * (input.dim() - 2)))

    def _check_input(self, x: Tensor) -> None:
        who = f"NoNorm(num_features={self.num_features})"
        if x.dim() < 2:
            raise ShapeError(
                f"{who}: expected {self.num_features} channels in dim 1, got shape {tuple(x.shape)}. "
                "Add the missing batch axis."
            )
        if x.shape[1] != self.num_features:
            raise ShapeError(
                f"{who}: expected {self.num_features} channels in dim 1, got {x.shape[1]} "
                f"(input shape {tuple(x.shape)}). Build it with num_features={x.shape[1]}."
            )
        if not x.is_floating_point():
            raise ShapeError(f"{who}: expected floating-point values, got {x.dtype}. Pass `x.float()`.")

    def extra_repr(self) -> str:
        """Say what torch prints between the brackets."""
        return f"{self.num_features}, bias={self.bias is not None}"
