"""Distribution functions, compared with scipy's."""

import math
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from taillift.service.tail import distributions
from taillift.service.tail.distributions import (
    Doubles,
    beta_binomial_at_most,
    beta_cdf,
    beta_quantile,
    binomial_interval,
    log_gamma,
)

shapes = st.floats(0.05, 1e5)
# Below it, no accuracy is promised.
LEAST_CHANCE: Final = 1e-200


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_log_gamma_equals_scipys(values: list[float]) -> None:
    np.testing.assert_allclose(log_gamma(values), special.gammaln(values), rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), shapes, shapes)
def test_the_beta_distribution_equals_scipys(x: float, a: float, b: float) -> None:
    np.testing.assert_allclose(beta_cdf(x, a, b), special.betainc(a, b, x), rtol=1e-8, atol=1e-12)


def test_a_fraction_stops_when_each_of_its_values_has_converged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts, terms = [], distributions._terms

    def counted(start: int, *shapes: Doubles) -> tuple[Doubles, Doubles]:
        starts.append(start)
        return terms(start, *shapes)

    monkeypatch.setattr(distributions, "_terms", counted)
    values = np.geomspace(1e-10, 1e-6, 300)
    cdf = beta_cdf(values, 10, 1e8)
    np.testing.assert_allclose(cdf, special.betainc(10, 1e8, values), rtol=1e-6)
    assert starts[-1] < 250


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 1e4), st.floats(0.5, 1e6))
def test_beta_quantiles_equal_scipys(p: float, a: float, b: float) -> None:
    np.testing.assert_allclose(beta_quantile(p, a, b), special.betaincinv(a, b, p), rtol=1e-7)


@pytest.mark.parametrize("p", [0.025, 0.975])
def test_quantiles_take_few_steps(monkeypatch: pytest.MonkeyPatch, p: float) -> None:
    cdf, steps = distributions._cdf, []

    def counted(x: Doubles, a: Doubles, b: Doubles, norm: Doubles) -> Doubles:
        steps.append(x.size)
        return cdf(x, a, b, norm)

    monkeypatch.setattr(distributions, "_cdf", counted)
    shapes = np.geomspace(0.0123, 43_210, 12)
    quantiles = beta_quantile(p, shapes[:, None], shapes)
    wanted = special.betaincinv(shapes[:, None], shapes, p)
    np.testing.assert_allclose(quantiles, wanted, rtol=1e-7)
    assert sum(steps) < 5 * quantiles.size
    assert len(steps) < 10
    # Nothing is computed twice, and what is remembered cannot be changed.
    quantiles[:] = 0
    np.testing.assert_allclose(beta_quantile(p, shapes[:, None], shapes), wanted, rtol=1e-7)
    assert len(steps) < 10


def test_odds_of_quantiles_are_finite() -> None:
    quantiles = beta_quantile([0.5, 0.975], [1e4, 5], [1e-3, 1e-3])
    assert (quantiles > 1 - 1e-9).all()
    odds = 16 * quantiles / (1 - quantiles)
    assert np.isfinite(np.log1p(-odds / (1 + odds))).all()


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 10), (1, 1), (5, 200_000)])
def test_binomial_intervals_are_clopper_and_pearsons(count: int, total: int) -> None:
    wanted = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    low, high = binomial_interval([count, count], total)
    np.testing.assert_allclose([low[1], high[0]], [wanted.low, wanted.high], rtol=1e-8)


@pytest.mark.parametrize(("count", "total"), [(501, 1_100), (501, 10**7), (40_000, 50_000)])
def test_binomial_intervals_of_large_counts_are_nearly_clopper_and_pearsons(
    count: int, total: int
) -> None:
    wanted = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    low, high = binomial_interval([count], total)
    np.testing.assert_allclose([low[0], high[0]], [wanted.low, wanted.high], rtol=1e-3)


def test_without_any_trial_every_share_is_possible() -> None:
    low, high = binomial_interval([0], 0)
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize(("count", "total"), [(0, 500), (3, 500), (500, 500)])
def test_beta_binomial_equals_scipys(count: int, total: int) -> None:
    wanted = stats.betabinom(total, 3.5, 400).cdf(count)
    assert beta_binomial_at_most(count, total, 3.5, 400) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 20_000), st.floats(0.05, 1e3), st.floats(1e-4, 0.99))
def test_beta_binomial_equals_scipys_for_any_count_and_rate(
    data: st.DataObject, total: int, a: float, mean: float
) -> None:
    b = a / mean - a
    likely = int(total * mean)
    count = data.draw(st.integers(0, total) | st.integers(0, min(total, 3 * likely)))
    wanted = stats.betabinom(total, a, b).cdf(count)
    chance = beta_binomial_at_most(count, total, a, b)
    # Logarithms, since the smallest chances are exponentials of large sums.
    if wanted < LEAST_CHANCE:
        assert chance < 2 * LEAST_CHANCE
    else:
        assert math.log(chance) == pytest.approx(math.log(wanted), rel=1e-7, abs=1e-6)


@pytest.mark.parametrize(
    ("count", "total", "a", "b"),
    [
        (490_000, 1_000_000, 50, 50),
        (490_000, 1_000_000, 1e6, 1e6),
        (301_000, 10_000_000, 30, 970),
        (999_000, 1_000_000, 900, 0.5),
    ],
)
def test_beta_binomial_equals_scipys_for_many_predictions(
    count: int, total: int, a: float, b: float
) -> None:
    wanted = stats.betabinom(total, a, b).cdf(count)
    assert beta_binomial_at_most(count, total, a, b) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("total", [1, 10, 10**6, 10**12])
def test_if_every_rate_is_equally_likely_so_is_every_count(total: int) -> None:
    for count in (0, total // 3, total - 1, total):
        wanted = (count + 1) / (total + 1)
        assert beta_binomial_at_most(count, total, 1, 1) == pytest.approx(wanted, rel=1e-6)
