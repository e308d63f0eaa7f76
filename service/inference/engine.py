"""The process that serves: it starts, is ready or not, changes its version, drains and closes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from math import ceil
from pathlib import Path
from time import monotonic, time
from typing import Final

from taillift.models.bundle.device import Provider
from taillift.models.bundle.folder import VERSIONS, read_manifest
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.version_store import VersionStore
from taillift.models.errors import UserError, first_lines
from taillift.service.feedback.label_book import LabelDesk, ShadowDifference
from taillift.service.inference.admission import Admission
from taillift.service.inference.challenge import Challenge
from taillift.service.inference.decoder import Decoder
from taillift.service.inference.graph_choice import VARIANTS, graph_of
from taillift.service.inference.memory import check_budget, estimate_bytes, trim
from taillift.service.inference.resident_bundle import CHANNELS, STARTING, ResidentBundle
from taillift.service.inference.runner import DeviceTurns
from taillift.service.inference.scheduler import BROKEN
from taillift.service.inference.served_version import ServedVersion, Workshop
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.exporter import (
    ClassSeries,
    LabelSeries,
    TailSeries,
    class_series,
)
from taillift.service.monitoring.recorder import Monitoring, TailRecords
from taillift.service.problems import (
    CLOSING,
    InternalError,
    NoSuchVersionError,
    NotReadyError,
    OverloadedError,
)
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

# So many requests in a row that fail with 500 make the service not ready. Then it checks itself.
FAILURES: Final = 10
SELF_CHECK_SECONDS: Final = 5.0

# Time between two looks whether there is no work and memory can be given back.
IDLE_SECONDS: Final = 2.0

# Time to end the threads after drain_seconds, when the server has dropped what was not answered.
CLOSE_SECONDS: Final = 1


class Engine:
    """Settings, metrics, decoder and device of one process, and the versions that it serves."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time) -> None:
        """`clock` gives the seconds since 1970 by which the tail is monitored.

        Raises `UserError` if the bundle has no valid manifest, if the limits do not fit it, or if
        its tail cannot be monitored as the settings say. Everything else that can be wrong is found
        by `start`.
        """
        self.settings = settings
        self.store = None if settings.store is None else VersionStore(settings.store)
        self.failure: Exception | None = None
        self.hung = False
        # Why versions of the store could not be loaded.
        self.refusals: dict[int, str] = {}
        self.challenger: ServedVersion | None = None
        self.challenge: Challenge | None = None
        # Says whether a photo on which the challenger differs is to be labelled; set from outside.
        self.choose_for_labelling: Callable[[str, float], bool] = lambda _id, _probability: False
        self.loading: set[int | None] = set()
        # Why no version is in memory for a while, and when that is expected to end.
        self.gap: str | None = None
        self._gap_end = 0.0
        self._ending = False
        self._draining_since: float | None = None
        self._failures = 0
        self._self_check: asyncio.Task[None] | None = None
        self._trim: asyncio.Task[None] | None = None
        # Versions that answer the requests they have, and no new ones.
        self.draining: dict[ServedVersion, asyncio.Task[None]] = {}
        # Bytes of memory that a graph took, by the size of its file.
        self._taken: dict[int, int] = {}
        self._untried = sources(settings, self.store)
        self.metrics = Metrics(self._first_manifest(), settings.provider)
        self.labels = LabelDesk(settings, clock)
        self.evidence = TailRecords(settings, self.metrics, clock)
        admission = Admission(
            settings.queue_views, settings.queue_bytes, settings.queue_pixels, self._seconds
        )
        decoder = Decoder(settings.decode_threads, settings.decode_pixels, self.metrics)
        turns = DeviceTurns(lambda: not admission.images)
        self.workshop = Workshop(settings, self.metrics, decoder, admission, turns)
        try:
            self.champion = self._next_version()
        except BaseException:
            self.evidence.close()
            self.labels.close()
            raise
        monitoring = self.champion.bundle.monitoring
        self._tail_series = TailSeries(monitoring, self._series_of(monitoring))
        self._show(self.champion)
        self.metrics.registry.register(self._tail_series)
        self.metrics.registry.register(LabelSeries(lambda: self.labels.latest))
        self.metrics.ready.set_function(lambda: self.obstacle is None)
        self.metrics.predicted_wait.set_function(lambda: self.predicted_wait)

    async def start(self) -> None:
        """Check the bundle, warm it and become ready; what goes wrong is kept in `failure`.

        If the champion of a store cannot be served, the previous one is.
        """
        while True:
            self.loading = {self.champion.number}
            try:
                await self.champion.open()
                break
            except Exception as error:
                if not isinstance(error, UserError):
                    logger.exception("the service cannot start")
                if not self._untried:
                    self.failure = error
                    return
                self._refuse(self.champion.number, error)
            finally:
                self.loading = set()
            try:
                self.champion = self._next_version()
            except UserError as error:
                self.failure = error
                return
            self._show(self.champion)
        self._note_memory(self.champion)
        self._trim = asyncio.create_task(give_memory_back(self.workshop))

    def _first_manifest(self) -> Manifest:
        """Return the first valid manifest of the versions to try, and leave out those before it."""
        while True:
            number, folder = self._untried[0]
            try:
                return read_manifest(folder)
            except UserError as error:
                if len(self._untried) == 1:
                    raise
                self._refuse(number, error)
                del self._untried[0]

    def _next_version(self) -> ServedVersion:
        """Return the first version to try that the settings fit; it is not loaded yet."""
        while True:
            number, folder = self._untried.pop(0)
            try:
                return self._version(number, folder)
            except UserError as error:
                if not self._untried:
                    raise
                self._refuse(number, error)

    def _version(self, number: int | None, folder: Path, alongside: bool = False) -> ServedVersion:
        manifest = read_manifest(folder)
        check_limits(self.settings, CHANNELS * manifest.preprocessing.size**2)
        monitoring = self.evidence.monitoring(folder, manifest)
        bundle = ResidentBundle(folder, manifest, self.settings, monitoring, alongside)
        version = ServedVersion(number, bundle, self.workshop)
        self.labels.know(version.code, manifest)
        return version

    def note_difference(self, difference: ShadowDifference) -> None:
        """Keep an answer on which the challenger differs until its label comes back."""
        chosen = self.choose_for_labelling(difference.id, difference.probability)
        self.labels.note_difference(difference, chosen)

    def _refuse(self, number: int | None, error: Exception) -> None:
        assert number is not None
        self.refusals[number] = str(error)
        logger.error("version %d cannot be served: %s", number, error)

    def check_budget(self, manifest: Manifest, number: int, instead: bool = False) -> None:
        """Raise `OverBudgetError` if a bundle does not fit next to those that are loaded.

        If it is to be loaded `instead` of the champion, what that takes is free by then.
        """
        provider = Provider(self.settings.provider)
        graphs = {Precision.FP32} | VARIANTS.get(provider, frozenset())
        if self.settings.precision != "auto":
            graphs = {graph_of(Precision(self.settings.precision), provider)}
        freed = self._bytes_of(self.champion) if instead else None
        check_budget(estimate_bytes(manifest, frozenset(graphs), self._taken), number, freed)

    async def load(self, number: int, folder: Path) -> ServedVersion:
        """Load a version next to the champion, which goes on meanwhile.

        Raises `UserError` if it cannot be served, and `OverBudgetError` if it does not fit.
        """
        with self._loading(number):
            version = await asyncio.to_thread(self._version, number, folder, alongside=True)
            self.check_budget(version.bundle.manifest, number)
            await version.open()
        self._note_memory(version)
        return version

    @contextmanager
    def _loading(self, number: int) -> Iterator[None]:
        """Note that a version is loaded in the block, and why if it cannot be."""
        self.loading.add(number)
        try:
            yield
        except UserError as error:
            self._refuse(number, error)
            raise
        except Exception as error:
            logger.exception("version %d cannot be loaded", number)
            self._refuse(number, error)
            raise UserError(f"version {number} cannot be loaded: {first_lines(error)}") from error
        finally:
            self.loading.discard(number)
        self.refusals.pop(number, None)

    @asynccontextmanager
    async def succession(self, number: int, folder: Path) -> AsyncIterator[None]:
        """Load a version, and make it the champion after the block.

        If it cannot be loaded, or if the block fails, the champion stays. With `swap=replace` the
        champion is closed before, and loaded again if anything fails; the service is not ready
        meanwhile. Raises what `load` raises.
        """
        old = self.champion
        known = [version for version in self.residents if version.number == number]
        if known:
            version = known[0]
        elif self.settings.swap == "replace":
            version = await self._load_instead(number, folder)
        else:
            version = await self.load(number, folder)
        try:
            yield
        except BaseException as error:
            if not known:
                self.retire(version)
            if self.gap is not None and isinstance(error, Exception):
                await self.draining[version]
                await self._reopen(old)
            raise
        self.gap = None
        self.crown(version)

    async def _load_instead(self, number: int, folder: Path) -> ServedVersion:
        """Close the champion and load a version; if it cannot be loaded, load the champion again.

        What can be found without memory is found while the champion still answers.
        """
        old = self.champion
        with self._loading(number):
            version = await asyncio.to_thread(self._version, number, folder)
            self.check_budget(version.bundle.manifest, number, instead=True)
            await version.check_files()
            self.gap = f"version {number} is loaded in place of version {old.number}"
            self._gap_end = monotonic() + (old.load_seconds or 0)
            self.retire(old)
            try:
                await asyncio.shield(self.draining[old])
                await version.open()
            except Exception:
                await self._reopen(old)
                raise
        self._note_memory(version)
        return version

    async def _reopen(self, old: ServedVersion) -> None:
        """Load the champion again after it was closed; if that fails, the service ends."""
        assert old.number is not None
        try:
            with self._loading(old.number):
                version = await asyncio.to_thread(self._version, old.number, old.bundle.folder)
                await version.open()
        except UserError as error:
            self.failure = error
            return
        self.champion, self.gap = version, None
        self._show(version)

    def crown(self, version: ServedVersion) -> None:
        """Give every new request to `version`; the champion so far answers those that it has."""
        old, self.champion = self.champion, version
        if version is old:
            return
        if version is self.challenger:
            self.challenger = None
        self._show(version)
        if old.is_open:
            self.retire(old)

    def retire(self, version: ServedVersion) -> None:
        """Let a version go as soon as no request holds it."""
        task = asyncio.create_task(version.retire())
        self.draining[version] = task
        task.add_done_callback(lambda _: self.draining.pop(version))

    def _show(self, version: ServedVersion) -> None:
        monitoring = version.bundle.monitoring
        self.metrics.name_model(monitoring.manifest)
        self.labels.show(version.code)
        self._tail_series.show(monitoring, self._series_of(monitoring))

    def _series_of(self, monitoring: Monitoring) -> ClassSeries:
        return class_series(self.settings.class_metrics, len(monitoring.manifest.classes))

    def _bytes_of(self, version: ServedVersion) -> int:
        """Return what closing a version gives back, at least the size of its graph's file."""
        return max(graph_bytes(version), version.resident_bytes or 0)

    def _note_memory(self, version: ServedVersion) -> None:
        size = graph_bytes(version)
        if version.resident_bytes is not None and version.resident_bytes > size:
            self._taken[size] = version.resident_bytes

    @property
    def residents(self) -> list[ServedVersion]:
        """The versions that new requests may be given to, the champion first."""
        return [self.champion, *([] if self.challenger is None else [self.challenger])]

    @property
    def in_service(self) -> list[ServedVersion]:
        """Those of them that can answer now; the champion is missing while it is replaced."""
        return [
            version
            for version in self.residents
            if version.is_open and version not in self.draining
        ]

    def resident(self, wanted: str) -> ServedVersion:
        """Return the version with a role or a number; raises `NoSuchVersionError`."""
        for version, role in zip(self.residents, ("champion", "challenger"), strict=False):
            if wanted in {role, version.shown_number}:
                return version
        raise NoSuchVersionError(
            f"no version {wanted[:80]!r} is loaded: ask for champion, for challenger if there is "
            "one, or for the number of either"
        )

    def read_priors_again(self) -> None:
        """Read the file of priors again for every version."""
        for version in self.residents:
            version.bundle.read_priors_again()

    def _seconds(self, views: float, raw: float) -> float:
        """Predict the seconds of `views` on the device and `raw` work in the decoder, together."""
        decoder = self.workshop.decoder
        return max(
            self.champion.runner.latency.seconds(views, self.settings.batch_views),
            decoder.latency.seconds(raw) / decoder.threads,
        )

    @property
    def predicted_wait(self) -> float:
        """The seconds until an image that arrives now would be answered."""
        return self.workshop.admission.wait(1) + self._seconds(VIEWS, 0)

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
                for version in self.residents:
                    await version.close()
                await asyncio.gather(*self.draining.values())
                await self.workshop.decoder.close()
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
            champion = self.champion
            if champion.scheduler is None or self._failures < FAILURES:
                continue
            try:
                with champion.lease():
                    await champion.pipeline.check(champion.known_image)
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
        scheduler, decoder = self.champion.scheduler, self.workshop.decoder
        if self._draining_since is not None:
            return CLOSING
        if self.gap is not None:
            return self.gap
        if scheduler is None:
            return STARTING
        if scheduler.broken:
            return BROKEN
        seconds = self.settings.stall_seconds
        if scheduler.stalled(seconds):
            return f"no batch has been finished for {seconds:g} seconds"
        if decoder.stalled(seconds):
            return f"no image has been decoded for {seconds:g} seconds"
        return None

    def require_ready(self) -> None:
        """Raise `NotReadyError` if no image is accepted.

        While the service is only expected to fail, or about to close, a request may still succeed.
        """
        if (reason := self._refusal) is not None:
            raise NotReadyError(reason, self.retry_after)

    @property
    def retry_after(self) -> int | None:
        """The seconds, in whole ones, until a gap is expected to end; None if there is none."""
        return None if self.gap is None else max(1, ceil(self._gap_end - monotonic()))

    @property
    def bundle(self) -> ResidentBundle:
        """The bundle of the champion."""
        return self.champion.bundle


def graph_bytes(version: ServedVersion) -> int:
    """Return the size of the file of the graph that a version runs."""
    manifest, precision = version.bundle.manifest, version.bundle.predictor.precision
    return manifest.files[FILES[precision]].size


def sources(settings: Settings, store: VersionStore | None) -> list[tuple[int | None, Path]]:
    """Return what may be served at the start, the best first, as numbers and folders.

    Raises `UserError` if a store has no champion, or if neither store nor bundle is set.
    """
    if store is None:
        return [(None, settings.folder)]
    roles = store.roles()
    if roles.champion is None:
        raise UserError(
            f"{store.folder} has no champion: choose one with `taillift models promote "
            f"{store.folder} N`"
        )
    numbers = [roles.champion, *([] if roles.previous is None else [roles.previous])]
    return [(number, store.folder / VERSIONS / str(number)) for number in numbers]


async def give_memory_back(workshop: Workshop) -> None:
    """Give what large requests have left free back to the system whenever there is no work.

    glibc keeps freed memory: after 8 connections with large images 400 MiB, by the table of
    `python -m benchmarks.hostile`. Other allocators have no such call.
    """
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        # Images of requests that were given up may still be in the decoder.
        if workshop.decoder.is_idle and workshop.admission.has_become_idle():
            await asyncio.to_thread(trim)


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
