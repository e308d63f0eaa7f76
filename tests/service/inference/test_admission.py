"""Tests of how much work is accepted at once, and of who is let in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taillift.service.inference.admission import MARGIN, Admission, Load, Reservation
from taillift.service.inference.deadline import Deadline
from taillift.service.problems import DeadlineError, OverloadedError


def of(
    max_views: int = 10, max_bytes: int = 100, pace: float = 0.1, max_pixels: int = 1_000
) -> Admission:
    """Return an admission that predicts `pace` seconds for each view and none for decoding."""
    return Admission(max_views, max_bytes, max_pixels, lambda load, _raw: pace * load)


@contextmanager
def held(admission: Admission, share: Load, seconds: float = 1e6) -> Iterator[Reservation]:
    with admission.reserve(Deadline.after(seconds)) as hold:
        hold.resize(share)
        yield hold


def images(count: int, views: int = 1, size: int = 0) -> Load:
    return Load(count, count * views, size, count * views)


def test_views_and_bytes_are_given_back_however_the_block_ends() -> None:
    admission = of()
    with pytest.raises(KeyError), held(admission, images(10, size=100)):
        raise KeyError
    with pytest.raises(OverloadedError), held(admission, images(11, size=100)):
        pass
    with held(admission, images(10, size=100)):
        pass


def test_it_becomes_idle_once_after_the_last_request() -> None:
    admission = of()
    assert not admission.has_become_idle()
    with held(admission, images(1)):
        assert not admission.has_become_idle()
    assert [admission.has_become_idle() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("views", "size", "words"),
    [(6, 1, "5 views are in work and 6 more"), (1, 60, "50 bytes are in work and 60 more")],
)
def test_what_does_not_fit_is_refused(views: int, size: int, words: str) -> None:
    admission = of()
    with held(admission, images(5, size=50)):
        with (
            pytest.raises(OverloadedError, match=words),
            held(admission, images(views, size=size)),
        ):
            pass
        with held(admission, images(5, size=50)):
            pass


def test_a_hold_counts_once_when_its_share_changes() -> None:
    admission = of()
    with held(admission, Load(size=90)) as hold:
        hold.resize(images(5, size=60))
        with held(admission, images(5, size=40)), pytest.raises(OverloadedError):
            hold.resize(images(5, size=61))
    with held(admission, images(10, size=100)):
        pass


def test_a_body_that_is_expected_takes_nothing_before_it_comes() -> None:
    admission = of()
    with held(admission, Load(size=70)), admission.reserve(Deadline.after(1e6)) as hold:
        hold.precheck(30)
        with pytest.raises(OverloadedError, match="70 bytes are in work and 31 more"):
            hold.precheck(31)
        with held(admission, Load(size=30)):
            pass


def test_a_body_that_would_wait_too_long_is_not_read() -> None:
    admission = of(pace=1)
    with (
        held(admission, images(10)),
        admission.reserve(Deadline.after(1)) as hold,
        pytest.raises(OverloadedError, match=r"may take 1\.6 seconds"),
    ):
        hold.precheck(1)


def test_a_body_is_held_as_it_comes() -> None:
    admission = of()
    with held(admission, Load(size=70)), held(admission, Load()) as hold:
        hold.extend(20)
        hold.extend(10)
        with pytest.raises(OverloadedError, match="100 bytes are in work and 1 more"):
            hold.extend(1)
    with held(admission, Load(size=100)):
        pass


def test_what_an_image_no_longer_needs_is_free_for_others() -> None:
    admission = of()
    with held(admission, images(10)) as hold:
        hold.release(images(4))
        with held(admission, images(4)):
            pass
        with pytest.raises(OverloadedError), held(admission, images(5)):
            pass


@pytest.mark.parametrize(("pace", "seconds"), [(0.001, "1"), (0.5, "4"), (2.0, "16")])
def test_retry_after_is_what_the_work_in_hand_takes(pace: float, seconds: str) -> None:
    admission = of(pace=pace)
    with (
        held(admission, images(8)),
        pytest.raises(OverloadedError) as refused,
        held(admission, images(3)),
    ):
        pass
    assert refused.value.headers == {"Retry-After": seconds}


def test_experience_tells_the_wait_and_the_most_that_may_come_bounds_the_memory() -> None:
    admission = of(pace=1)
    with held(admission, Load(images=2, views=10, expected_views=3)):
        assert admission.wait(2) == 3
        with pytest.raises(OverloadedError) as refused, held(admission, images(1)):
            pass
    assert refused.value.headers == {"Retry-After": "3"}


def test_of_a_large_request_only_as_many_images_are_ahead() -> None:
    admission = of(max_views=1000)
    with held(admission, images(100)), held(admission, images(2)):
        assert admission.wait(1) == pytest.approx(0.2)
        assert admission.wait(2) == pytest.approx(0.4)
        assert admission.wait(50) == pytest.approx(5.2)
        assert admission.wait(1000) == pytest.approx(10.2)


def test_a_request_that_would_wait_too_long_learns_when_to_come_back() -> None:
    admission = of(max_views=1000, pace=1)
    with (
        held(admission, images(10)),
        held(admission, images(3)),
        pytest.raises(OverloadedError, match="may take 13 seconds") as refused,
        held(admission, images(3), seconds=5.5),
    ):
        pass
    # 3 seconds of its own leave 2.5 for the others' 6, of which 1.56 fit in with the margin.
    assert refused.value.headers == {"Retry-After": "5"}


def test_a_request_that_takes_too_long_by_itself_is_refused() -> None:
    admission = of(max_views=1000, pace=1)
    with (
        held(admission, images(1)),
        pytest.raises(DeadlineError, match="send fewer images or allow more time") as missed,
        held(admission, images(20), seconds=10),
    ):
        pass
    assert missed.value.stage == "admission"


def test_a_prediction_alone_refuses_no_request() -> None:
    with held(of(pace=1e6), images(1), seconds=0.001):
        pass


@given(
    others=st.lists(st.integers(1, 50), max_size=6),
    count=st.integers(1, 50),
    seconds=st.floats(1, 200),
)
def test_retry_after_is_enough_if_no_other_request_comes(
    others: list[int], count: int, seconds: float
) -> None:
    admission = of(max_views=10_000, pace=1)
    with ExitStack() as stack:
        for other in others:
            stack.enter_context(held(admission, images(other)))
        wait = sum(min(other, count) for other in others)
        retry: int | None = None
        try:
            stack.enter_context(held(admission, images(count), seconds=seconds))
        except OverloadedError as refused:
            retry = int((refused.headers or {})["Retry-After"])
        except DeadlineError:
            assume(False)
    over = wait - (seconds - count) / MARGIN
    if retry is None:
        assert wait == 0 or over <= 0
    else:
        assert 0 <= retry - over < 1.1


def test_pixels_that_wait_to_be_decoded_are_limited_and_given_back() -> None:
    admission = of(max_pixels=100)
    with held(admission, Load(images=1, views=1, pixels=70)) as hold:
        with pytest.raises(OverloadedError, match="70 pixels are in work and 31 more"):
            hold.resize(Load(images=1, views=1, pixels=101))
        hold.release(Load(pixels=70))
        with held(admission, Load(images=1, views=1, pixels=100)):
            pass
