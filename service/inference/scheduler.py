"""Batches for the device: whatever waits, whenever it is free."""

import asyncio
import logging
from collections.abc import Hashable, Sequence
from time import perf_counter
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.ensemble import ExitRule
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.jobs import ImageJob, ImageOutputs, ViewSlice, WaitingJobs, settle
from taillift.service.inference.runner import Runner
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import InferenceError, NotReadyError

logger = logging.getLogger(__name__)

CLOSING: Final = "the service is shutting down"
BROKEN: Final = "the device fails even on a blank image: the model is loaded again"

# Seconds before the model is loaded again after it could not be, doubled each time.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0

# Of an image alone, where the device breaks: the first time may be a coincidence.
TRIES: Final = 2


class Scheduler:
    """Feeds `runner` batches of at most `batch_views` views.

    Work-conserving and without a timer: while the device is busy views gather, and when it is
    free it takes all of them, up to a batch, in the order of `WaitingJobs`. A lone image waits for
    nobody. An image's views may be split over batches.
    """

    def __init__(self, runner: Runner, batch_views: int, metrics: Metrics) -> None:
        self._runner = runner
        self._batch_views = batch_views
        self._metrics = metrics
        self._waiting = WaitingJobs()
        self._arrival = asyncio.Event()
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._due_since: float | None = None
        self._refusing = False
        self.broken = False

    def start(self) -> None:
        """Take work from now on; the runner is open."""
        self._loop = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish what is queued, then stop; cancelled, it leaves the device to itself."""
        self._closing.set()
        self._arrival.set()
        if self._loop is not None:
            await self._loop
        self._runner.close()

    def stalled(self, seconds: float) -> bool:
        """Whether work is due and none has been finished for `seconds`, or nobody takes any."""
        if self._loop is None or self._loop.done():
            return True
        return self._due_since is not None and perf_counter() - self._due_since > seconds

    async def answer(
        self, views: Pixels, deadline: Deadline, owner: Hashable, rule: ExitRule | None = None
    ) -> ImageOutputs:
        """The mean logits of one image's views, uint8 [V, S, S, 3], or of as many as `rule` wants.

        Raises `InferenceError` where the model fails on them, `DeadlineError` and, after `close`
        and while the model cannot be loaded, `NotReadyError`. Cancelling drops the work.
        """
        if self._closing.is_set():
            raise NotReadyError(CLOSING)
        if self._refusing:
            raise NotReadyError(BROKEN)
        promise: asyncio.Future[ImageOutputs] = asyncio.get_running_loop().create_future()
        work = ImageJob(views, promise, deadline, owner, rule)
        self._waiting.add(work)
        self._metrics.queue_views.inc(work.due)
        if self._due_since is None:
            self._due_since = perf_counter()
        self._arrival.set()
        try:
            async with asyncio.timeout(deadline.left):
                return await promise
        except TimeoutError:
            raise deadline.missed("infer" if work.taken > work.seen else "queue") from None
        finally:
            if self._waiting.discard(work):
                self._metrics.queue_views.dec(work.due)

    async def _work(self) -> None:
        while self._waiting or not self._closing.is_set():
            if not self._waiting:
                self._due_since = None
                self._arrival.clear()
                await self._arrival.wait()
            batch: list[ViewSlice] = []
            try:
                self._take(batch)
                await self._answer(batch)
            except Exception:
                logger.exception("a batch of %d images was lost", len(batch))
                for piece in batch:
                    self._drop(piece.work, _failed())
                # Whatever it was, it may come again at once, and the others must have their turn.
                await asyncio.sleep(0)
            self._due_since = perf_counter()

    def _take(self, batch: list[ViewSlice]) -> None:
        """Add to `batch` what is first and still wanted, as much as fits and is in time.

        The first image is judged by the clock alone, so that a wrong prediction cannot stop
        everything; it also keeps others out that would make it late.
        """
        room, now, earliest = self._batch_views, perf_counter(), float("inf")
        while self._waiting and room:
            work = self._waiting.first()
            count = min(work.due, room)
            end = now + self._runner.pace.seconds(self._batch_views - room + count)
            if batch and end > earliest and work.deadline.at > now:
                break
            self._waiting.pop()
            self._metrics.queue_views.dec(work.due)
            if not work.wanted:
                continue
            if work.deadline.at <= (end if batch else now):
                work.fail(work.deadline.missed("queue"))
                continue
            batch.append(self._begin(work, count))
            room -= count
            earliest = min(earliest, work.deadline.at)

    def _begin(self, work: ImageJob, count: int) -> ViewSlice:
        if work.taken == 0:
            self._metrics.took("queue", perf_counter() - work.since)
        self._metrics.passed(work.passes, count)
        piece = work.take(count)
        if work.due:
            self._waiting.put_back(work)
            self._metrics.queue_views.inc(work.due)
        return piece

    async def _answer(self, batch: Sequence[ViewSlice]) -> None:
        if not batch:
            return
        try:
            rows = await self._run(batch)
        except Exception as error:
            await self._rerun(batch, error)
        else:
            self._deliver(batch, rows)

    async def _run(self, batch: Sequence[ViewSlice]) -> Floats:
        try:
            logits, seconds = await self._runner.run([piece.views for piece in batch])
        finally:
            self._due_since = perf_counter()
        self._metrics.took("infer", seconds)
        self._metrics.batch_views.observe(len(logits))
        return logits

    def _deliver(self, batch: Sequence[ViewSlice], rows: Floats) -> None:
        ends = np.cumsum([len(piece) for piece in batch])
        for piece, part in zip(batch, np.split(rows, ends[:-1]), strict=True):
            piece.work.rows.append(part)
        reached = [piece.work for piece in batch if piece.work.seen == piece.work.goal]
        settle([work for work in reached if work.wanted])
        for work in reached:
            if work.wanted:
                self._waiting.add_begun(work)
                self._metrics.queue_views.inc(work.due)

    async def _rerun(self, batch: Sequence[ViewSlice], error: Exception) -> None:
        """Run a failed batch again image by image, so that only the culprit fails.

        A device that failed is made to work first. An image on which alone it breaks again and
        again is to blame.
        """
        sound = await self._revive(batch)
        if sound and len(batch) == 1:
            logger.error("the model failed on an image", exc_info=error)
            self._drop(batch[0].work, _failed())
            return
        for piece in batch:
            await self._run_alone(piece, batch)

    async def _run_alone(self, piece: ViewSlice, batch: Sequence[ViewSlice]) -> None:
        for _ in range(TRIES):
            if not piece.work.wanted:
                return
            try:
                rows = await self._run([piece])
            except Exception:
                logger.exception("the model failed on an image")
                if await self._revive(batch):
                    break
            else:
                self._deliver([piece], rows)
                return
        self._drop(piece.work, _failed())

    async def _revive(self, batch: Sequence[ViewSlice]) -> bool:
        """Whether the device works; where not, it does afterwards, or the service closes."""
        if await self._runner.sound():
            return True
        await self._reload(batch)
        return False

    def _drop(self, work: ImageJob, error: Exception) -> None:
        if self._waiting.discard(work):
            self._metrics.queue_views.dec(work.due)
        work.fail(error)

    async def _reload(self, batch: Sequence[ViewSlice]) -> None:
        """Load the model again, with pauses, until it runs or the service closes.

        What waits, and `batch`, is answered afterwards; where the first try fails, it is refused.
        """
        self.broken = True
        pause = FIRST_PAUSE
        while not await self._opened():
            self._refusing = True
            self._refuse(batch)
            if await self._closed_within(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
        self.broken = self._refusing = False

    async def _opened(self) -> bool:
        try:
            await self._runner.open()
        except Exception:
            logger.exception("the model cannot be loaded again")
            self._metrics.rebuilt("failed")
            return False
        self._metrics.rebuilt("ready")
        return True

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._closing.wait()
        except TimeoutError:
            return False

    def _refuse(self, batch: Sequence[ViewSlice]) -> None:
        why = CLOSING if self._closing.is_set() else BROKEN
        for work in [*self._waiting, *(piece.work for piece in batch)]:
            self._drop(work, NotReadyError(why))


def _failed() -> InferenceError:
    return InferenceError("the model failed on this image; the others are not affected")
