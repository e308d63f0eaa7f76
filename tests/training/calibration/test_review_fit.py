"""Certified thresholds keep the risk, and the others say that they are estimates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.review import fit_review, measure_review

PAIR: list[Group] = ["many", "many"]


def photos(count: int, seed: int, rarer: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return photos of two classes; confidence is exactly the probability of being right.

    The second class has only one in `rarer` of its photos.
    """
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.5, 1, count)
    answers = random.integers(0, 2, count)
    labels = np.where(random.random(count) < confidence, answers, 1 - answers)
    probabilities = np.empty((count, 2))
    probabilities[np.arange(count), answers] = confidence
    probabilities[np.arange(count), 1 - answers] = 1 - confidence
    kept = (labels == 0) | (np.arange(count) % rarer == 0)
    return probabilities[kept], labels[kept]


def always(error: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return answers that are wrong with the same probability at any confidence."""
    random = np.random.default_rng(seed)
    top = random.uniform(0.6, 1, count)
    labels = np.arange(count) % 2
    answers = np.where(random.random(count) < error, 1 - labels, labels)
    probabilities = np.where(np.arange(2) == answers[:, None], top[:, None], 1 - top[:, None])
    return probabilities, labels


def test_with_many_photos_the_risk_is_certified_and_used() -> None:
    review = fit_review(*photos(20_000, 0), PAIR)
    many = review.groups["many"]
    assert many.certified
    assert review.notes == ()
    # The error above confidence t is (1 - t) / 2: 5 % at 0.9.
    assert many.threshold is not None
    assert 0.9 <= many.threshold < 0.92
    assert many.accepted == pytest.approx(200 * (1 - many.threshold), abs=1)


@pytest.mark.parametrize(("rarer", "fewest"), [(1, 50), (8, 25)])
def test_certified_thresholds_exceed_the_risk_no_more_often_than_stated(
    rarer: int, fewest: int
) -> None:
    reviews = [
        fit_review(*photos(3000, seed, rarer), PAIR, risk=10.0).groups["many"]
        for seed in range(100)
    ]
    certified = [group.threshold for group in reviews if group.certified and group.threshold]
    assert len(certified) > fewest
    # The true error above t is (1 - t) / 2: over 10 % below 0.8.
    assert sum(threshold < 0.8 for threshold in certified) <= 5


def test_answers_that_are_wrong_too_often_are_almost_never_certified() -> None:
    reviews = [fit_review(*always(0.055, 600, seed), PAIR).groups["many"] for seed in range(200)]
    # 5 % of 200 is 10, and three standard errors more are 19.
    assert sum(group.certified for group in reviews) <= 19


def test_right_answers_are_certified_from_about_the_count_of_the_binomial_bound() -> None:
    """59 answers without an error bound it by 5 % at 95 %. Several stakes need some more."""
    assert not fit_review(*always(0.0, 58, 0), PAIR).groups["many"].certified
    assert fit_review(*always(0.0, 100, 0), PAIR).groups["many"].certified


def test_too_few_photos_give_an_estimate_that_says_so() -> None:
    review = fit_review(*photos(60, 1), PAIR)
    many = review.groups["many"]
    assert not many.certified
    assert many.threshold is not None
    assert "many: 60 answers cannot certify an error of 5 %" in review.notes[0]


def test_without_any_confident_answer_all_go_to_review() -> None:
    probabilities = np.full((40, 2), 0.5) + np.linspace(0, 0.01, 40)[:, None] * [1, -1]
    review = fit_review(probabilities, np.arange(40) % 2, PAIR)
    many = review.groups["many"]
    assert (many.threshold, many.accepted, many.error) == (None, 0.0, None)
    assert review.decide(1.0, "many") == "review"
    assert (
        "40 answers show no confidence at which the error is known to stay within 5 %"
        in review.notes[0]
    )


def test_groups_that_are_never_predicted_go_to_review() -> None:
    probabilities, labels = photos(200, 2)
    probabilities = np.column_stack([probabilities, np.zeros(200)])
    review = fit_review(probabilities, labels, ["many", "many", "few"])
    assert review.groups["few"].threshold is None
    assert any(note.startswith("few: no held-out photo is answered") for note in review.notes)
    assert not any(note.startswith("medium") for note in review.notes)


@pytest.mark.parametrize(("photos", "accepts"), [(3, False), (19, False), (20, True)])
def test_a_handful_of_confident_answers_gives_no_threshold(photos: int, accepts: bool) -> None:
    probabilities = np.column_stack([np.linspace(0.999, 0.9999, photos), np.zeros(photos)])
    review = fit_review(probabilities, np.zeros(photos, np.int64), PAIR)
    assert (review.groups["many"].threshold is not None) is accepts
    assert not review.groups["many"].certified
    assert any(note.startswith("many: ") for note in review.notes)


@given(st.integers(0, 12), st.integers(2, 5), st.integers(0, 999))
def test_any_data_give_a_review(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.2), count).reshape(count, classes)
    groups = [GROUPS[index] for index in random.integers(0, 3, classes)]
    review = fit_review(probabilities, random.integers(0, classes, count), groups)
    assert set(review.groups) == set(GROUPS)
    assert len(review.notes) >= len(set(groups))
    assert sum(group.photos for group in review.groups.values()) <= count


def test_thresholds_are_measured_on_other_photos() -> None:
    fitted = fit_review(*photos(5000, 3), PAIR)
    measured = measure_review(fitted, "others", *photos(20_000, 4), PAIR)
    before, after = fitted.groups["many"], measured.groups["many"]
    assert (after.threshold, after.certified) == (before.threshold, before.certified)
    assert after.photos == 20_000
    assert (fitted.data, measured.data) == ("the photos of the fit, which flatters them", "others")
    assert after.error is not None
    assert after.error <= 5.0
