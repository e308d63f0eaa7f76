from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import UserError
from training.data.tail import tail_counts, tail_indices


@pytest.mark.parametrize(("ratio", "total"), [(10, 19_573), (50, 12_608), (100, 10_847)])
def test_counts_are_those_of_cifar_100_lt(ratio: float, total: int) -> None:
    counts = tail_counts(500, 100, ratio)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (500, 500 / ratio)


def test_classes_shrink_in_the_order_of_their_names() -> None:
    labels = [0] * 100 + [1] * 100 + [2] * 100
    kept = tail_indices(labels, ["c", "a", "b"], 100)
    assert Counter(labels[index] for index in kept) == {1: 100, 2: 10, 0: 1}
    assert kept == sorted(kept)
    assert kept == tail_indices(labels, ["c", "a", "b"], 100)
    assert kept[:1] != [0], "the one that stays is drawn, not the first"


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    ratio=st.floats(1, 1000),
)
def test_no_class_grows_or_vanishes(counts: list[int], ratio: float) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{label:02}" for label in range(len(counts))]
    kept = Counter(labels[index] for index in tail_indices(labels, names, ratio))
    wanted = tail_counts(max(counts), len(counts), ratio)
    assert [kept[label] for label in range(len(counts))] == [
        min(pair) for pair in zip(counts, wanted, strict=True)
    ]


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan")])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="below 1"):
        tail_indices([0, 1], ["a", "b"], ratio)
