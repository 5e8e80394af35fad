"""The gradient of a normalization whose statistics are not those of the batch, kept from making weights grow."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mednorm.kernels import per_channel
from mednorm.moments import broadcast_mask


class Window:
    """The four backward means of the last backward passes, in buffers of a layer; `averages` adds one pass.

    Args:
        means: (window, 4, C), written to.
        passes: how many were added so far, written to.

    """

    def __init__(self, means: Tensor, passes: Tensor) -> None:
        self.means = means
        self.passes = passes

    def averages(self, new: Tensor, some: Tensor) -> Tensor:
        """Return the plain average of `new` and what the window holds, and keep `new` in it.

        An empty batch (`some` is False) adds nothing; means that are no numbers are in this average alone.
        """
        length = len(self.means)
        place = torch.arange(length, device=self.passes.device) == self.passes % length
        means = torch.where(place.view(-1, 1, 1) & some, new.to(self.means.dtype), self.means)
        added = self.passes + some
        average = means.sum(0) / added.clamp(1, length)
        keep = some & new.isfinite().all()
        self.means.copy_(torch.where(keep, means, self.means))
        self.passes.copy_(torch.where(keep, added, self.passes))
        return average.to(new.dtype)


class Project(torch.autograd.Function):
    r"""Give x on as it is; take from its gradient what would make the weights before the layer grow.

    With h the gradient that arrives, :math:`\hat x=(x-\mu)/\sigma` and averages over a window of backward passes of
    :math:`B=E[\sigma h], A=E[\sigma h\hat x], m=E[\hat x], c=E[\hat x^2]`:

    .. math:: \partial x = h - \left(B + (\hat x-m)\,q\right)/\sigma, \qquad
              q = \frac{A - B\,m}{c-m^2+\epsilon/\sigma^2}

    Where :math:`\mu,\sigma` are those of the batch and the window is one pass, m = 0, the denominator is 1, and this is
    the gradient of batch normalization (Yan et al. 2020, eq. 5). Where they are not, this is the projection for the
    mean and variance that x really has. Without `center`, B and m are left out.
    """

    @staticmethod
    def forward(
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        mask: Tensor | None,
        means: Tensor,
        passes: Tensor,
        eps: float,
        center: bool,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Return x; the rest is for the backward pass. `means` and `passes` are those of a `Window`."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs; the window as it is, for it moves between the passes."""
        x, mean, std, mask, ctx.means, ctx.passes, ctx.eps, ctx.center, ctx.group = inputs
        ctx.save_for_backward(x, mean, std, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        x, mean, std, mask = ctx.saved_tensors
        kept = None if mask is None else broadcast_mask(mask, x, 1)
        values, h = ((x - per_channel(mean, x)) / per_channel(std, x), grad)
        if kept is not None:  # NaN or infinity outside the mask must not reach the sums
            values = values.masked_fill(~(kept | values.isfinite()), 0)
        new, some = _means(values, h, kept, std, ctx.group)
        b, a, m, c = Window(ctx.means, ctx.passes).averages(new, some)
        if not ctx.center:
            b, m = torch.zeros_like(b), torch.zeros_like(m)
        q = (a - b * m) / (c - m.square() + ctx.eps / std.square())
        through = per_channel((b - m * q) / std, x) + values * per_channel(q / std, x)
        through = through if kept is None else through.masked_fill(~kept, 0)
        return (h - through, *([None] * 8))


def _means(
    values: Tensor, h: Tensor, kept: Tensor | None, std: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Return the means (4, C) of σh, σh·x̂, x̂ and x̂² over what is kept, over all processes, and whether there is any."""
    axes = (0, *range(2, values.dim()))
    count = values.new_full(std.shape, values.numel() // len(std)) if kept is None else kept.sum(axes).to(values.dtype)
    h_in, values_in = (t if kept is None else t.masked_fill(~kept, 0) for t in (h, values))
    sums = torch.stack(
        (
            std * h_in.sum(axes),
            std * (h_in * values_in).sum(axes),
            values_in.sum(axes),
            values_in.square().sum(axes),
            count,
        )
    )
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums[:4] / sums[4].clamp(min=1), (sums[4] > 0).all()
