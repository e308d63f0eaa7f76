"""Paired differences: exact tests, and intervals that hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.release.paired import PairedCounts, holm, mcnemar

# Photos of a class, those that only the new model gets right, those that only the old one does.
CLASS = st.integers(1, 60).flatmap(
    lambda photos: st.integers(0, photos).flatmap(
        lambda gained: st.tuples(st.just(photos), st.just(gained), st.integers(0, photos - gained))
    )
)


def counts(rows: list[tuple[int, int, int]]) -> PairedCounts:
    return PairedCounts(*np.array(rows, np.int64).T)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1), (5, 5, 1), (0, 10, 2 / 1024), (1, 5, 14 / 64), (3000, 3000, 1), (0, 2000, 0)],
)
def test_mcnemar_is_exact(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(p_value, abs=1e-12)


def test_holm_stops_at_the_first_that_is_not_small_enough() -> None:
    assert holm([0.04, 0.001, 0.02]) == [True, True, True]
    assert holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert holm([]) == []


def test_photos_are_counted_by_class_and_only_by_those_that_have_any() -> None:
    labels = np.array([7, 7, 2, 7])
    old, new = np.array([True, False, True, True]), np.array([True, True, False, True])
    paired = PairedCounts.of(labels, old, new)
    assert paired.photos.tolist() == [1, 3]
    assert paired.gained.tolist() == [0, 1]
    assert paired.lost.tolist() == [1, 0]
    assert paired.difference == pytest.approx((-1 + 1 / 3) / 2)


@given(st.lists(CLASS, min_size=1, max_size=12))
def test_an_interval_holds_its_estimate_and_turns_with_the_sides(
    rows: list[tuple[int, int, int]],
) -> None:
    forth, back = counts(rows), counts([(photos, lost, gained) for photos, gained, lost in rows])
    low, high = forth.interval
    assert -1 <= low <= forth.difference <= high <= 1
    assert high > low
    assert back.interval == pytest.approx((-high, -low))


@given(st.lists(CLASS, min_size=1, max_size=12))
def test_ten_times_the_photos_make_an_interval_shorter(rows: list[tuple[int, int, int]]) -> None:
    few, many = counts(rows), counts([(10 * a, 10 * b, 10 * c) for a, b, c in rows])
    assert many.interval.high - many.interval.low < few.interval.high - few.interval.low


# Classes, their least and most photos, the mean share of photos that change, and how many of
# these are lost.
@pytest.mark.parametrize(
    ("classes", "photos", "changed", "lost"),
    [
        (6, (13, 21), 0.10, 0.5),  # as in wardrobe-lt
        (21, (20, 20), 0.10, 0.6),  # as in places50-lt
        (20, (20, 20), 0.05, 0.9),
        (20, (2, 6), 0.20, 0.5),
        (50, (4, 40), 0.10, 0.6),
    ],
)
def test_intervals_hold_the_true_difference_in_93_to_97_of_100_draws(
    classes: int, photos: tuple[int, int], changed: float, lost: float
) -> None:
    random = np.random.default_rng(0)
    held, draws = 0, 2000
    for _ in range(draws):
        sizes = random.integers(photos[0], photos[1] + 1, classes)
        # Classes differ in how many of their photos change.
        shares = np.minimum(changed * random.gamma(2, 0.5, classes), 0.9)
        chances = np.stack([shares * (1 - lost), shares * lost, 1 - shares], axis=1)
        gained, away, _ = random.multinomial(sizes, chances).T
        low, high = PairedCounts(sizes, gained, away).interval
        held += low <= float((chances[:, 0] - chances[:, 1]).mean()) <= high
    assert 0.93 <= held / draws <= 0.97
