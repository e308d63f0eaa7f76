"""Batches for the device: whatever waits, whenever it is free."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import numpy as np

from models.bundle.ensemble import Floats
from models.bundle.images import Pixels
from service.errors import InferenceError, NotReadyError
from service.metrics import Metrics

logger = logging.getLogger(__name__)

# Weight of the newest batch in the running mean of seconds per view.
NEWEST: Final = 0.2

CLOSING: Final = "the service is shutting down"


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

    def __init__(
        self, infer: Callable[[Pixels], Floats], batch_views: int, metrics: Metrics
    ) -> None:
        self._infer = infer
        self._batch_views = batch_views
        self._metrics = metrics
        self._device = ThreadPoolExecutor(1, "device")
        self._queue: deque[Work] = deque()
        self._arrival = asyncio.Event()
        self._closing = False
        self._loop: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._blank: Sequence[Pixels] = []
        self.broken = False
        self.seconds_per_view = 0.0

    async def start(self, warm: Sequence[Pixels]) -> None:
        """Run each of `warm`, the last one to be measured, too; then take work.

        The first of them tells later, when an image fails, whether the device does: `broken`.
        """
        self._blank = warm[:1]
        for views in warm:
            _, seconds = await self._timed([views])
            self.seconds_per_view = seconds / len(views)
        self._loop = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish what is queued, then stop; cancelled, it leaves the device to itself."""
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

    async def logits(self, views: Pixels) -> Floats:
        """float32 [V, C] of one image's views, uint8 [V, S, S, 3], V no more than a batch.

        Raises `InferenceError` where the model fails on them, `NotReadyError` after `close` and
        `ValueError` where they are more than a batch. Cancelling drops the work.
        """
        if len(views) > self._batch_views:
            raise ValueError(f"{len(views)} views are more than a batch of {self._batch_views}")
        if self._closing:
            raise NotReadyError(CLOSING)
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
        room = self._batch_views
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
            logits = await self._run([work.views for work in batch])
        except Exception:
            if len(batch) > 1:
                for work in batch:
                    await self._answer([work] if not work.answer.done() else [])
                return
            logger.exception("the model failed on an image")
            _fail(batch)
            await self._probe()
            return
        self.broken = False
        ends = np.cumsum([len(work.views) for work in batch])
        for work, rows in zip(batch, np.split(logits, ends[:-1]), strict=True):
            if not work.answer.done():
                work.answer.set_result(rows)

    async def _probe(self) -> None:
        """Find out whether an image failed or the device does, by what it was warmed with."""
        if self.broken:
            return
        try:
            for views in self._blank:
                await self._timed([views])
        except Exception:
            logger.exception("the device fails on a blank image, too")
            self.broken = True

    async def _run(self, parts: Sequence[Pixels]) -> Floats:
        count = sum(map(len, parts))
        logits, seconds = await self._timed(parts)
        self.seconds_per_view += NEWEST * (seconds / count - self.seconds_per_view)
        self._metrics.took("infer", seconds)
        self._metrics.batch_views.observe(count)
        return logits

    async def _timed(self, parts: Sequence[Pixels]) -> tuple[Floats, float]:
        """Logits of all parts, and the seconds that they took; raises whatever `infer` does."""
        start = self._busy_since = perf_counter()
        loop = asyncio.get_running_loop()
        try:
            logits = await loop.run_in_executor(
                self._device, lambda: self._infer(np.concatenate(parts))
            )
        finally:
            self._busy_since = None
        if len(logits) != sum(map(len, parts)) or not np.isfinite(logits).all():
            raise ValueError("the model did not give one row of finite logits for each view")
        return logits, perf_counter() - start


def _fail(batch: Sequence[Work]) -> None:
    for work in batch:
        if not work.answer.done():
            work.answer.set_exception(
                InferenceError("the model failed on this image; the others are not affected")
            )
