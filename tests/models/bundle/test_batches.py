"""Tests of the few batch sizes that a GPU runs."""

from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.device import BatchSizes


def test_sizes_double_from_one_image_to_a_batch() -> None:
    assert BatchSizes.up_to(40).sizes == (1, 5, 10, 20, 40)
    assert BatchSizes.up_to(64).sizes == (1, 5, 10, 20, 40, 64)
    assert BatchSizes.up_to(5).sizes == (1, 5)
    assert BatchSizes.up_to(1).sizes == (1,)


@given(st.integers(1, 500).flatmap(lambda most: st.tuples(st.just(most), st.integers(1, most))))
def test_a_batch_runs_at_the_smallest_size_that_holds_it(case: tuple[int, int]) -> None:
    largest, views = case
    batches = BatchSizes.up_to(largest)
    size = batches.padded(views)
    assert size in batches.sizes
    assert size >= views
    assert all(smaller < views for smaller in batches.sizes if smaller < size)


@given(st.integers(5, 500).flatmap(lambda most: st.tuples(st.just(most), st.integers(5, most))))
def test_less_than_half_of_a_batch_is_padding(case: tuple[int, int]) -> None:
    largest, views = case
    assert BatchSizes.up_to(largest).padded(views) < 2 * views
