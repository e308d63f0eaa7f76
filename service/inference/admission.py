"""How much work may be accepted at once, and how long it will take."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from taillift.service.inference.deadline import Deadline
from taillift.service.problems import DeadlineError, OverloadedError

# The time that other requests' work is predicted to take is multiplied by this: a request that is
# let in at the very edge comes late, and then its decoding was in vain.
MARGIN: Final = 1.6


class Load(NamedTuple):
    """The work of a request.

    `views` and `size` (bytes) are the most that it may take: they bound memory. `pixels` are those
    that are not decoded yet, by the images' headers, and bound the time. `expected_views`, by
    experience, and `raw`, the decoder's work that is not done yet, predict the wait.
    """

    images: int = 0
    views: int = 0
    size: int = 0
    expected_views: float = 0.0
    raw: int = 0
    pixels: int = 0

    def minus(self, other: "Load") -> "Load":
        return Load._make(mine - its for mine, its in zip(self, other, strict=True))


def total(*loads: Load) -> Load:
    return Load._make(map(sum, zip(*loads, strict=True)))


# Seconds of so many views on the device and, at the same time, so much work in the decoder.
Forecast = Callable[[float, float], float]


class Admission:
    """The requests that were accepted and are not answered yet."""

    def __init__(self, max_views: int, max_bytes: int, max_pixels: int, forecast: Forecast) -> None:
        self._max_views = max_views
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._forecast = forecast
        self._reservations: set[Reservation] = set()
        self._total = Load()
        self._worked = False

    @contextmanager
    def reserve(self, deadline: Deadline) -> Iterator["Reservation"]:
        """Yield one request's reservation, which is empty at first and released at the end."""
        reservation = Reservation(self, deadline)
        self._reservations.add(reservation)
        self._worked = True
        try:
            yield reservation
        finally:
            reservation.release(reservation.load)
            self._reservations.discard(reservation)

    def has_become_idle(self) -> bool:
        """Return whether there are no requests, and were some since the last time it was so."""
        idle = self._worked and not self._reservations
        if idle:
            self._worked = False
        return idle

    def wait(self, images: int, apart: "Reservation | None" = None) -> float:
        """Return the seconds until a request of so many images has its turn.

        The work of the reservation `apart` does not count. Requests take turns image by image
        (`WaitingJobs`), so only as many images of a larger request are ahead as the request has
        itself.
        """
        views = raw = 0.0
        for reservation in self._reservations:
            load = reservation.load
            if reservation is not apart and load.images:
                share = min(1.0, images / load.images)
                views += share * load.expected_views
                raw += share * load.raw
        return self._forecast(views, raw)

    def check(self, more: Load) -> None:
        """Raise `OverloadedError` if the limits leave no room for so much more.

        The client is told to come back when everything in work will have been answered.
        """
        now = self._total
        if now.views + more.views > self._max_views:
            lack = f"{now.views} views are in work and {more.views} more"
        elif now.size + more.size > self._max_bytes:
            lack = f"{now.size:,} bytes are in work and {more.size:,} more"
        elif now.pixels + more.pixels > self._max_pixels:
            lack = f"{now.pixels:,} pixels are in work and {more.pixels:,} more"
        else:
            return
        raise OverloadedError(
            f"{lack} do not fit: send the request again after the seconds in Retry-After",
            whole_seconds(self._forecast(now.expected_views, now.raw)),
        )

    def check_deadline(self, reservation: "Reservation", load: Load) -> None:
        """Refuse a request that is predicted to miss its deadline.

        With nothing else in work a request is always let in: the prediction may be wrong, and only
        work corrects it. Raises `DeadlineError` if the time is too short for this request alone,
        and otherwise `OverloadedError`, which says when it would be long enough.
        """
        images = max(1, load.images)
        wait = self.wait(images, reservation)
        own = self._forecast(load.expected_views, load.raw)
        deadline = reservation.deadline
        left = deadline.left
        if wait == 0 or MARGIN * wait + own <= left:
            return
        if own > left:
            raise DeadlineError(
                f"{load.images} images take about {own:.2g} seconds, and {left:.2g} of the "
                f"{deadline.seconds:g} allowed are left: send fewer images or allow more time",
                "admission",
            )
        raise OverloadedError(
            f"the answer may take {MARGIN * wait + own:.2g} seconds, and {left:.2g} of the "
            f"{deadline.seconds:g} allowed are left: send the request again after the seconds "
            "in Retry-After",
            whole_seconds(wait - (left - own) / MARGIN),
        )

    @property
    def images(self) -> int:
        """The images that were accepted and are not answered yet."""
        return self._total.images

    def add(self, more: Load) -> None:
        self._total = total(self._total, more)


class Reservation:
    """One request's part of the work that was accepted."""

    def __init__(self, admission: Admission, deadline: Deadline) -> None:
        self._admission = admission
        self.deadline = deadline
        self.load = Load()

    def precheck(self, size: int) -> None:
        """Refuse a body of `size` bytes that would not fit; reserve nothing, as it may never come.

        Raises `OverloadedError` and `DeadlineError`.
        """
        self._check(Load(size=size))

    def extend(self, size: int) -> None:
        """Reserve `size` bytes more; raises `OverloadedError`."""
        more = Load(size=size)
        self._admission.check(more)
        self._add(more)

    def resize(self, load: Load) -> None:
        """Reserve `load` instead of what is reserved; raises `OverloadedError`, `DeadlineError`."""
        self._check(load)
        self._add(load.minus(self.load))

    def release(self, less: Load) -> None:
        """Give back a part of the reservation."""
        self._add(Load().minus(less))

    def _check(self, load: Load) -> None:
        self._admission.check(load.minus(self.load))
        self._admission.check_deadline(self, load)

    def _add(self, more: Load) -> None:
        self._admission.add(more)
        self.load = total(self.load, more)


def whole_seconds(seconds: float) -> int:
    """Round up to whole seconds, at least one."""
    return max(1, math.ceil(seconds))
