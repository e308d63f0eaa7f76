"""Exact tails of the beta and binomial families, vectorised, without scipy."""

import math
from statistics import NormalDist
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
MANY: Final = 500
SHARP: Final = 1e5
# Of the trapezoidal rule, in widths: how far it goes, and into how many steps one is divided.
REACH, FINENESS = 38, 4

Shapes = tuple[float, float]


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
    return _cdf(x, a, b, log_beta(a, b))


def _cdf(x: Doubles, a: Doubles, b: Doubles, norm: Doubles) -> Doubles:
    inside = np.clip(x, TINY, 1 - 1e-16)
    turned = inside > (a + 1) / (a + b + 2)
    left, right = np.where(turned, b, a), np.where(turned, a, b)
    at = np.where(turned, 1 - inside, inside)
    front = left * np.log(at) + right * np.log1p(-at) - np.log(left) - norm
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
    going = np.ones(x.shape, np.bool_)
    for m in range(1, MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            factor = c * d
            value = np.where(going, value * factor, value)
        # Once and for all: beyond its end a fraction's factors are noise, and may never be near 1
        # for all of them at once.
        going &= np.abs(factor - 1) >= 1e-12
        if not going.any():
            break
    return value


def _away_from_zero(value: Doubles) -> Doubles:
    away: Doubles = np.where(np.abs(value) < TINY, TINY, value)
    return away


def beta_quantile(p: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """The x with P(X <= x) = p for X ~ Beta(a, b), to 1e-10 relative.

    Where a and b are more than 100,000 it is the normal one of log(x / (1 - x)), off by a
    hundredth of the distribution's width at most. Elsewhere Newton's method, or a bisection where
    its step leaves what the steps before have left over.
    """
    p, a, b = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (p, a, b)))
    shape = p.shape
    p, a, b = p.ravel(), a.ravel(), b.ravel()
    found, open_ = _near(p, a, b), np.flatnonzero(np.minimum(a, b) <= SHARP)
    low, high, norm = np.zeros(p.size), np.ones(p.size), log_beta(a, b)
    while open_.size:
        x, left, right = found[open_], a[open_], b[open_]
        excess = _cdf(x, left, right, norm[open_]) - p[open_]
        low[open_] = np.where(excess < 0, x, low[open_])
        high[open_] = np.where(excess < 0, high[open_], x)
        slope = np.exp((left - 1) * np.log(x) + (right - 1) * np.log1p(-x) - norm[open_])
        new = x - excess / slope.clip(TINY)
        inside = (new > low[open_]) & (new < high[open_])
        new = np.where(inside, new, (low[open_] + high[open_]) / 2)
        found[open_] = new
        done = (np.abs(new - x) <= 1e-10 * new) | (new <= TINY) | (new >= 1 - 1e-15)
        open_ = open_[~done]
    quantiles: Doubles = found.reshape(shape)
    return quantiles


def _near(p: Doubles, a: Doubles, b: Doubles) -> Doubles:
    """A first guess at a quantile: the normal one on the logit scale, or a power's."""
    z = np.array([NormalDist().inv_cdf(one) for one in p.tolist()])
    logit = np.log(a / b) + z * np.sqrt(1 / a + 1 / b)
    normal = 1 / (1 + np.exp(-logit.clip(-50, 30)))
    # Below one the density falls like a power, and the point may be next to nothing.
    power = np.exp(((np.log(p * a) + log_beta(a, b)) / a).clip(np.log(TINY), np.log(0.5)))
    guess: Doubles = np.where(a < 1, power, normal)
    return guess


def binomial_interval(
    counts: npt.ArrayLike, total: int, coverage: float = 0.95
) -> tuple[Doubles, Doubles]:
    """Clopper and Pearson's (1934) bounds of a share, for `counts` of `total`.

    Each distinct count is computed once; where hits and misses are more than 500, by Wilson's
    (1927) formula with half a count of continuity, which differs by a thousandth at most. Without
    any trial the bounds are 0 and 1.
    """
    distinct, places = np.unique(np.asarray(counts, np.float64), return_inverse=True)
    low, high = np.zeros(len(distinct)), np.ones(len(distinct))
    beyond = (1 - coverage) / 2
    few = np.minimum(distinct, total - distinct) <= MANY
    some, short = few & (distinct > 0), few & (distinct < total)
    low[some] = beta_quantile(beyond, distinct[some], total - distinct[some] + 1)
    high[short] = beta_quantile(1 - beyond, distinct[short] + 1, total - distinct[short])
    if not few.all():
        z = NormalDist().inv_cdf(1 - beyond)
        low[~few] = _wilson(distinct[~few] - 0.5, total, -z)
        high[~few] = _wilson(distinct[~few] + 0.5, total, z)
    return low[places], high[places]


def _wilson(counts: Doubles, total: int, z: float) -> Doubles:
    reach = z * np.sqrt(counts * (1 - counts / total) + z * z / 4)
    bound: Doubles = (counts + z * z / 2 + reach) / (total + z * z)
    return bound


def beta_binomial_at_most(count: int, total: int, a: float, b: float) -> float:
    """P(X <= count) for X ~ Binomial(total, r) and r ~ Beta(a, b).

    X <= count where r is below the one of `total` uniforms that has `count` below it, which is
    Beta(count + 1, total - count): no sum over counts, whose cost would grow with them. To 1e-5
    relative up to a billion predictions, and better the fewer they are.
    """
    if count >= total:
        return 1.0
    return min(1.0, _below((a, b), (count + 1, total - count)))


def _below(left: Shapes, right: Shapes) -> float:
    """P(L < R) for independent beta variables: the mean of L's distribution function over R.

    By the trapezoidal rule on the logit scale, where R's density is smooth and falls off so fast
    that the rule's error does, too; R is the narrower of both, or they are mirrored.
    """
    if _width(*right) > _width(*left):
        return _below(right[::-1], left[::-1])
    a, b = right
    mean = a / (a + b)
    steps = np.arange(-REACH * FINENESS, REACH * FINENESS + 1) * (_width(a, b) / FINENESS)
    # log((1 + exp(t)) / (1 + exp(t0))) for t = t0 + step, where t0 is the mean's logit.
    rise = np.log1p(mean * np.expm1(steps))
    density = np.exp(a * steps - (a + b) * rise)
    cdf = beta_cdf(mean * np.exp(steps - rise), *left)
    return float(density @ cdf / density.sum())


def _width(a: float, b: float) -> float:
    """About the standard deviation of a beta variable's logit."""
    return math.sqrt(1 / a + 1 / b)
