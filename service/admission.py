"""How much may be in work at once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import OverloadedError


class Admission:
    """Counts what was accepted and is not answered: views, and bytes of bodies and views."""

    def __init__(self, max_views: int, max_bytes: int) -> None:
        self._max_views = max_views
        self._max_bytes = max_bytes
        self._views = 0
        self._bytes = 0

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """One request's share, empty at first and given back at the end of the block."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.change(-hold.views, -hold.size)

    def check(self, views: int, size: int, seconds_per_view: float) -> None:
        """Raises `OverloadedError` where the limits leave no room for so many more.

        It says to come back when all that is in work will have been answered.
        """
        if self._views + views > self._max_views:
            lack = f"{self._views} views are in work and {views} more"
        elif self._bytes + size > self._max_bytes:
            lack = f"{self._bytes:,} bytes are in work and {size:,} more"
        else:
            return
        raise OverloadedError(
            f"{lack} do not fit: send the request again after the seconds in Retry-After",
            retry_after=max(1, math.ceil(self._views * seconds_per_view)),
        )

    def change(self, views: int, size: int) -> None:
        self._views += views
        self._bytes += size


class Hold:
    """What one request has in work."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.views = 0
        self.size = 0

    def resize(self, views: int, size: int, seconds_per_view: float) -> None:
        """Hold `views` and `size` bytes instead of what is held; raises `OverloadedError`."""
        more_views, more_size = views - self.views, size - self.size
        self._admission.check(more_views, more_size, seconds_per_view)
        self._admission.change(more_views, more_size)
        self.views, self.size = views, size
