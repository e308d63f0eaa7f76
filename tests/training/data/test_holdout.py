from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.errors import UserError
from taillift.training.data.subsets import holdout_indices


def test_rare_classes_give_one_and_frequent_ones_no_more_than_the_most() -> None:
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
def test_every_photo_is_on_one_side_and_every_class_stays(
    labels: list[int], share: float, most: int, seed: int
) -> None:
    stay, aside = holdout_indices(labels, share, most, seed)
    assert sorted(stay + aside) == list(range(len(labels)))
    assert {labels[index] for index in stay} == set(labels)
    twice = {label for label, count in Counter(labels).items() if count > 1}
    assert {labels[index] for index in aside} == twice
    assert (stay, aside) == holdout_indices(labels, share, most, seed)


def test_another_seed_sets_others_aside() -> None:
    labels = [0] * 50 + [1] * 50
    assert holdout_indices(labels, 0.2, 10, 0) != holdout_indices(labels, 0.2, 10, 1)


@pytest.mark.parametrize(("share", "most"), [(0, 10), (1, 10), (0.2, 0)])
def test_what_cannot_be_set_aside_is_refused(share: float, most: int) -> None:
    with pytest.raises(UserError, match="cannot be set aside"):
        holdout_indices([0, 0], share, most, 0)
