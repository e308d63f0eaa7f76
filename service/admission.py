"""How much may be in work at once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import OverloadedError


class Admission:
    """Counts what was accepted and is not answered: views, and bytes of images and views."""

    def __init__(self, max_views: int, max_bytes: int) -> None:
        self._max_views = max_views
        self._max_bytes = max_bytes
        self._views = 0
        self._bytes = 0

    @contextmanager
    def hold(self, views: int, size: int, seconds_per_view: float) -> Iterator[None]:
        """Count `views` and `size` bytes as in work during the block.

        Raises `OverloadedError` where the limits leave no room for them; it says to come back
        when all that is in work will have been answered.
        """
        if self._views + views > self._max_views or self._bytes + size > self._max_bytes:
            raise OverloadedError(
                f"{self._views} views are in work and {views} more do not fit: send them again "
                "after the seconds in Retry-After",
                retry_after=max(1, math.ceil(self._views * seconds_per_view)),
            )
        self._views += views
        self._bytes += size
        try:
            yield
        finally:
            self._views -= views
            self._bytes -= size
