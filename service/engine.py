"""The model in service: opened, warmed, ready or not, and fed."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Final

import numpy as np

from models import UserError
from models.bundle.classifier import Classifier
from models.bundle.ensemble import Ensemble, Floats, combine
from models.bundle.folder import read_manifest
from models.bundle.images import VIEWS, ImageError, Pixels, load, views
from models.bundle.posterior import Doubles, Prior
from service.admission import Admission, Hold
from service.errors import NotReadyError, PerImageError, image_problem
from service.metrics import Metrics, by_class
from service.scheduler import CLOSING, Scheduler
from service.settings import Settings
from service.upload import Upload

logger = logging.getLogger(__name__)

CHANNELS: Final = 3
STARTING: Final = "the bundle is being checked and warmed"

# After drain_seconds, by when the server has dropped what was not answered: to end the threads.
CLOSE_SECONDS: Final = 1


@dataclass(frozen=True)
class Opened:
    classifier: Classifier
    scheduler: Scheduler


class Engine:
    """A bundle's way from `start` over ready to `drain` and `close`, and its answers between."""

    def __init__(self, settings: Settings) -> None:
        """Raises `UserError` where the bundle has no valid manifest or the limits do not fit it.

        Everything else that can be wrong is found by `start`.
        """
        self.settings = settings
        self.manifest = read_manifest(settings.bundle)
        _check_limits(settings, self._view_bytes)
        self.metrics = Metrics(
            self.manifest,
            settings.provider,
            by_class(settings.class_metrics, len(self.manifest.classes)),
        )
        self.metrics.ready.set_function(lambda: self.obstacle is None)
        self.failure: Exception | None = None
        self.hung = False
        self._draining_since: float | None = None
        self._opened: Opened | None = None
        self._admission = Admission(settings.queue_views, settings.queue_bytes)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")

    @property
    def _view_bytes(self) -> int:
        return CHANNELS * self.manifest.preprocessing.size**2

    async def start(self) -> None:
        """Check the bundle, warm it and become ready; what goes wrong is kept in `failure`."""
        try:
            self._opened = await self._open()
        except Exception as error:
            self.failure = error
            if not isinstance(error, UserError):
                logger.exception("the service cannot start")

    async def _open(self) -> Opened:
        settings = self.settings
        # Not in the event loop's own threads, for which it would wait without a limit at its end.
        classifier = await asyncio.get_running_loop().run_in_executor(
            self._decoders,
            lambda: Classifier.open(settings.bundle, settings.device),
        )
        session = classifier.session
        scheduler = Scheduler(
            lambda pixels: session.run(pixels).logits, settings.batch_views, self.metrics
        )
        await scheduler.start([self._blank(count) for count in (1, VIEWS, settings.batch_views)])
        return Opened(classifier, scheduler)

    def _blank(self, count: int) -> Pixels:
        size = self.manifest.preprocessing.size
        return np.zeros((count, size, size, CHANNELS), np.uint8)

    def drain(self) -> None:
        """Be not ready from now on; what was accepted is still answered."""
        if self._draining_since is None:
            self._draining_since = monotonic()

    async def close(self, starting: Awaitable[None]) -> None:
        """Wait for `starting`, answer what is queued and end the threads.

        What has not ended `drain_seconds` after `drain` is given up: then `hung` is True, and a
        thread is left that never ends.
        """
        self.drain()
        try:
            async with asyncio.timeout(self._seconds_to_close()):
                await starting
                if self._opened is not None:
                    await self._opened.scheduler.close()
        except TimeoutError:
            self.hung = True
            logger.error(
                "the device does not end its batch: gave up after the %d seconds of drain_seconds",
                self.settings.drain_seconds,
            )
        else:
            self._decoders.shutdown(cancel_futures=True)

    def _seconds_to_close(self) -> float:
        assert self._draining_since is not None
        end = self._draining_since + self.settings.drain_seconds + CLOSE_SECONDS
        return max(CLOSE_SECONDS, end - monotonic())

    @property
    def obstacle(self) -> str | None:
        """Why the service is not ready; None where it is."""
        if self._draining_since is not None:
            return CLOSING
        if self._opened is None:
            return STARTING
        if self._opened.scheduler.broken:
            return "the device fails even on a blank image: see the log, and restart the service"
        if self._opened.scheduler.stalled(self.settings.stall_seconds):
            return f"no batch has been finished for {self.settings.stall_seconds:g} seconds"
        return None

    def require_ready(self) -> None:
        """Raises `NotReadyError`."""
        if (obstacle := self.obstacle) is not None:
            raise NotReadyError(obstacle)

    @property
    def opened(self) -> Opened:
        """Raises `NotReadyError` while starting."""
        if self._opened is None:
            raise NotReadyError(STARTING)
        return self._opened

    def probabilities(self, logits: Floats, ensemble: Ensemble, prior: Prior) -> Doubles:
        """[C] of one image's combined logits [C]."""
        row: Doubles = self.opened.classifier.probabilities(logits[None], ensemble, prior)[0]
        return row

    @contextmanager
    def hold_body(self, size: int) -> Iterator[Hold]:
        """Hold the `size` bytes of a body that is about to be read; raises `OverloadedError`."""
        with self._admission.hold() as hold:
            hold.resize(0, size, self.opened.scheduler.seconds_per_view)
            yield hold

    async def logits(
        self, uploads: Sequence[Upload], ensemble: Ensemble, hold: Hold
    ) -> list[Floats | PerImageError]:
        """For each image its combined logits, float32 [C], or why there are none.

        `hold` is made to hold the images and their views instead of the body. Raises
        `OverloadedError`, before anything is decoded.
        """
        count = len(uploads) * ensemble.views
        size = sum(len(upload.data) for upload in uploads) + count * self._view_bytes
        hold.resize(count, size, self.opened.scheduler.seconds_per_view)
        return await asyncio.gather(
            *(self._image_logits(upload.data, ensemble) for upload in uploads)
        )

    async def _image_logits(self, data: bytes, ensemble: Ensemble) -> Floats | PerImageError:
        try:
            rows = await self.opened.scheduler.logits(await self._decode(data, ensemble.views))
        except PerImageError as problem:
            self.metrics.rejected(problem.reason)
            return problem
        self.metrics.views_used.observe(len(rows))
        combined: Floats = combine(rows, len(rows))[0]
        return combined

    async def _decode(self, data: bytes, count: int) -> Pixels:
        preprocessing, max_pixels = self.manifest.preprocessing, self.settings.max_pixels

        def decoded() -> Pixels:
            return views(load(data, preprocessing, max_pixels), preprocessing.size, count)

        with self.metrics.stage("decode"):
            try:
                return await asyncio.get_running_loop().run_in_executor(self._decoders, decoded)
            except ImageError as error:
                raise image_problem(error) from error


def _check_limits(settings: Settings, view_bytes: int) -> None:
    """What the limits allow one by one must be possible together."""
    count = settings.max_images * VIEWS
    size = settings.max_body_bytes + count * view_bytes
    if settings.batch_views < VIEWS:
        raise UserError(
            f"batch_views is {settings.batch_views}, and an image has {VIEWS} views: set it to "
            f"{VIEWS} or more"
        )
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
