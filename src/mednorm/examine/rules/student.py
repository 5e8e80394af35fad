"""How many standard errors an interval reaches, of a mean of few draws; without SciPy, which the core does not need."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch

_MANY = 1000  # from here on the first term of what is left to the normal quantile is all that shows
_PLACES = 20_001


@lru_cache(maxsize=4096)
def student(freedom: float, level: float = 0.05) -> float:
    r"""Return the quantile of Student's t that is exceeded, to either side, in the share `level` of all cases.

    With :math:`t = \sqrt\nu\cot\phi` the density is proportional to :math:`\sin^{\nu-1}\phi`, which is summed from the
    tail, in steps that are finest there.

    Args:
        freedom: degrees of freedom, which need not be whole; fewer than one count as one, and infinity is the normal
            distribution.
        level: of both sides together.

    Example:
        >>> [round(student(freedom), 2) for freedom in (1, 3, 3.5, 30, math.inf)]
        [12.71, 3.18, 2.94, 2.04, 1.96]
        >>> round(student(6, 0.05 / 100), 2)
        6.79

    """
    if freedom > _MANY:
        normal = NormalDist().inv_cdf(1 - level / 2)
        return normal + (normal**3 + normal) / (4 * freedom)
    freedom = max(freedom, 1.0)
    angles = math.pi / 2 * torch.linspace(0, 1, _PLACES, dtype=torch.float64) ** 3
    beyond = torch.cumulative_trapezoid(angles.sin() ** (freedom - 1), angles)
    wanted = level * float(beyond[-1])
    place = int(torch.searchsorted(beyond, wanted))  # `beyond` begins at the second angle
    before = float(beyond[place - 1]) if place else 0.0
    part = (wanted - before) / (float(beyond[place]) - before)
    return math.sqrt(freedom) / math.tan(float(torch.lerp(angles[place], angles[place + 1], part)))
