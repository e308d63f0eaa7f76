"""The time by which a request must be answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from taillift.service.problems import DeadlineError, Late

PLACES: Final[dict[Late, str]] = {
    "admission": "about to be accepted",
    "read": "being read",
    "decode": "being decoded",
    "queue": "waiting for the device",
    "infer": "on the device",
}


@dataclass(frozen=True)
class Deadline:
    """`seconds` after the request came; `at` is that moment on the clock of `perf_counter`."""

    seconds: float
    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(seconds, perf_counter() + seconds)

    def shortened(self, seconds: float) -> "Deadline":
        """Return the deadline of the same request if it has no more than `seconds` in all."""
        shorter = min(seconds, self.seconds)
        return Deadline(shorter, self.at - self.seconds + shorter)

    @property
    def left(self) -> float:
        """The seconds that are left; negative once the deadline has passed."""
        return self.at - perf_counter()

    def missed(self, stage: Late) -> DeadlineError:
        """Return the error of a request that was in `stage` when its time was over."""
        return DeadlineError(
            f"no answer within the {self.seconds:g} seconds allowed: it ended while the request "
            f"was {PLACES[stage]}",
            stage,
        )

    @asynccontextmanager
    async def limit(self, stage: Late) -> AsyncIterator[None]:
        """Cancel the block when the time is over, and raise `DeadlineError`."""
        try:
            async with asyncio.timeout(self.left):
                yield
        except TimeoutError:
            raise self.missed(stage) from None
