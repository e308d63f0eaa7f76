"""Tests of the mean over views."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.ensemble import Ensemble, mean_over_views


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_rows_are_the_means_over_each_images_own_views(
    images: int, count: int, classes: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 20, (images, count, classes)).astype("f4")
    mean_logits = mean_over_views(logits.reshape(-1, classes), count)
    assert (mean_logits.shape, mean_logits.dtype) == ((images, classes), np.dtype("f4"))
    np.testing.assert_allclose(mean_logits, logits.mean(1), rtol=1e-4, atol=1e-4)


def test_one_view_is_its_own_mean() -> None:
    logits = np.array([[1.5, -2], [3, 4]], "f4")
    np.testing.assert_array_equal(mean_over_views(logits, 1), logits)


def test_rows_that_are_not_a_multiple_of_the_views_are_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        mean_over_views(np.zeros((7, 3), "f4"), 5)


def test_off_takes_one_view_full_five_and_adaptive_no_more() -> None:
    views = {ensemble: ensemble.views for ensemble in Ensemble}
    assert views == {Ensemble.OFF: 1, Ensemble.FULL: 5, Ensemble.ADAPTIVE: 5}
