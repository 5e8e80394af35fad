"""What is wrong with running statistics, held against what one cause or another would make of the population's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mednorm.examine.records import Layer
from mednorm.examine.rules.noise import between_share, median


@dataclass(frozen=True)
class Residuals:
    r"""How running statistics differ from the population's, channel by channel, where both are finite.

    Attributes:
        mean: :math:`(\mu_r-\mu)/\sigma`.
        variance: :math:`\sigma_r^2/\sigma^2-1`.
        initial_mean: what the mean would be if the running mean were still the initial 0, :math:`-\mu/\sigma`.
        initial_variance: likewise of the initial 1, :math:`1/\sigma^2-1`.
        between: share of the variance that lies between the images' means.

    """

    mean: Tensor
    variance: Tensor
    initial_mean: Tensor
    initial_variance: Tensor
    between: Tensor

    @property
    def distance(self) -> float:
        """Distance of the running statistics from the population's in its σ, median over the channels."""
        return median((self.mean.square() + ((1 + self.variance).clamp(min=0).sqrt() - 1).square()).sqrt())

    @property
    def initial(self) -> Fit:
        """How much of the initial values is left, as the statistics show it."""
        return _fit(
            torch.cat([self.mean, self.variance]),
            torch.cat([self.initial_mean, self.initial_variance]),
        )

    @property
    def averaged(self) -> Fit:
        """One over the images in each of the batches whose variances the running variances would be averages of.

        Such an average lacks that share of what lies between images, and has the right mean.
        """
        return _fit(
            torch.cat([self.mean, self.variance]),
            torch.cat([torch.zeros_like(self.mean), -self.between]),
        )


@dataclass(frozen=True)
class Fit:
    """A cause fitted to residuals by least squares.

    Attributes:
        factor: of the pattern that the cause would leave.
        explained: share of the squared residuals that goes with it, in [0, 1].

    """

    factor: float
    explained: float


def residuals(layer: Layer) -> Residuals | None:
    """Return the residuals of a layer's running statistics; None where it has none, or too little was seen."""
    seen, mean, variance = layer.seen, layer.state.running_mean, layer.state.running_var
    if seen is None or seen.images < 2 or mean is None or variance is None:
        return None
    population = seen.moments.unbiased_variance
    scale = population + layer.state.eps
    fields = (
        (mean - seen.moments.mean) / scale.sqrt(),
        (variance - population) / scale,
        -seen.moments.mean / scale.sqrt(),
        (1 - population) / scale,
        between_share(seen),
    )
    finite = torch.stack(fields).isfinite().all(0)
    return Residuals(*(field[finite] for field in fields)) if finite.any() else None


def _fit(values: Tensor, pattern: Tensor) -> Fit:
    square, total = float(pattern.square().sum()), float(values.square().sum())
    product = float((values * pattern).sum())
    if not square or not total:
        return Fit(0.0, 0.0)
    return Fit(product / square, product**2 / (square * total))
