"""By when a request must be answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from taillift.service.problems import DeadlineError, Late


@dataclass(frozen=True)
class Deadline:
    """`seconds` after the request came, which is `at` on the clock of `perf_counter`."""

    seconds: float
    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(seconds, perf_counter() + seconds)

    @property
    def left(self) -> float:
        """Seconds; negative once it has passed."""
        return self.at - perf_counter()

    def missed(self, stage: Late) -> DeadlineError:
        return DeadlineError(
            f"no answer within the {self.seconds:g} seconds allowed: it ended while the request "
            f"was {PLACES[stage]}",
            stage,
        )

    @asynccontextmanager
    async def limit(self, stage: Late) -> AsyncIterator[None]:
        """Cancel the block when the time is over; raises `DeadlineError` then."""
        try:
            async with asyncio.timeout(self.left):
                yield
        except TimeoutError:
            raise self.missed(stage) from None


PLACES: dict[Late, str] = {
    "admission": "about to be accepted",
    "read": "being read",
    "decode": "being decoded",
    "queue": "waiting for the device",
    "infer": "on the device",
}
