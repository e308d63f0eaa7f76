"""The process that serves a bundle: it starts, is ready or not, drains and closes."""

import asyncio
import ctypes
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic, time
from typing import Final

import numpy as np

from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import VIEWS
from taillift.models.errors import UserError
from taillift.service.inference.decoder import Decoder
from taillift.service.inference.pipeline import Pipeline
from taillift.service.inference.resident_bundle import CHANNELS, STARTING, ResidentBundle
from taillift.service.inference.runner import Runner
from taillift.service.inference.scheduler import BROKEN, Scheduler
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.exporter import TailSeries, class_series
from taillift.service.problems import CLOSING, InternalError, NotReadyError, OverloadedError
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

# Runs of a batch size before it is warm: the first one chooses kernels and takes memory.
GPU_RUNS: Final = 2

# So many requests in a row that fail with 500 make the service not ready. Then it checks itself.
FAILURES: Final = 10
SELF_CHECK_SECONDS: Final = 5.0

# Time between two looks whether there is no work and memory can be given back.
IDLE_SECONDS: Final = 2.0

# Time to end the threads after drain_seconds, when the server has dropped what was not answered.
CLOSE_SECONDS: Final = 1


@dataclass(frozen=True)
class Opened:
    """The parts that exist once the bundle is open."""

    scheduler: Scheduler
    pipeline: Pipeline


class Engine:
    """Settings, metrics, decoder and device of one process, and the bundle that it serves."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time) -> None:
        """`clock` gives the seconds since 1970 by which the tail is monitored.

        Raises `UserError` if the bundle has no valid manifest, if the limits do not fit it, or if
        its tail cannot be monitored as the settings say. Everything else that can be wrong is found
        by `start`.
        """
        self.settings = settings
        manifest = read_manifest(settings.bundle)
        check_limits(settings, CHANNELS * manifest.preprocessing.size**2)
        self.metrics = Metrics(manifest, settings.provider)
        self.bundle = ResidentBundle(settings.bundle, manifest, settings, self.metrics, clock)
        which = class_series(settings.class_metrics, len(manifest.classes))
        self.metrics.registry.register(TailSeries(self.bundle.monitoring, which))
        self.metrics.ready.set_function(lambda: self.obstacle is None)
        self.failure: Exception | None = None
        self.hung = False
        self._ending = False
        self._draining_since: float | None = None
        self._failures = 0
        self._self_check: asyncio.Task[None] | None = None
        self._trim: asyncio.Task[None] | None = None
        self._opened: Opened | None = None
        self._known_image = b""
        self._decoder = Decoder(
            settings.decode_threads, settings.decode_pixels, manifest.preprocessing, self.metrics
        )

    async def start(self) -> None:
        """Check the bundle, warm it and become ready; what goes wrong is kept in `failure`."""
        try:
            self._opened = await self._open()
            self._trim = asyncio.create_task(give_memory_back(self._opened.pipeline))
        except Exception as error:
            self.failure = error
            if not isinstance(error, UserError):
                logger.exception("the service cannot start")

    async def _open(self) -> Opened:
        settings, bundle = self.settings, self.bundle
        batches, largest = settings.device.batches, settings.batch_views
        # A GPU runs few sizes, which are all warmed. A CPU runs any: three give the latency.
        sizes = {1, min(VIEWS, largest), largest} if batches is None else batches.sizes
        side = bundle.manifest.preprocessing.size
        blank = [np.zeros((size, side, side, CHANNELS), np.uint8) for size in sizes]
        runner = Runner(bundle, blank, 1 if batches is None else GPU_RUNS)
        # The runner's thread also checks the files. A thread of the event loop would not do: at its
        # end the loop waits for its threads without a limit.
        await runner.open()
        self._known_image = await asyncio.to_thread(bundle.known_image)
        scheduler = Scheduler(runner, settings.batch_views, self.metrics)
        scheduler.start()
        pipeline = Pipeline(
            settings, bundle, self._decoder, scheduler, runner.latency, self.metrics
        )
        return Opened(scheduler, pipeline)

    def announce_end(self) -> None:
        """Be not ready from now on, and still accept requests."""
        self._ending = True

    def drain(self) -> None:
        """Be not ready and accept nothing from now on; what was accepted is still answered."""
        self.announce_end()
        if self._draining_since is None:
            self._draining_since = monotonic()

    async def close(self, starting: Awaitable[None]) -> None:
        """Wait for `starting`, answer what is queued and end the threads.

        Whatever has not ended `drain_seconds` after `drain` is given up. Then `hung` is True, and a
        thread is left that never ends.
        """
        self.drain()
        for task in (self._self_check, self._trim):
            if task is not None:
                task.cancel()
        assert self._draining_since is not None
        end = self._draining_since + self.settings.drain_seconds + CLOSE_SECONDS
        try:
            async with asyncio.timeout(max(CLOSE_SECONDS, end - monotonic())):
                await starting
                if self._opened is not None:
                    await self._opened.scheduler.close()
                await self._decoder.close()
        except TimeoutError:
            self.hung = True
            logger.error(
                "a batch or a decoding does not end: gave up after the %d seconds of drain_seconds",
                self.settings.drain_seconds,
            )

    def count_answer(self, status: int) -> None:
        """Note the status of the answer to images: a row of failures makes the service not ready.

        It becomes ready again with the next success, or if it passes a check of itself.
        """
        if status < HTTPStatus.BAD_REQUEST:
            self._failures = 0
        elif status == InternalError.status:
            self._failures += 1
        if self._failures == FAILURES and (self._self_check is None or self._self_check.done()):
            logger.error("%d requests in a row have failed: the service checks itself", FAILURES)
            self._self_check = asyncio.create_task(self._check_itself())

    async def _check_itself(self) -> None:
        """Classify a known image every few seconds while requests fail; end the row if it works."""
        while self._failures >= FAILURES:
            await asyncio.sleep(SELF_CHECK_SECONDS)
            if self._opened is None or self._failures < FAILURES:
                continue
            try:
                await self._opened.pipeline.check(self._known_image)
            except OverloadedError:
                continue  # There are requests enough to tell.
            except Exception:
                logger.exception("the service fails on an image of its bundle, too")
            else:
                self._failures = 0
                logger.warning("the service works on an image of its bundle: it is ready again")

    @property
    def obstacle(self) -> str | None:
        """The reason why the service is not ready; None if it is."""
        if self._ending:
            return CLOSING
        if self._failures >= FAILURES:
            return f"{self._failures} requests in a row have failed: the service checks itself"
        return self._refusal

    @property
    def _refusal(self) -> str | None:
        """The reason why no image is accepted; None if images are."""
        if self._draining_since is not None:
            return CLOSING
        if self._opened is None:
            return STARTING
        if self._opened.scheduler.broken:
            return BROKEN
        seconds = self.settings.stall_seconds
        if self._opened.scheduler.stalled(seconds):
            return f"no batch has been finished for {seconds:g} seconds"
        if self._decoder.stalled(seconds):
            return f"no image has been decoded for {seconds:g} seconds"
        return None

    def require_ready(self) -> None:
        """Raise `NotReadyError` if no image is accepted.

        While the service is only expected to fail, or about to close, a request may still succeed.
        """
        if (reason := self._refusal) is not None:
            raise NotReadyError(reason)

    @property
    def pipeline(self) -> Pipeline:
        """The way of an image; raises `NotReadyError` while starting."""
        if self._opened is None:
            raise NotReadyError(STARTING)
        return self._opened.pipeline


async def give_memory_back(pipeline: Pipeline) -> None:
    """Give what large requests have left free back to the system whenever there is no work.

    glibc keeps freed memory: after 8 connections with large images 400 MiB, by the table of
    `python -m benchmarks.hostile`. Other allocators have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(IDLE_SECONDS)
        if pipeline.has_become_idle():
            await asyncio.to_thread(trim, 0)


def check_limits(settings: Settings, view_bytes: int) -> None:
    """Raise `UserError` if limits that are possible one by one are not possible together."""
    count = settings.max_images * VIEWS
    size = settings.max_body_bytes + count * view_bytes
    if settings.queue_views < count:
        raise UserError(
            f"queue_views is {settings.queue_views}, and a request of max_images="
            f"{settings.max_images} has {count} views: raise queue_views or lower max_images"
        )
    if settings.queue_bytes < size:
        raise UserError(
            f"queue_bytes is {settings.queue_bytes:,}, and the largest request allowed takes "
            f"{size:,}: raise queue_bytes, or lower max_images or max_body_bytes"
        )
    if not settings.max_pixels <= settings.max_request_pixels <= settings.queue_pixels:
        raise UserError(
            f"max_pixels={settings.max_pixels:,}, max_request_pixels="
            f"{settings.max_request_pixels:,} and queue_pixels={settings.queue_pixels:,} must not "
            "become smaller in this order: an image has to fit into a request, and that into the "
            "queue"
        )
