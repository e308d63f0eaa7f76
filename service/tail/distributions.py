"""Distribution functions of the beta and binomial families: vectorised, and without scipy."""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BetaShape = tuple[float, float]

# The Stirling series needs a large argument: smaller ones are shifted up by this much.
SHIFT: Final = 8
# B(2k) / (2k (2k - 1)), k = 1, 2, ...
STIRLING: Final = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
MAX_TERMS: Final = 20_000
# So many pairs of terms are computed at once.
BLOCK: Final = 32
TINY: Final = 1e-300
# No quantile is above: odds, and multiples of them, are made of quantiles, and may not be infinite.
NEARLY_ONE: Final = 1 - 1e-13
# With more hits and more misses than this, Wilson's interval replaces Clopper and Pearson's.
MAX_EXACT_COUNT: Final = 500
# A count that is not more is none: what is left of one by rounding.
NO_COUNT: Final = 1e-9
# With both shape parameters above this, a quantile is the normal one on the logit scale.
MAX_EXACT_SHAPE: Final = 1e5
# On the logit scale.
LONGEST_STEP: Final = 8
# The trapezoidal rule covers this many widths on either side, with this many steps per width.
WIDTHS, STEPS_PER_WIDTH = 38, 4


def log_gamma(z: npt.ArrayLike) -> Doubles:
    """Return the natural logarithm of the gamma function for z > 0.

    The series is DLMF 5.11.1, with the recurrence 5.5.1 for small z.
    """
    z = np.asarray(z, np.float64)
    small = z < SHIFT
    large = np.where(small, z + SHIFT, z)
    series = sum(term / large ** (2 * power + 1) for power, term in enumerate(STIRLING))
    value: Doubles = (large - 0.5) * np.log(large) - large + 0.5 * np.log(2 * np.pi) + series
    steps = np.where(small, z, 1.0)[..., None] + np.arange(SHIFT) * small[..., None]
    shifted_back: Doubles = value - np.log(steps).sum(-1)
    return shifted_back


def log_beta(a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """Return the natural logarithm of the beta function for a, b > 0."""
    total = np.asarray(a, np.float64) + np.asarray(b, np.float64)
    value: Doubles = log_gamma(a) + log_gamma(b) - log_gamma(total)
    return value


def beta_cdf(x: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """Return P(X <= x) for X ~ Beta(a, b), by the continued fraction DLMF 8.17.22 and 8.17.4."""
    x, a, b = np.broadcast_arrays(*(np.asarray(values, np.float64) for values in (x, a, b)))
    return _cdf(x, a, b, log_beta(a, b))


def _cdf(x: Doubles, a: Doubles, b: Doubles, norm: Doubles) -> Doubles:
    """Return the beta distribution function; `norm` is the logarithm of the beta function."""
    inside = np.clip(x, TINY, 1 - 1e-16)
    # The fraction converges fast only below the mean; above it, use the mirrored distribution.
    mirrored = inside > (a + 1) / (a + b + 2)
    left, right = np.where(mirrored, b, a), np.where(mirrored, a, b)
    point = np.where(mirrored, 1 - inside, inside)
    front = left * np.log(point) + right * np.log1p(-point) - np.log(left) - norm
    tail = np.exp(front) * _continued_fraction(point, left, right)
    value = np.where(mirrored, 1 - tail, tail)
    cdf: Doubles = np.where(x <= 0, 0.0, np.where(x >= 1, 1.0, value)).clip(0, 1)
    return cdf


def _continued_fraction(x: Doubles, a: Doubles, b: Doubles) -> Doubles:
    """Return 1 / (1 + d1 x / (1 + d2 x / ...)), evaluated forwards (Lentz).

    For a few values, most of the time is that of numpy's calls, which are fastest with two arrays.
    """
    # A tiny number takes the place of a 0; it is too small to change any other sum with 1.
    one, tiny, precise = np.ones_like(x), np.full_like(x, TINY), np.full_like(x, 1e-12)
    c, d = one, one / (one - (a + b) * x / (a + 1) + tiny)
    value = np.array(d)
    open_ = np.ones(x.shape, np.bool_)
    for start in range(1, MAX_TERMS, BLOCK):
        for pair in zip(*_terms(start, x, a, b), strict=True):
            for term in pair:
                d = one / (one + term * d + tiny)
                c = one + term / c + tiny
                factor = c * d
                np.multiply(value, factor, out=value, where=open_)
            # A value that has converged is closed for good: after that its factors are only noise,
            # and the factors of all values might never be close to 1 at the same time.
            open_ &= np.abs(factor - one) >= precise
            if not open_.any():
                return value
    return value


def _terms(start: int, x: Doubles, a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """Return the terms d2m x and d2m+1 x, [BLOCK, ...] each, from m = `start` on."""
    m = np.arange(start, start + BLOCK, dtype=np.float64).reshape(-1, *[1] * x.ndim)
    even: Doubles = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
    odd: Doubles = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return even, odd


def beta_quantile(p: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Doubles:
    """Return the x with P(X <= x) = p for X ~ Beta(a, b), to 1e-10 relative.

    If both a and b exceed 100,000 it is the normal quantile of log(x / (1 - x)), which is off by
    a hundredth of the distribution's width at most. Otherwise it is found by Halley's method, with
    a bisection step whenever Halley's step leaves the bracket. The last results are remembered:
    while nothing is predicted, every look at the tail asks for the same ones.
    """
    p, a, b = np.broadcast_arrays(*(np.asarray(values, np.float64) for values in (p, a, b)))
    quantiles = _remembered_quantiles(p.tobytes(), a.tobytes(), b.tobytes())
    return quantiles.reshape(p.shape).copy()


@lru_cache(maxsize=32)
def _remembered_quantiles(*flat: bytes) -> Doubles:
    """Return the quantiles [K] for p, a and b, each the bytes of a float64 array [K]."""
    p, a, b = (np.frombuffer(values, np.float64) for values in flat)
    norm = log_beta(a, b)

    z = np.array([NormalDist().inv_cdf(probability) for probability in p.tolist()])
    logit = np.log(a / b) + z * np.sqrt(1 / a + 1 / b)
    normal = 1 / (1 + np.exp(-logit.clip(-50, 30)))
    # With a < 1 the density is nearly a power of x, and the quantile may be close to 0.
    power = np.exp(((np.log(p * a) + norm) / a).clip(np.log(TINY), np.log(0.5)))
    quantiles: Doubles = np.where(a < 1, power, normal)

    open_ = np.flatnonzero(np.minimum(a, b) <= MAX_EXACT_SHAPE)
    low, high = np.zeros(p.size), np.ones(p.size)
    while open_.size:
        x, left, right = quantiles[open_], a[open_], b[open_]
        excess = _cdf(x, left, right, norm[open_]) - p[open_]
        low[open_] = np.where(excess < 0, x, low[open_])
        high[open_] = np.where(excess < 0, high[open_], x)
        # Halley's step on the logit scale, where the density is f(x) x (1 - x) and its logarithm
        # has the slope `bend`.
        density = np.exp(left * np.log(x) + right * np.log1p(-x) - norm[open_])
        newton, bend = excess / density.clip(TINY), left * (1 - x) - right * x
        step = (newton / (1 - (newton * bend / 2).clip(-1, 0.5))).clip(-LONGEST_STEP, LONGEST_STEP)
        halley = x / (x + (1 - x) * np.exp(step))
        near = np.abs(halley - x) <= 1e-10 * x
        inside = (halley > low[open_].clip(TINY)) & (halley < high[open_].clip(max=NEARLY_ONE))
        new = np.where(inside | near, halley, (low[open_] + high[open_]) / 2)
        quantiles[open_] = new.clip(TINY, NEARLY_ONE)
        done = near | (new <= TINY) | (new >= NEARLY_ONE)
        open_ = open_[~done]
    return quantiles


def binomial_interval(
    counts: npt.ArrayLike, total: float, coverage: float = 0.95
) -> tuple[Doubles, Doubles]:
    """Return Clopper and Pearson's (1934) bounds of the share, for each of `counts` in `total`.

    Each distinct count is computed once. With more than 500 hits and more than 500 misses the
    bounds are Wilson's (1927) with a continuity correction of half a count, which differ by a
    thousandth at most. If `total` is 0 the bounds are 0 and 1.
    """
    distinct, positions = np.unique(np.asarray(counts, np.float64), return_inverse=True)
    exact = np.minimum(distinct, total - distinct) <= MAX_EXACT_COUNT
    bounds = np.empty((2, len(distinct)))
    bounds[:, exact] = clopper_pearson(distinct[exact], total - distinct[exact], coverage)
    if not exact.all():
        z = NormalDist().inv_cdf(1 - (1 - coverage) / 2)
        bounds[0, ~exact] = wilson_bound(distinct[~exact] - 0.5, total, -z)
        bounds[1, ~exact] = wilson_bound(distinct[~exact] + 0.5, total, z)
    low, high = bounds[:, positions]
    return low, high


def clopper_pearson(hits: Doubles, misses: Doubles, coverage: float) -> tuple[Doubles, Doubles]:
    """Return Clopper and Pearson's (1934) bounds of shares [K], from counts that may be fractions.

    Without hits the lower bound is 0, and without misses the upper one is 1.
    """
    bounds = np.stack([np.zeros(len(hits)), np.ones(len(hits))])
    inside = np.stack([hits, misses]) > NO_COUNT
    a, b = np.stack([hits, hits + 1]), np.stack([misses + 1, misses])
    beyond = (1 - coverage) / 2
    chances = np.broadcast_to([[beyond], [1 - beyond]], a.shape)
    bounds[inside] = beta_quantile(chances[inside], a[inside], b[inside])
    low, high = bounds
    return low, high


def wilson_bound(counts: Doubles, total: float, z: float) -> Doubles:
    """Return Wilson's (1927) bound of a share, `z` standard errors from `counts` of `total`."""
    half_width = z * np.sqrt(counts * (1 - counts / total) + z * z / 4)
    bound: Doubles = (counts + z * z / 2 + half_width) / (total + z * z)
    return bound


def beta_binomial_at_most(count: float, total: float, a: float, b: float) -> float:
    """Return P(X <= count) for X ~ Binomial(total, r) and r ~ Beta(a, b).

    X <= count if r is below the order statistic of `total` uniforms that has `count` of them below
    it, which is Beta(count + 1, total - count). This avoids a sum over counts, whose cost would
    grow with them. Accurate to 1e-5 relative up to a billion predictions, and better for fewer, if
    it is above 1e-200.
    """
    if count >= total:
        return 1.0
    return min(1.0, probability_below((a, b), (count + 1, total - count)))


def probability_below(left: BetaShape, right: BetaShape) -> float:
    """Return P(L < R) for independent beta variables: the mean of L's distribution function over R.

    The integral is taken by the trapezoidal rule on the logit scale, where R's density is smooth
    and falls off so fast that the rule's error does, too. If R is the wider of the two, both are
    mirrored, so that the integral runs over the narrower one.
    """
    if _logit_width(*right) > _logit_width(*left):
        return probability_below(right[::-1], left[::-1])
    a, b = right
    mean = a / (a + b)
    width = _logit_width(a, b) / STEPS_PER_WIDTH
    steps = np.arange(-WIDTHS * STEPS_PER_WIDTH, WIDTHS * STEPS_PER_WIDTH + 1) * width
    # log((1 + exp(t)) / (1 + exp(t0))) for t = t0 + step, with t0 the logit of the mean.
    rise = np.log1p(mean * np.expm1(steps))
    density = np.exp(a * steps - (a + b) * rise)
    cdf = beta_cdf(mean * np.exp(steps - rise), *left)
    return float(density @ cdf / density.sum())


def _logit_width(a: float, b: float) -> float:
    """Return roughly the standard deviation of a beta variable's logit."""
    return math.sqrt(1 / a + 1 / b)
