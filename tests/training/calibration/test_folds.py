"""Folds hold out each photo once and leave every class in training."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from taillift.training.calibration.cross_fit import assign_folds

LABELS = st.lists(st.integers(1, 60), min_size=2, max_size=8).map(
    lambda counts: [label for label, count in enumerate(counts) for _ in range(count)]
)


@given(LABELS, st.integers(2, 6), st.integers(2, 50))
def test_no_photo_is_held_out_twice_and_every_class_keeps_one(
    labels: list[int], folds: int, most: int
) -> None:
    assigned = assign_folds(labels, folds, most)
    photos = [photo for fold in assigned for photo in fold]
    assert len(photos) == len(set(photos))
    for fold in assigned:
        kept = Counter(label for photo, label in enumerate(labels) if photo not in fold)
        assert set(kept) == set(labels)


@given(LABELS, st.integers(2, 6), st.integers(2, 50))
def test_a_class_gives_as_many_photos_as_allowed_and_none_if_it_has_a_single_one(
    labels: list[int], folds: int, most: int
) -> None:
    aside = Counter(labels[photo] for fold in assign_folds(labels, folds, most) for photo in fold)
    for label, count in Counter(labels).items():
        assert aside[label] == (min(count, most) if count > 1 else 0)


def test_a_rare_classs_photos_go_to_different_folds() -> None:
    assigned = assign_folds([0] * 5 + [1] * 5, folds=5)
    assert [sorted(int(photo >= 5) for photo in fold) for fold in assigned] == [[0, 1]] * 5
