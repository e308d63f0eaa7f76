"""The window of recent predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.service.tail.window import BUCKETS, Window, quantiles

HOUR = 3600.0


def add(window: Window, label: int, confidence: float, now: float) -> None:
    window.add(np.array([label]), np.array([confidence]), now)


def test_predictions_older_than_the_window_are_forgotten() -> None:
    window = Window(3, BUCKETS * HOUR)
    add(window, 0, 0.5, 0)
    add(window, 1, 0.5, 5 * HOUR)
    assert window.counts.tolist() == [1, 1, 0]
    window.forget(11.9 * HOUR)
    assert window.counts.tolist() == [1, 1, 0]
    window.forget(12 * HOUR)
    assert window.counts.tolist() == [0, 1, 0]
    add(window, 2, 0.5, 40 * HOUR)
    assert window.counts.tolist() == [0, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 30)), max_size=40))
def test_counts_are_those_of_the_last_twelve_buckets(
    events: list[tuple[int, float, float]],
) -> None:
    window = Window(3, BUCKETS * HOUR)
    events.sort(key=lambda event: event[2])
    for label, confidence, hour in events:
        add(window, label, confidence, hour * HOUR)
    last = int(events[-1][2]) if events else 0
    kept = [label for label, _, hour in events if int(hour) > last - BUCKETS]
    assert window.counts.tolist() == np.bincount(np.array(kept, int), minlength=3).tolist()
    assert len(window.buckets) <= BUCKETS
    assert window.histogram.sum() == sum(bucket.histogram.sum() for bucket in window.buckets)


def test_predictions_of_a_clock_that_was_ahead_do_not_freeze_the_window() -> None:
    window = Window(2, BUCKETS * HOUR)
    add(window, 0, 0.5, 5 * HOUR)
    add(window, 0, 0.5, 3 * HOUR)
    add(window, 1, 0.5, 3.5 * HOUR)
    assert window.counts.tolist() == [1, 1]
    window.forget(15 * HOUR)
    assert window.counts.tolist() == [0, 0]


def test_a_saved_window_from_the_future_is_dropped_at_the_first_look() -> None:
    before, after = Window(1, BUCKETS * HOUR), Window(1, BUCKETS * HOUR)
    add(before, 0, 0.5, 50 * HOUR)
    after.restore(before.buckets)
    after.forget(2 * HOUR)
    assert after.counts.tolist() == [0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_quantiles_are_accurate_to_one_bin(confidences: list[float]) -> None:
    window = Window(1, HOUR)
    window.add(np.zeros(len(confidences), np.int64), np.array(confidences), 0)
    wanted = np.quantile(confidences, [0.1, 0.5, 0.9], method="inverted_cdf")
    np.testing.assert_allclose(quantiles(window.histogram)[0], wanted, atol=0.02 + 1e-12)


def test_a_class_without_predictions_has_no_quantiles() -> None:
    window = Window(2, HOUR)
    add(window, 1, 1.0, 0)
    result = quantiles(window.histogram)
    assert np.isnan(result[0]).all()
    assert result[1] == pytest.approx([0.982, 0.99, 0.998])
