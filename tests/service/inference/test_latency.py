"""Tests of predicting how long work takes from how long past work took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.service.inference.latency import LatencyModel

SECONDS = st.floats(1e-4, 10)


@given(slope=SECONDS, base=SECONDS)
def test_a_line_is_found_in_the_batches_that_lie_on_it(slope: float, base: float) -> None:
    pace = LatencyModel()
    pace.fit([1, 5, 40], [slope * count + base for count in (1, 5, 40)])
    assert pace.seconds(20) == pytest.approx(slope * 20 + base, rel=1e-3)


@given(st.lists(SECONDS, min_size=3, max_size=3))
def test_no_measurement_makes_more_work_take_less_time(seconds: list[float]) -> None:
    pace = LatencyModel()
    pace.fit([1, 5, 40], seconds)
    assert 0 < pace.seconds(1) <= pace.seconds(2) <= pace.seconds(100)


def test_one_batch_size_gives_a_line_through_nothing() -> None:
    pace = LatencyModel()
    pace.fit([10, 10], [0.9, 1.1])
    assert pace.seconds(5) == pytest.approx(0.5)


def test_the_base_is_paid_for_each_batch() -> None:
    pace = LatencyModel(slope=0.1, base=1)
    assert pace.seconds(5, batch=10) == pytest.approx(1.5)
    assert pace.seconds(20, batch=10) == pytest.approx(4)
    assert pace.seconds(0, batch=10) == 0


@pytest.mark.parametrize("factor", [0.1, 2, 100])
def test_it_follows_a_device_that_became_slower_or_faster_in_every_size(factor: float) -> None:
    pace = LatencyModel(slope=0.1, base=1)
    for _ in range(50):
        pace.update(10, factor * 2.0)
    assert pace.seconds(20) == pytest.approx(factor * 3.0, rel=0.01)


@pytest.mark.parametrize(("seconds", "most"), [(2.0, 1.3), (1_000.0, 1.5)])
def test_one_odd_batch_does_not_move_it_far(seconds: float, most: float) -> None:
    pace = LatencyModel(slope=0.1)
    pace.update(10, seconds)
    assert 1.0 < pace.seconds(10) < most
