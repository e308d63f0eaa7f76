"""The exact tails against scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from service.tail.exact import (
    beta_binomial_at_most,
    beta_cdf,
    beta_quantile,
    binomial_interval,
    log_gamma,
)

shapes = st.floats(0.05, 1e5)


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_log_gamma_is_scipys(values: list[float]) -> None:
    np.testing.assert_allclose(log_gamma(values), special.gammaln(values), rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), shapes, shapes)
def test_the_beta_distribution_is_scipys(x: float, a: float, b: float) -> None:
    np.testing.assert_allclose(beta_cdf(x, a, b), special.betainc(a, b, x), rtol=1e-8, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 1e4), st.floats(0.5, 1e6))
def test_beta_quantiles_are_scipys(p: float, a: float, b: float) -> None:
    np.testing.assert_allclose(beta_quantile(p, a, b), special.betaincinv(a, b, p), rtol=1e-7)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 10), (1, 1), (5, 200_000)])
def test_intervals_of_shares_are_clopper_and_pearsons(count: int, total: int) -> None:
    wanted = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    low, high = binomial_interval([count, count], total)
    np.testing.assert_allclose([low[1], high[0]], [wanted.low, wanted.high], rtol=1e-8)


@pytest.mark.parametrize(("count", "total"), [(501, 1_100), (501, 10**7), (40_000, 50_000)])
def test_intervals_of_many_counts_are_nearly_clopper_and_pearsons(count: int, total: int) -> None:
    wanted = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    low, high = binomial_interval([count], total)
    np.testing.assert_allclose([low[0], high[0]], [wanted.low, wanted.high], rtol=1e-3)


def test_nothing_observed_leaves_every_share_open() -> None:
    low, high = binomial_interval([0], 0)
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize(("count", "total"), [(0, 500), (3, 500), (500, 500)])
def test_the_chance_of_so_few_is_scipys(count: int, total: int) -> None:
    wanted = stats.betabinom(total, 3.5, 400).cdf(count)
    assert beta_binomial_at_most(count, total, 3.5, 400) == pytest.approx(wanted, rel=1e-9)
