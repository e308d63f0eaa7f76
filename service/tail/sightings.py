"""The things that were seen of late, so that each of them counts once."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

# Digests that are kept; a new one takes the place of the oldest. About 10 MiB.
LIMIT: Final = 2**16


def image_digest(data: bytes) -> int:
    """Return 64 bits that stand for an image file with exactly these bytes; never 0."""
    return int.from_bytes(blake2b(data, digest_size=8, person=b"image").digest()) or 1


def group_digest(name: str) -> int:
    """Return 64 bits that stand for the thing with this name; never 0."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=b"group").digest()) or 1


class Sightings:
    """The digests that were seen last, and when."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long a sighting is remembered."""
        self._seconds = seconds
        # A ring: the place that is taken next is that of the digest that came first. 0: free.
        self.digests = np.zeros(LIMIT, np.uint64)
        self.times = np.zeros(LIMIT)
        self.next = 0
        self._places: dict[int, int] = {}

    def add(self, digests: Iterable[int], now: float) -> bool:
        """Remember all `digests` at `now`, and return whether any of them was known.

        A sighting that seems to come after `now`, because the clock went back, is known as well.
        """
        known = False
        for digest in digests:
            place = self._places.get(digest)
            if place is None:
                place = self._take_place(digest)
            else:
                known |= bool(abs(now - self.times[place]) < self._seconds)
            self.times[place] = now
        return known

    def _take_place(self, digest: int) -> int:
        place, self.next = self.next, (self.next + 1) % LIMIT
        self._places.pop(int(self.digests[place]), None)
        self.digests[place] = digest
        self._places[digest] = place
        return place

    def restore(
        self, digests: npt.NDArray[np.uint64], times: npt.NDArray[np.float64], following: int
    ) -> None:
        """Continue from saved `digests` and `times` [LIMIT], and the place that is taken next."""
        self.digests, self.times, self.next = digests.copy(), times.copy(), following
        self._places = {int(digests[place]): int(place) for place in np.flatnonzero(digests)}
