"""Batches for the device: whatever waits, whenever it is free."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import numpy as np

from models.bundle.ensemble import Floats
from models.bundle.images import Pixels
from service.errors import InferenceError, OverloadedError
from service.metrics import Metrics

logger = logging.getLogger(__name__)

# Weight of the newest batch in the running mean of seconds per view.
NEWEST: Final = 0.2


@dataclass(frozen=True)
class Limits:
    """Views of a batch; views and bytes of everything that was admitted and is not answered."""

    batch_views: int
    queue_views: int
    queue_bytes: int


@dataclass(eq=False)
class Work:
    """One image's views, uint8 [V, S, S, 3], and the promise of their logits, float32 [V, C]."""

    views: Pixels
    answer: asyncio.Future[Floats]
    since: float = field(default_factory=perf_counter)


class Scheduler:
    """Runs `infer` (views [N, S, S, 3] to logits [N, C]) in a thread of its own.

    Work-conserving and without a timer: while the device is busy views gather, and when it is
    free it takes all of them, up to a batch. A lone image waits for nobody.
    """

    def __init__(self, infer: Callable[[Pixels], Floats], limits: Limits, metrics: Metrics) -> None:
        self._infer = infer
        self._limits = limits
        self._metrics = metrics
        self._device = ThreadPoolExecutor(1, "device")
        self._queue: deque[Work] = deque()
        self._arrival = asyncio.Event()
        self._closing = False
        self._loop: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._seconds_per_view = 0.0
        self._admitted_views = 0
        self._admitted_bytes = 0

    async def start(self, warm: Sequence[Pixels]) -> None:
        """Run each of `warm`, the last one to be measured, too; then take work."""
        for views in warm:
            _, self._seconds_per_view = await self._timed(views)
        self._loop = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish what is queued, then stop."""
        self._closing = True
        self._arrival.set()
        if self._loop is not None:
            await self._loop
        self._device.shutdown()

    def stalled(self, seconds: float) -> bool:
        """Whether nothing moves: a batch has run for `seconds`, or nobody takes any."""
        if self._loop is None or self._loop.done():
            return True
        return self._busy_since is not None and perf_counter() - self._busy_since > seconds

    @contextmanager
    def admission(self, views: int, size: int) -> Iterator[None]:
        """Count `views` and `size` bytes as in work during the block.

        Raises `OverloadedError` where they are more than the limits leave.
        """
        limits = self._limits
        if (
            self._admitted_views + views > limits.queue_views
            or self._admitted_bytes + size > limits.queue_bytes
        ):
            raise OverloadedError(
                f"{self._admitted_views} views are in work and {views} more do not fit: "
                "send them again after the seconds in Retry-After",
                self._seconds_to_finish(),
            )
        self._admitted_views += views
        self._admitted_bytes += size
        try:
            yield
        finally:
            self._admitted_views -= views
            self._admitted_bytes -= size

    def _seconds_to_finish(self) -> int:
        return max(1, math.ceil(self._admitted_views * self._seconds_per_view))

    async def logits(self, views: Pixels) -> Floats:
        """float32 [V, C] of one image's views, uint8 [V, S, S, 3], V no more than a batch.

        Raises `InferenceError` where the model fails on them. Cancelling drops the work.
        """
        work = Work(views, asyncio.get_running_loop().create_future())
        self._queue.append(work)
        self._metrics.queue_views.inc(len(views))
        self._arrival.set()
        return await work.answer

    async def _work(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
            batch = self._take()
            try:
                await self._answer(batch)
            except Exception:
                logger.exception("a batch of %d images was lost", len(batch))
                _fail(batch)

    def _take(self) -> list[Work]:
        """All that waits and is still wanted, up to a batch."""
        batch: list[Work] = []
        room = self._limits.batch_views
        while self._queue and len(self._queue[0].views) <= room:
            work = self._queue.popleft()
            self._metrics.queue_views.dec(len(work.views))
            if not work.answer.done():
                batch.append(work)
                room -= len(work.views)
                self._metrics.took("queue", perf_counter() - work.since)
        return batch

    async def _answer(self, batch: Sequence[Work]) -> None:
        """A batch that fails is run again image by image, so that only the culprit fails."""
        if not batch:
            return
        try:
            logits = await self._run(np.concatenate([work.views for work in batch]))
        except Exception:
            if len(batch) > 1:
                for work in batch:
                    await self._answer([work])
                return
            logger.exception("the model failed on an image")
            _fail(batch)
            return
        ends = np.cumsum([len(work.views) for work in batch])
        for work, rows in zip(batch, np.split(logits, ends[:-1]), strict=True):
            if not work.answer.done():
                work.answer.set_result(rows)

    async def _run(self, views: Pixels) -> Floats:
        logits, seconds_per_view = await self._timed(views)
        self._seconds_per_view += NEWEST * (seconds_per_view - self._seconds_per_view)
        self._metrics.took("infer", seconds_per_view * len(views))
        self._metrics.batch_views.observe(len(views))
        return logits

    async def _timed(self, views: Pixels) -> tuple[Floats, float]:
        """Logits and the seconds per view that they took."""
        start = self._busy_since = perf_counter()
        try:
            loop = asyncio.get_running_loop()
            logits = await loop.run_in_executor(self._device, self._infer, views)
        finally:
            self._busy_since = None
        return logits, (perf_counter() - start) / len(views)


def _fail(batch: Sequence[Work]) -> None:
    for work in batch:
        if not work.answer.done():
            work.answer.set_exception(
                InferenceError("the model failed on this image; the others are not affected")
            )
