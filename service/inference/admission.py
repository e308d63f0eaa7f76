"""How much may be in work at once, and how long it will take."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from taillift.service.inference.deadline import Deadline
from taillift.service.problems import DeadlineError, OverloadedError

# Of the time that others' work is predicted to take: what is let in at the very edge comes late,
# and its decoding has then been for nothing.
MARGIN: Final = 1.6


class Load(NamedTuple):
    """What a request has in work.

    `views` and `size` (bytes) are what it may take at most: they bound memory. `load` is the
    number of views that it will take by experience and `raw` its bytes that are not decoded:
    they tell the wait.
    """

    images: int = 0
    views: int = 0
    size: int = 0
    load: float = 0.0
    raw: int = 0

    def minus(self, other: "Load") -> "Load":
        return Load._make(mine - its for mine, its in zip(self, other, strict=True))


def total(*shares: Load) -> Load:
    return Load._make(map(sum, zip(*shares, strict=True)))


# Seconds that so many views take on the device, so many bytes in the decoder beside it.
Forecast = Callable[[float, float], float]


class Admission:
    """Counts what was accepted and is not answered."""

    def __init__(self, max_views: int, max_bytes: int, forecast: Forecast) -> None:
        self._max_views = max_views
        self._max_bytes = max_bytes
        self._forecast = forecast
        self._holds: set[Reservation] = set()
        self._total = Load()

    @contextmanager
    def hold(self, deadline: Deadline) -> Iterator["Reservation"]:
        """One request's share, empty at first and given back at the end of the block."""
        hold = Reservation(self, deadline)
        self._holds.add(hold)
        try:
            yield hold
        finally:
            hold.change(Load().minus(hold.share))
            self._holds.discard(hold)

    def wait(self, images: int, apart: "Reservation | None" = None) -> float:
        """Seconds until a request of so many images has its turn, apart from `apart`'s own work.

        Requests take turns image by image (`service.waiting`), so that of a larger request only
        as many images are ahead of it as it has itself.
        """
        load = raw = 0.0
        for hold in self._holds:
            share = hold.share
            if hold is not apart and share.images:
                part = min(1.0, images / share.images)
                load += part * share.load
                raw += part * share.raw
        return self._forecast(load, raw)

    def check(self, more: Load) -> None:
        """Raises `OverloadedError` where the limits leave no room for so much more.

        It says to come back when all that is in work will have been answered.
        """
        now = self._total
        if now.views + more.views > self._max_views:
            lack = f"{now.views} views are in work and {more.views} more"
        elif now.size + more.size > self._max_bytes:
            lack = f"{now.size:,} bytes are in work and {more.size:,} more"
        else:
            return
        raise OverloadedError(
            f"{lack} do not fit: send the request again after the seconds in Retry-After",
            _whole_seconds(self._forecast(now.load, now.raw)),
        )

    def check_deadline(self, hold: "Reservation", share: Load) -> None:
        """Refuse what will not be answered in time by all that is known.

        With nothing else in work a request is always let in: the prediction may be wrong, and
        only work corrects it. Raises `OverloadedError`, which says when the time will be enough,
        where others' work is in the way, and `DeadlineError` where it would not be enough for
        this request alone.
        """
        images = max(1, share.images)
        wait, own = self.wait(images, hold), self._forecast(share.load, share.raw)
        left = hold.deadline.left
        if wait == 0 or MARGIN * wait + own <= left:
            return
        if own > left:
            raise DeadlineError(
                f"{share.images} images take about {own:.2g} seconds, and {left:.2g} of the "
                f"{hold.deadline.seconds:g} allowed are left: send fewer images or allow more time",
                "admission",
            )
        raise OverloadedError(
            f"the answer may take {MARGIN * wait + own:.2g} seconds, and {left:.2g} of the "
            f"{hold.deadline.seconds:g} allowed are left: send the request again after the seconds "
            "in Retry-After",
            _whole_seconds(wait - (left - own) / MARGIN),
        )

    def change(self, more: Load) -> None:
        self._total = total(self._total, more)


class Reservation:
    """One request's share of what is in work."""

    def __init__(self, admission: Admission, deadline: Deadline) -> None:
        self._admission = admission
        self.deadline = deadline
        self.share = Load()

    def resize(self, share: Load) -> None:
        """Hold `share` instead of what is held; raises `OverloadedError` and `DeadlineError`."""
        self._check(share)
        self.change(share.minus(self.share))

    def expect(self, size: int) -> None:
        """Refuse a body of `size` bytes that would not fit; hold nothing, as it may never come.

        Raises `OverloadedError` and `DeadlineError`.
        """
        self._check(Load(size=size))

    def grow(self, size: int) -> None:
        """Hold `size` bytes more; raises `OverloadedError`."""
        more = Load(size=size)
        self._admission.check(more)
        self.change(more)

    def give(self, less: Load) -> None:
        """Give back a part."""
        self.change(Load().minus(less))

    def _check(self, share: Load) -> None:
        self._admission.check(share.minus(self.share))
        self._admission.check_deadline(self, share)

    def change(self, more: Load) -> None:
        self._admission.change(more)
        self.share = total(self.share, more)


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))
