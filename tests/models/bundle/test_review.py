"""Tests that an answer is accepted from its group's threshold on, and reviewed otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import GROUPS, Group


def at(threshold: float | None) -> GroupReview:
    return GroupReview(photos=9, threshold=threshold, certified=False, accepted=50.0, error=4.0)


REVIEW = Review(
    risk=5.0,
    level=95.0,
    data="others",
    groups={"many": at(0.6), "medium": at(0.8), "few": at(None)},
)


@pytest.mark.parametrize(
    ("confidence", "group", "decision"),
    [
        (0.6, "many", "accept"),
        (0.5999, "many", "review"),
        (0.6, "medium", "review"),
        (0.9, "medium", "accept"),
        (1.0, "few", "review"),
    ],
)
def test_each_group_has_its_threshold(confidence: float, group: Group, decision: str) -> None:
    assert REVIEW.decide(confidence, group) == decision


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(GROUPS))
def test_what_is_accepted_stays_so_with_more_confidence(
    first: float, second: float, group: Group
) -> None:
    low, high = sorted([first, second])
    if REVIEW.decide(low, group) == "accept":
        assert REVIEW.decide(high, group) == "accept"


def test_a_group_that_is_not_known_goes_to_review() -> None:
    assert REVIEW.model_copy(update={"groups": {}}).decide(1.0, "many") == "review"


def test_it_comes_back_from_the_manifest() -> None:
    assert Review.model_validate_json(REVIEW.model_dump_json()) == REVIEW
