"""Batches for the device: whatever waits, as soon as the device is free."""

import asyncio
import logging
from collections.abc import Hashable, Sequence
from time import perf_counter
from typing import Final

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import ImageOutputs, Stages, all_views
from taillift.models.bundle.session import Outputs
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.jobs import ImageJob, ViewSlice, WaitingJobs, settle
from taillift.service.inference.runner import Runner
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import CLOSING, InferenceError, NotReadyError

logger = logging.getLogger(__name__)

BROKEN: Final = "the device fails even on a blank image: the model is loaded again"
FAILED: Final = "the model failed on this image; the others are not affected"

# Seconds before the next try to load the model, doubled after each.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0

# How often an image is run alone if the device breaks: the first time may be a coincidence.
TRIES: Final = 2


class Scheduler:
    """Feeds `runner` with batches of at most `batch_views` views.

    It is work-conserving and has no timer: views gather while the device is busy. When it is free,
    it takes all of them, up to a batch, in the order of `WaitingJobs`. So a lone image never waits
    for others. An image's views may be split over batches.
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
        """Finish what is queued, then stop; if cancelled, leave the device to itself."""
        self._closing.set()
        self._arrival.set()
        if self._loop is not None:
            await self._loop
        self._runner.close()

    def stalled(self, seconds: float) -> bool:
        """Return whether work is due and none was finished for `seconds`, or the loop has died."""
        if self._loop is None or self._loop.done():
            return True
        return self._due_since is not None and perf_counter() - self._due_since > seconds

    async def answer(
        self, views: Pixels, deadline: Deadline, owner: Hashable, rule: Stages | None = None
    ) -> ImageOutputs:
        """Return the outputs of one image's views, uint8 [V, S, S, 3].

        `rule` says how many of them are needed; without one all are. Raises `InferenceError` if the
        model fails on them, `DeadlineError`, and `NotReadyError` after `close` or while the model
        cannot be loaded. Cancelling drops the work.
        """
        if self._closing.is_set():
            raise NotReadyError(CLOSING)
        if self._refusing:
            raise NotReadyError(BROKEN)
        answer: asyncio.Future[ImageOutputs] = asyncio.get_running_loop().create_future()
        job = ImageJob(views, answer, deadline, owner, rule or all_views(len(views)))
        self._waiting.add(job)
        self._metrics.queue_views.inc(job.pending)
        if self._due_since is None:
            self._due_since = perf_counter()
        self._arrival.set()
        try:
            async with asyncio.timeout(deadline.left):
                return await answer
        except TimeoutError:
            raise deadline.missed("infer" if job.taken > job.done else "queue") from None
        finally:
            if self._waiting.discard(job):
                self._metrics.queue_views.dec(job.pending)
            end = perf_counter()
            self._metrics.record_span("queue", job.since, job.begun or end)
            if job.begun is not None:
                self._metrics.record_span("infer", job.begun, end)

    async def _work(self) -> None:
        while self._waiting or not self._closing.is_set():
            if not self._waiting:
                self._due_since = None
                self._arrival.clear()
                await self._arrival.wait()
            batch: list[ViewSlice] = []
            try:
                self._fill(batch)
                if batch:
                    await self._run_or_rerun(batch)
            except Exception:
                logger.exception("a batch of %d images was lost", len(batch))
                for part in batch:
                    self._drop(part.job, InferenceError(FAILED))
                # The error may come again at once, and other tasks must have their turn.
                await asyncio.sleep(0)
            self._due_since = perf_counter()

    def _fill(self, batch: list[ViewSlice]) -> None:
        """Add to `batch` what is first and still wanted, as much as fits and is in time.

        The first image is dropped only if its deadline has passed, so that a wrong prediction
        cannot stop everything. No image joins a batch that it would make too late for another.
        """
        room, now, earliest = self._batch_views, perf_counter(), float("inf")
        while self._waiting and room:
            job = self._waiting.first()
            count = min(job.pending, room)
            end = now + self._runner.latency.seconds(self._batch_views - room + count)
            if batch and end > earliest and job.deadline.at > now:
                break
            self._waiting.pop()
            self._metrics.queue_views.dec(job.pending)
            if not job.wanted:
                continue
            if job.deadline.at <= (end if batch else now):
                job.fail(job.deadline.missed("queue"))
                continue
            if job.taken == 0:
                job.begun = perf_counter()
                self._metrics.record_stage("queue", job.begun - job.since)
            self._metrics.count_pass(job.stage, count)
            batch.append(job.take(count))
            if job.pending:
                self._waiting.put_back(job)
                self._metrics.queue_views.inc(job.pending)
            room -= count
            earliest = min(earliest, job.deadline.at)

    async def _run_or_rerun(self, batch: Sequence[ViewSlice]) -> None:
        """Run a batch; if it fails, run it again image by image, so that only the culprit fails.

        A device that has failed is made to work first. An image is to blame if the device breaks on
        it alone, again and again.
        """
        try:
            outputs = await self._run(batch)
        except Exception as error:
            sound = await self._revive(batch)
            if sound and len(batch) == 1:
                logger.error(
                    "the model failed on an image",
                    exc_info=error,
                    extra={"request_id": batch[0].job.request_id},
                )
                self._drop(batch[0].job, InferenceError(FAILED))
                return
            for part in batch:
                await self._run_alone(part, batch)
        else:
            self._deliver(batch, outputs)

    async def _run(self, batch: Sequence[ViewSlice]) -> Outputs:
        try:
            outputs, seconds = await self._runner.run([part.views for part in batch])
        finally:
            self._due_since = perf_counter()
        self._metrics.record_stage("infer", seconds)
        self._metrics.batch_views.observe(len(outputs.logits))
        return outputs

    def _deliver(self, batch: Sequence[ViewSlice], outputs: Outputs) -> None:
        start = 0
        for part in batch:
            rows = slice(start, start + len(part))
            part.job.rows.append(Outputs(outputs.logits[rows], outputs.features[rows]))
            start += len(part)
        reached = [part.job for part in batch if part.job.done == part.job.goal]
        settle([job for job in reached if job.wanted])
        for job in reached:
            if job.wanted:
                self._waiting.add_begun(job)
                self._metrics.queue_views.inc(job.pending)

    async def _run_alone(self, part: ViewSlice, batch: Sequence[ViewSlice]) -> None:
        for _ in range(TRIES):
            if not part.job.wanted:
                return
            try:
                outputs = await self._run([part])
            except Exception:
                logger.exception(
                    "the model failed on an image", extra={"request_id": part.job.request_id}
                )
                if await self._revive(batch):
                    break
            else:
                self._deliver([part], outputs)
                return
        self._drop(part.job, InferenceError(FAILED))

    async def _revive(self, batch: Sequence[ViewSlice]) -> bool:
        """Return whether the device works; if not, load the model again until it does.

        The tries end when the service closes. What waits, and `batch`, is answered afterwards; if
        the first try fails, it is refused.
        """
        if await self._runner.sound():
            return True
        self.broken = True
        pause = FIRST_PAUSE
        while not await self._opened():
            self._refusing = True
            reason = CLOSING if self._closing.is_set() else BROKEN
            for job in [*self._waiting, *(part.job for part in batch)]:
                self._drop(job, NotReadyError(reason))
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
                return False
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE)
        self.broken = self._refusing = False
        return False

    async def _opened(self) -> bool:
        """Load the model again; return whether it could be."""
        try:
            await self._runner.open()
        except Exception:
            logger.exception("the model cannot be loaded again")
            self._metrics.count_rebuild("failed")
            return False
        self._metrics.count_rebuild("ready")
        return True

    def _drop(self, job: ImageJob, error: Exception) -> None:
        if self._waiting.discard(job):
            self._metrics.queue_views.dec(job.pending)
        job.fail(error)
