"""The upper bound on the accuracy that a cheaper answer loses."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from taillift.models.bundle.calibration_error import class_weights
from taillift.training.calibration.betting import mean_loss, upper_bound
from taillift.training.calibration.held_out import photo_weights

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 12), st.integers(0, 12)).filter(any)


def losses_of(same: int, lost: int, won: int) -> np.ndarray:
    return np.repeat([0, 1, -1], [same, lost, won])


def bound_of(same: int, lost: int, won: int) -> float:
    losses = losses_of(same, lost, won)
    return upper_bound(losses, photo_weights(len(losses)))


@pytest.mark.parametrize("photos", [1, 2, 10, 60, 166, 3000])
def test_without_a_changed_answer_it_is_the_binomial_bound(photos: int) -> None:
    exact = 1 - 0.05 ** (1 / photos)
    assert exact <= bound_of(photos, 0, 0) <= 1.01 * exact


def test_without_photos_the_bound_is_one() -> None:
    assert upper_bound(losses_of(0, 0, 0), photo_weights(0)) == 1


@given(COUNTS)
def test_it_is_above_the_estimate_and_every_lost_answer_raises_it(
    counts: tuple[int, int, int],
) -> None:
    same, lost, won = counts
    losses = losses_of(same, lost, won)
    bound = bound_of(same, lost, won)
    assert mean_loss(losses, photo_weights(len(losses)))[0] <= bound <= 1
    if same:
        assert bound <= 1.001 * bound_of(same - 1, lost + 1, won)


@given(COUNTS, st.integers(2, 5))
def test_as_many_photos_again_tighten_it(counts: tuple[int, int, int], times: int) -> None:
    same, lost, won = counts
    assert bound_of(same * times, lost * times, won * times) <= 1.01 * bound_of(same, lost, won)


@pytest.mark.parametrize("photos", [3, 8, 15])
def test_it_holds_for_any_shares_of_lost_and_won_answers(photos: int) -> None:
    outcomes = [
        (photos - lost - won, lost, won)
        for lost, won in product(range(photos + 1), repeat=2)
        if lost + won <= photos
    ]
    bounds = np.array([bound_of(*outcome) for outcome in outcomes])
    for lost, won in product(np.linspace(0, 1, 21), repeat=2):
        if lost + won <= 1:
            shares = multinomial.pmf(outcomes, photos, [max(0, 1 - lost - won), lost, won])
            assert shares[bounds < lost - won].sum() <= 0.05 + 1e-9, (lost, won)


def test_it_holds_for_means_over_unequal_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [3, 4, 6, 10, 20, 40])
    lost = np.array([0.6, 0.5, 0.1, 0.0, 0.05, 0.0])
    weights, draws = class_weights(labels), 1000
    broken = sum(
        upper_bound((rng.random(len(labels)) < lost[labels]).astype(int), weights) < lost.mean()
        for _ in range(draws)
    )
    assert broken <= binom.ppf(0.999, draws, 0.05)


def test_with_many_photos_it_is_close_to_the_normal_bound() -> None:
    losses = losses_of(9700, 150, 150)
    normal = 1.645 * np.sqrt(0.03 / 10_000)
    assert normal < upper_bound(losses, photo_weights(10_000)) < 1.6 * normal


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_class_weights_give_the_mean_of_the_class_means(labels: list[int], seed: int) -> None:
    rows = np.array(labels)
    losses = np.random.default_rng(seed).integers(-1, 2, len(rows))
    means = [losses[rows == label].mean() for label in set(labels)]
    assert mean_loss(losses, class_weights(rows))[0] == pytest.approx(np.mean(means))
    assert class_weights(rows).mean() == pytest.approx(1)
