import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.errors import UserError
from taillift.training.data.subsets import tail_counts, tail_indices


@pytest.mark.parametrize(("ratio", "total"), [(10, 19_573), (50, 12_608), (100, 10_847)])
def test_counts_are_those_of_cifar_100_lt(ratio: float, total: int) -> None:
    counts = tail_counts(500, 100, ratio)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (500, 500 / ratio)


@pytest.mark.parametrize("ratio", [2, 7, 49, 50])
def test_the_ratio_comes_out_exactly_where_it_divides_the_largest(ratio: int) -> None:
    counts = tail_counts(3 * ratio, 4, ratio)
    assert counts[0] / counts[-1] == ratio


def kept_of(counts: list[int], ratio: float) -> list[int]:
    """How many photos each class keeps."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{label:02}" for label in range(len(counts))]
    kept = Counter(labels[index] for index in tail_indices(labels, names, ratio))
    return [kept[label] for label in range(len(counts))]


@pytest.mark.parametrize(
    ("counts", "ratio", "kept"),
    [
        ([30, 21, 5], 10, [30, 9, 3]),
        ([5, 21, 30], 10, [3, 9, 30]),
        ([9, 300, 20, 5], 100, [9, 300, 20, 3]),
    ],
)
def test_an_uneven_set_gets_the_ratio_that_was_asked_for(
    counts: list[int], ratio: float, kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert kept_of(counts, ratio) == kept
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("counts", "ratio", "told"),
    [
        ([30, 21, 1], 10, "the photos give 30: 30 of the largest class, 1 of the smallest"),
        ([5, 5, 5], 10, "the photos give 5: 5 of the largest class, 1 of the smallest"),
        ([19, 19], 10, "the photos give 19: 19 of the largest class, 1 of the smallest"),
    ],
)
def test_a_ratio_that_the_photos_do_not_give_is_warned_of(
    counts: list[int], ratio: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        kept_of(counts, ratio)
    assert caplog.messages == [f"an imbalance ratio of 10 was asked for, and {told}"]


def test_equal_classes_shrink_in_the_order_of_their_names() -> None:
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
    wanted = tail_counts(max(counts), len(counts), ratio)
    falling = sorted(counts, reverse=True)
    kept = kept_of(counts, ratio)
    assert sorted(kept, reverse=True) == [min(pair) for pair in zip(falling, wanted, strict=True)]
    assert all(1 <= after <= before for before, after in zip(counts, kept, strict=True))


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan")])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="below 1"):
        tail_indices([0, 1], ["a", "b"], ratio)
