"""How much may be in work at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.admission import Admission
from service.errors import OverloadedError


@contextmanager
def held(admission: Admission, views: int, size: int, pace: float = 0.1) -> Iterator[None]:
    with admission.hold() as hold:
        hold.resize(views, size, pace)
        yield


def test_views_and_bytes_are_given_back_however_the_block_ends() -> None:
    admission = Admission(10, 100)
    with pytest.raises(KeyError), held(admission, 10, 100):
        raise KeyError
    with pytest.raises(OverloadedError), held(admission, 11, 100):
        pass
    with held(admission, 10, 100):
        pass


@pytest.mark.parametrize(
    ("views", "size", "words"),
    [(6, 1, "5 views are in work and 6 more"), (1, 60, "50 bytes are in work and 60 more")],
)
def test_what_does_not_fit_is_refused(views: int, size: int, words: str) -> None:
    admission = Admission(10, 100)
    with held(admission, 5, 50):
        with pytest.raises(OverloadedError, match=words), held(admission, views, size):
            pass
        with held(admission, 5, 50):
            pass


def test_a_hold_counts_once_when_its_size_changes() -> None:
    admission = Admission(10, 100)
    with admission.hold() as hold:
        hold.resize(0, 90, 0.1)
        hold.resize(5, 60, 0.1)
        with held(admission, 5, 40), pytest.raises(OverloadedError):
            hold.resize(5, 61, 0.1)
    with held(admission, 10, 100):
        pass


@pytest.mark.parametrize(("pace", "seconds"), [(0.001, "1"), (0.5, "4"), (2.0, "16")])
def test_the_wait_is_what_the_work_in_hand_takes(pace: float, seconds: str) -> None:
    admission = Admission(10, 100)
    with (
        held(admission, 8, 0, pace),
        pytest.raises(OverloadedError) as refused,
        held(admission, 3, 0, pace),
    ):
        pass
    assert refused.value.headers == {"Retry-After": seconds}
