"""Tests that an answer is accepted from its group's threshold on, and reviewed otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.review import DecisionReason, GroupReview, Review
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
    nothing = REVIEW.model_copy(update={"groups": {}})
    assert nothing.decide(1.0, "many") == "review"
    assert nothing.explain(1.0, "many").photos == 0


def reason(photos: int | None, threshold: float | None, confidence: float) -> DecisionReason:
    group = at(threshold).model_copy(update={"fitted_photos": photos})
    return REVIEW.model_copy(update={"groups": {"few": group}}).explain(confidence, "few")


@pytest.mark.parametrize(
    ("photos", "threshold", "kind", "words"),
    [
        (40, 0.912, "below threshold", "is below the threshold of the group few, 91.2 %"),
        (40, 0.9, "accepted", "reaches the threshold of the group few, 90 %"),
        (7, None, "no threshold", "7 held-out photos do not show"),
        (1, None, "no threshold", "1 held-out photo does not show"),
        (None, None, "no threshold", "because the held-out photos do not show"),
    ],
)
def test_a_decision_has_a_reason(
    photos: int | None, threshold: float | None, kind: str, words: str
) -> None:
    found = reason(photos, threshold, 0.9)
    assert (found.kind, found.threshold, found.photos) == (kind, threshold, photos)
    assert words in found.text


def test_a_confidence_of_999_per_mille_is_not_called_unsure_without_a_threshold() -> None:
    found = reason(3, None, 0.999)
    assert found.decision == "review"
    assert "confidence is below" not in found.text


@pytest.mark.parametrize(
    ("threshold", "words"), [(0.99981, "99.99 %"), (0.999999, "over 99.99 %"), (1.0, "100 %")]
)
def test_a_threshold_never_looks_lower_than_it_is(threshold: float, words: str) -> None:
    assert reason(9, threshold, 0.5).text.endswith(f", {words}")


@given(st.floats(0, 1), st.sampled_from(GROUPS))
def test_decision_and_reason_agree(confidence: float, group: Group) -> None:
    assert REVIEW.explain(confidence, group).decision == REVIEW.decide(confidence, group)


def test_it_comes_back_from_the_manifest() -> None:
    assert Review.model_validate_json(REVIEW.model_dump_json()) == REVIEW
