"""How much may be in work at once."""

import pytest

from service.admission import Admission
from service.errors import OverloadedError


def test_views_and_bytes_are_given_back_however_the_block_ends() -> None:
    admission = Admission(10, 100)
    with pytest.raises(KeyError), admission.hold(10, 100, 0.1):
        raise KeyError
    with admission.hold(10, 100, 0.1):
        pass


@pytest.mark.parametrize(("views", "size"), [(6, 1), (1, 60)])
def test_what_does_not_fit_is_refused(views: int, size: int) -> None:
    admission = Admission(10, 100)
    with admission.hold(5, 50, 0.1):
        with pytest.raises(OverloadedError), admission.hold(views, size, 0.1):
            pass
        with admission.hold(5, 50, 0.1):
            pass


@pytest.mark.parametrize(("pace", "seconds"), [(0.001, "1"), (0.5, "4"), (2.0, "16")])
def test_the_wait_is_what_the_work_in_hand_takes(pace: float, seconds: str) -> None:
    admission = Admission(10, 100)
    with (
        admission.hold(8, 0, pace),
        pytest.raises(OverloadedError) as refused,
        admission.hold(3, 0, pace),
    ):
        pass
    assert refused.value.headers == {"Retry-After": seconds}
