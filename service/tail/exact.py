"""Exact tails of the beta and binomial families, vectorised, without scipy."""

from typing import Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SHIFT: Final = 8
# B(2k) / (2k (2k - 1)), k = 1, 2, ...
STIRLING: Final = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
MAX_TERMS: Final = 20_000
TINY: Final = 1e-300


def log_gamma(z: npt.ArrayLike) -> Doubles:
    """Natural logarithm of the gamma function for z > 0 (DLMF 5.11.1, with 5.5.1 for small z)."""
    z = np.asarray(z, np.float64)
    small = z < SHIFT
    large = np.where(small, z + SHIFT, z)
    series = sum(term / large ** (2 * power + 1) for power, term in enumerate(STIRLING))
    value: Doubles = (large - 0.5) * np.log(large) - large + 0.5 * np.log(2 * np.pi) + series
    steps = np.where(small, z, 1.0)[..., None] + np.arange(SHIFT) * small[..., None]
    down: Doubles = value - np.log(steps).sum(-1)
    return down


def log_beta(a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """Natural logarithm of the beta function for a, b > 0."""
    total = np.asarray(a, np.float64) + np.asarray(b, np.float64)
    value: Doubles = log_gamma(a) + log_gamma(b) - log_gamma(total)
    return value


def beta_cdf(x: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """P(X <= x) for X ~ Beta(a, b), by the continued fraction DLMF 8.17.22 and 8.17.4."""
    x, a, b = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (x, a, b)))
    inside = np.clip(x, TINY, 1 - 1e-16)
    turned = inside > (a + 1) / (a + b + 2)
    left, right = np.where(turned, b, a), np.where(turned, a, b)
    at = np.where(turned, 1 - inside, inside)
    front = left * np.log(at) + right * np.log1p(-at) - np.log(left) - log_beta(left, right)
    tail = np.exp(front) * _fraction(at, left, right)
    value = np.where(turned, 1 - tail, tail)
    cdf: Doubles = np.where(x <= 0, 0.0, np.where(x >= 1, 1.0, value)).clip(0, 1)
    return cdf


def _fraction(x: Doubles, a: Doubles, b: Doubles) -> Doubles:
    """1 / (1 + d1 x / (1 + d2 x / ...)), evaluated forwards (Lentz)."""
    c = np.ones_like(x)
    d = _away_from_zero(1 - (a + b) * x / (a + 1))
    d = 1 / d
    value = d.copy()
    for m in range(1, MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            factor = c * d
            value = value * factor
        if np.all(np.abs(factor - 1) < 1e-14):
            break
    return value


def _away_from_zero(value: Doubles) -> Doubles:
    away: Doubles = np.where(np.abs(value) < TINY, TINY, value)
    return away


def beta_quantile(p: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """The x with P(X <= x) = p for X ~ Beta(a, b), to 1e-13 relative, by bisection."""
    p, a, b = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (p, a, b)))
    low, high = np.zeros(p.shape), np.ones(p.shape)
    while np.any(high - low > 1e-13 * high + 1e-200):
        middle = (low + high) / 2
        below = beta_cdf(middle, a, b) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def binomial_interval(
    counts: npt.ArrayLike, total: int, coverage: float = 0.95
) -> tuple[Doubles, Doubles]:
    """Clopper and Pearson's (1934) bounds of a share, for `counts` of `total`.

    Each distinct count is computed once. Without any trial the bounds are 0 and 1.
    """
    distinct, places = np.unique(np.asarray(counts, np.float64), return_inverse=True)
    beyond = (1 - coverage) / 2
    low = beta_quantile(beyond, distinct.clip(1), total - distinct + 1)
    high = beta_quantile(1 - beyond, distinct + 1, (total - distinct).clip(1))
    low = np.where(distinct == 0, 0.0, low)
    high = np.where(distinct == total, 1.0, high)
    return low[places], high[places]


def beta_binomial_at_most(count: int, total: int, a: float, b: float) -> float:
    """P(X <= count) for X ~ Binomial(total, r) and r ~ Beta(a, b)."""
    k = np.arange(min(count, total) + 1, dtype=np.float64)
    ways = log_gamma(total + 1) - log_gamma(k + 1) - log_gamma(total - k + 1)
    logs = ways + log_beta(a + k, b + total - k) - log_beta(a, b)
    return min(1.0, float(np.exp(logs).sum()))
