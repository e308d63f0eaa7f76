"""The model in service: opened, warmed, ready or not, and fed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, time
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.service.inference.decoder import Decoder
from taillift.service.inference.graph_choice import open_classifier
from taillift.service.inference.pipeline import Pipeline
from taillift.service.inference.priors import read_priors
from taillift.service.inference.runner import Infer, Runner
from taillift.service.inference.scheduler import BROKEN, CLOSING, Scheduler
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.exporter import TailSeries, class_series
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.problems import NotReadyError
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

CHANNELS: Final = 3
# Of a batch size, to be warm: the first one chooses kernels and takes memory.
GPU_RUNS: Final = 2

STARTING: Final = "the bundle is being checked and warmed"

# After drain_seconds, by when the server has dropped what was not answered: to end the threads.
CLOSE_SECONDS: Final = 1


@dataclass(frozen=True)
class Opened:
    scheduler: Scheduler
    pipeline: Pipeline


class Engine:
    """A bundle's way from `start` over ready to `drain` and `close`, and its answers between."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time) -> None:
        """`clock` gives the seconds since 1970 that the tail is monitored by.

        Raises `UserError` where the bundle has no valid manifest, the limits do not fit it, or
        its tail cannot be monitored as the settings say.

        Everything else that can be wrong is found by `start`.
        """
        self.settings = settings
        self.manifest = read_manifest(settings.bundle)
        _check_limits(settings, self._view_bytes)
        self.metrics = Metrics(self.manifest, settings.provider)
        self.priors = read_priors(settings.priors, self.manifest)
        self.monitoring = Monitoring(self.manifest, settings, self.metrics, clock)
        which = class_series(settings.class_metrics, len(self.manifest.classes))
        self.metrics.registry.register(TailSeries(self.monitoring, which))
        self.metrics.ready.set_function(lambda: self.obstacle is None)
        self.failure: Exception | None = None
        self.hung = False
        self._draining_since: float | None = None
        self._opened: Opened | None = None
        self._session: Session | None = None
        self._reader: Predictor | None = None
        self.precision_reason = ""
        self._decoder = Decoder(
            settings.decode_threads,
            settings.decode_pixels,
            self.manifest.preprocessing,
            self.metrics,
        )

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
        runner = self._runner()
        # Also this, in the runner's thread: the event loop waits for its own ones without a limit.
        await runner.open()
        scheduler = Scheduler(runner, settings.batch_views, self.metrics)
        scheduler.start()
        pipeline = Pipeline(
            settings,
            self._view_bytes,
            self._decoder,
            scheduler,
            runner.pace,
            self.metrics,
            self.predictor.variant.exit,
        )
        return Opened(scheduler, pipeline)

    def _load(self) -> Infer:
        if self._session is not None:
            # Its memory may be what the next one lacks.
            self._session.close()
            self._session = None
        classifier = self._open_classifier()
        if classifier.manifest.version != self.manifest.version:
            raise UserError(
                f"{self.settings.bundle} has been exchanged for another bundle, version "
                f"{classifier.manifest.version} instead of {self.manifest.version}: restart the "
                "service"
            )
        self._reader = predictor = classifier.predictor
        self._session = session = classifier.session
        return lambda pixels: predictor.without_prior(session.run(pixels).logits)

    def _open_classifier(self) -> Classifier:
        """After a fault the graph that was served, whatever is fastest then."""
        settings = self.settings
        if self._reader is not None:
            return Classifier.open(settings.bundle, settings.device, self._reader.precision)
        classifier, self.precision_reason = open_classifier(settings)
        return classifier

    def _runner(self) -> Runner:
        """Warms every size that a GPU runs; of the CPU's, which are all, three to tell the pace."""
        batches, largest = self.settings.device.batches, self.settings.batch_views
        if batches is not None:
            return Runner(self._load, [self._blank(size) for size in batches.sizes], GPU_RUNS)
        sizes = {1, min(VIEWS, largest), largest}
        return Runner(self._load, [self._blank(size) for size in sizes])

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
                await self._decoder.close()
        except TimeoutError:
            self.hung = True
            logger.error(
                "a batch or a decoding does not end: gave up after the %d seconds of drain_seconds",
                self.settings.drain_seconds,
            )

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
            return BROKEN
        seconds = self.settings.stall_seconds
        if self._opened.scheduler.stalled(seconds):
            return f"no batch has been finished for {seconds:g} seconds"
        if self._decoder.stalled(seconds):
            return f"no image has been decoded for {seconds:g} seconds"
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

    @property
    def predictor(self) -> Predictor:
        """Raises `NotReadyError` while starting."""
        if self._reader is None:
            raise NotReadyError(STARTING)
        return self._reader

    @property
    def usual_ensemble(self) -> Ensemble:
        """Where a request names none."""
        return self.predictor.usual_ensemble


def _check_limits(settings: Settings, view_bytes: int) -> None:
    """What the limits allow one by one must be possible together."""
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
