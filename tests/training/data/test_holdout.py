"""Tests of setting training photos aside."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.errors import UserError
from taillift.training.data.dataset import hold_out, holdout_indices, load_dataset
from tests.support.tiny import write_photos


def test_rare_classes_lose_one_photo_and_frequent_ones_at_most_ten() -> None:
    labels = [0] * 500 + [1] * 20 + [2] * 3 + [3] * 2 + [4]
    stay, aside = holdout_indices(labels, 0.2, 10, seed=0)
    assert Counter(labels[index] for index in aside) == {0: 10, 1: 4, 2: 1, 3: 1}
    assert Counter(labels[index] for index in stay) == {0: 490, 1: 16, 2: 2, 3: 1, 4: 1}


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    share=st.floats(0.01, 0.99),
    most=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_every_photo_is_on_one_side_and_every_class_keeps_one(
    labels: list[int], share: float, most: int, seed: int
) -> None:
    stay, aside = holdout_indices(labels, share, most, seed)
    assert sorted(stay + aside) == list(range(len(labels)))
    assert {labels[index] for index in stay} == set(labels)
    twice = {label for label, count in Counter(labels).items() if count > 1}
    assert {labels[index] for index in aside} == twice
    assert (stay, aside) == holdout_indices(labels, share, most, seed)


def test_another_seed_sets_other_photos_aside() -> None:
    labels = [0] * 50 + [1] * 50
    assert holdout_indices(labels, 0.2, 10, 0) != holdout_indices(labels, 0.2, 10, 1)


@pytest.mark.parametrize(("share", "most"), [(0, 10), (1, 10), (0.2, 0)])
def test_a_share_or_number_that_makes_no_sense_is_refused(share: float, most: int) -> None:
    with pytest.raises(UserError, match="cannot be set aside"):
        holdout_indices([0, 0], share, most, 0)


def test_photos_held_out_leave_training_and_keep_their_class(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 10, "green": 2, "blue": 1}, ("train", "test"))
    dataset = load_dataset(str(root))
    held = hold_out(dataset, share=0.3)
    assert held.val is not None
    assert held.counts == [7, 1, 1]
    assert held.val.labels == (1, 0, 0, 0)
    assert (held.classes, held.test) == (dataset.classes, dataset.test)
    assert {*held.train.photos, *held.val.photos} == set(dataset.train.photos)
    for split in (held.train, held.val):
        named = [held.classes[label] for label in split.labels]
        assert named == [photo.name.split("/")[1] for photo in split.photos]
    assert hold_out(held) is held


def test_single_photos_cannot_be_held_out(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_photos(tmp_path, {"red": 1, "blue": 1})))
    with pytest.raises(UserError, match="none can be set aside"):
        hold_out(dataset)


def test_a_set_that_has_val_keeps_it(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "val"))))
    assert hold_out(dataset) is dataset


def test_a_set_with_photos_held_out_has_another_fingerprint(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "test"))))
    assert hold_out(dataset).fingerprint != dataset.fingerprint
