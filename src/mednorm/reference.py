"""Constants of the theory that every framework's code shares; needs none of them."""

from __future__ import annotations

import math
from functools import cache

_STEP = 0.05
_GRID = tuple(_STEP * step for step in range(1, 241))  # up to 12 standard deviations
# Beyond this count the quotient of gamma functions loses digits, and its series in 1/n has them all.
_SERIES_FROM = 1000


@cache
def range_over_std(count: int | float) -> float:
    r"""Expected range of a Gaussian sample over its expected standard deviation, so that range / this estimates std.

    .. math:: C(n) = \frac{E[\max x - \min x]}{E[s]} = \frac{d_2(n)}{b(n)}, \qquad
              d_2(n) = 2\int_0^\infty 1 - \Phi(x)^n - (1-\Phi(x))^n \,dx, \qquad
              b(n) = \sqrt{\tfrac2n}\;\frac{\Gamma(n/2)}{\Gamma((n-1)/2)}

    with s the *biased* standard deviation, which batch normalization divides by, and :math:`\Phi` the normal
    distribution. Because range / s does not depend on s in a Gaussian sample (Basu's theorem), range / C(n) and s have
    the same mean at any count, and a layer that divides by range / C(n) has the scale of batch normalization.

    Args:
        count: n, at least 2; not necessarily whole, so that it may be interpolated.

    Returns:
        2 at n = 2, 3.3 at n = 10, 6.5 at n = 1000, 9.7 at a million.

    Raises:
        ValueError: `count` is below 2: a single value has no range.

    Example:
        >>> round(range_over_std(2), 6), round(range_over_std(1_000_000), 2)
        (2.0, 9.73)

    Reference:
        Tippett (1925), "On the extreme individuals and the range of samples taken from a normal population", for
        :math:`d_2`. Banner et al. (2018), "Scalable methods for 8-bit training of neural networks", Section 3, scale
        by :math:`\sqrt{2\ln n}`, to which half of C(n) tends slowly: C(n) / 2 is 0.87 of it at 1000, 0.93 at a million.

    """
    if not 2 <= count < math.inf:
        raise ValueError(f"range_over_std: expected a count of at least 2, got {count!r}.")
    return _mean_range(count) / _mean_std(count)


@cache
def range_over_std_knots() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ln(n) and C(n) at counts so dense that straight lines between them are within a relative 3e-6 of C."""
    counts = [*range(2, 64), *(2 ** (step / 16) for step in range(6 * 16, 40 * 16))]
    return tuple(math.log(count) for count in counts), tuple(range_over_std(count) for count in counts)


def _mean_range(count: float) -> float:
    """Integrate by the trapezoidal rule, which on a smooth function that dies off converges faster than any power."""
    tails = [math.erfc(x / math.sqrt(2)) / 2 for x in _GRID]  # 1 - Phi(x), exact where it is small
    inside = [-math.expm1(count * math.log1p(-tail)) - math.pow(tail, count) for tail in tails]
    return 2 * _STEP * ((1 - 2 * math.pow(0.5, count)) / 2 + math.fsum(inside))


def _mean_std(count: float) -> float:
    if count < _SERIES_FROM:
        return math.sqrt(2 / count) * math.exp(math.lgamma(count / 2) - math.lgamma((count - 1) / 2))
    n = count
    return math.sqrt((n - 1) / n) * (1 - 1 / (4 * n) - 7 / (32 * n**2) - 19 / (128 * n**3))
