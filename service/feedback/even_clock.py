"""The machine's clock without its jumps: nothing must be taken for old, and deleted, by one."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from taillift.models.bundle.atomic import atomic_file
from taillift.models.errors import UserError
from taillift.service.feedback.prediction_id import DAY_SECONDS

logger = logging.getLogger(__name__)

# How far the machine's clock may go from the time that passes before it has jumped, in seconds.
JUMP: Final = 3_600.0
# The time that passes, also while the machine sleeps, if the system tells it.
STEADY_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class EvenTime(BaseModel):
    """The even time and the machine's at the last look, both in seconds since 1970.

    A jump of the machine's clock is doubted since the even time `doubted_since`.
    """

    even: float
    wall: float
    doubted_since: float | None = None


def steady_seconds() -> float:
    """Return seconds that pass evenly, from an unknown beginning."""
    return time.clock_gettime(STEADY_CLOCK)


class EvenClock:
    """The machine's clock without its jumps, in a file.

    Between two looks of a process, at most the time passes that steady seconds tell, however far
    ahead the clock is set; set back, it stands still until the next look. Between two processes
    the clock alone knows how long it was. If that is more than a day, it may be wrong, as that of
    a machine that has just been started, and is believed once it has gone on for a day. Several
    processes may use one file.
    """

    def __init__(
        self,
        path: Path | None,
        kept: str,
        clock: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        """`kept` names what ages by this clock; without a `path` the time is kept in memory."""
        self.path = path
        self._kept = kept
        self._clock = clock
        self._steady = steady
        self._looked: float | None = None
        self._memory: EvenTime | None = None

    def look(self) -> float:
        """Return the even time now, and keep it; without the file, it is the machine's."""
        wall, steady = self._clock(), self._steady()
        last = self._last() or EvenTime(even=wall, wall=wall)
        passed, doubted_since = wall - last.wall, last.doubted_since
        if self._looked is not None:
            told = steady - self._looked
            if passed > told + JUMP:
                logger.warning(
                    "the clock is %.1f hours ahead of the time that has passed: %s do not age by "
                    "that",
                    (passed - told) / 3600,
                    self._kept,
                )
                passed = told
        elif passed > DAY_SECONDS:
            logger.warning(
                "by the clock, nobody has looked at %s for %.1f days: set the clock if it is "
                "wrong; if it goes on for a day, they age by as much",
                self._kept,
                passed / DAY_SECONDS,
            )
            passed, doubted_since = 0.0, last.even
        if passed < -JUMP:
            doubted_since = None  # It has been set right.
        even = last.even + max(0.0, passed)
        if doubted_since is not None and even - doubted_since >= DAY_SECONDS:
            even, doubted_since = max(even, wall), None
        self._memory = EvenTime(even=even, wall=wall, doubted_since=doubted_since)
        # On a full disk a look is not kept, and the next one tells the time since the last kept.
        with suppress(UserError):
            if self.path is not None:
                with atomic_file(self.path) as path:
                    path.write_text(self._memory.model_dump_json(), "utf-8")
            self._looked = steady
        return even

    def _last(self) -> EvenTime | None:
        if self.path is None:
            return self._memory
        with suppress(OSError, ValidationError):
            return EvenTime.model_validate_json(self.path.read_bytes())
        return None
