"""An image's way from its bytes to its logits: admitted, decoded, scheduled."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.images import VIEWS, ImageError
from taillift.service.http.uploads import Upload
from taillift.service.inference.admission import Admission, Load, Reservation, total
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.decoder import Decoder
from taillift.service.inference.jobs import ImageOutputs
from taillift.service.inference.latency import LatencyModel, MovingAverage
from taillift.service.inference.scheduler import Scheduler
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import MalformedError, PerImageError, image_problem
from taillift.service.settings import Settings

# Of one request's images, so many for each thread are with the decoder at once: the next is there
# when one ends, and a small request waits for few images of a large one.
AHEAD: Final = 2


@dataclass(frozen=True)
class Plan:
    """The most views that an image may take, by which rule fewer, and how many by experience."""

    views: int
    rule: ExitRule | None
    load: float


class Pipeline:
    """`view_bytes` are the bytes of one view, `pace` is the device's and `rule` the bundle's."""

    def __init__(
        self,
        settings: Settings,
        view_bytes: int,
        decoder: Decoder,
        scheduler: Scheduler,
        pace: LatencyModel,
        metrics: Metrics,
        rule: ExitRule | None,
    ) -> None:
        self._settings = settings
        self._view_bytes = view_bytes
        self._decoder = decoder
        self._scheduler = scheduler
        self._pace = pace
        self._metrics = metrics
        self._rule = rule
        self._adaptive_views = MovingAverage(rule.mean_views if rule is not None else VIEWS)
        self._admission = Admission(settings.queue_views, settings.queue_bytes, self._seconds)
        metrics.predicted_wait.set_function(
            lambda: self._admission.wait(1) + self._seconds(VIEWS, 0)
        )

    def _seconds(self, views: float, raw: float) -> float:
        """Of so many views on the device and, beside it, so many bytes in the decoder."""
        return max(
            self._pace.seconds(views, self._settings.batch_views),
            self._decoder.pace.seconds(raw) / self._decoder.threads,
        )

    @contextmanager
    def hold(self, size: int, deadline: Deadline) -> Iterator[Reservation]:
        """For a request whose body, of `size` bytes, is about to be read and held as it comes.

        Raises `OverloadedError` and `DeadlineError`.
        """
        with self._admission.hold(deadline) as hold:
            hold.expect(size)
            yield hold

    async def answers(
        self, uploads: Sequence[Upload], ensemble: Ensemble, hold: Reservation
    ) -> list[ImageOutputs | PerImageError]:
        """For each image its answer, or why there is none.

        `hold` is made to hold the images and their views instead of the body. Raises
        `MalformedError` and, before anything is decoded or later, `OverloadedError` and
        `DeadlineError`.
        """
        plan = self._plan(ensemble)
        shares = [self._share(upload, plan) for upload in uploads]
        body = Load(size=sum(len(upload.data) for upload in uploads))
        hold.resize(total(body, *shares))
        turns = asyncio.Semaphore(AHEAD * self._decoder.threads)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._answer(upload, ensemble, plan, hold, share, turns))
                    for upload, share in zip(uploads, shares, strict=True)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _plan(self, ensemble: Ensemble) -> Plan:
        if ensemble is not Ensemble.ADAPTIVE:
            return Plan(ensemble.views, None, ensemble.views)
        if self._rule is None:
            raise MalformedError(
                "this bundle has no rule for ensemble=adaptive: ask for full or off, or calibrate "
                "the bundle"
            )
        return Plan(self._rule.stages[-1], self._rule, self._adaptive_views.value)

    def _share(self, upload: Upload, plan: Plan) -> Load:
        return Load(1, plan.views, plan.views * self._view_bytes, plan.load, len(upload.data))

    async def _answer(
        self,
        upload: Upload,
        ensemble: Ensemble,
        plan: Plan,
        hold: Reservation,
        share: Load,
        turns: asyncio.Semaphore,
    ) -> ImageOutputs | PerImageError:
        """Gives back `share` as soon as its parts are no longer needed."""
        since = perf_counter()
        try:
            async with hold.deadline.limit("decode"), turns:
                views = await self._decoded(upload.data, plan.views, since)
            hold.give(Load(raw=share.raw))
            share = share._replace(raw=0)
            answer = await self._scheduler.answer(views, hold.deadline, hold, plan.rule)
        except PerImageError as problem:
            self._metrics.rejected(problem.reason)
            return problem
        finally:
            hold.give(share)
        self._metrics.used(answer.views, ensemble)
        if plan.rule is not None:
            self._adaptive_views.update(answer.views)
        return answer

    async def _decoded(self, data: bytes, count: int, since: float) -> Pixels:
        try:
            return await self._decoder.views(data, count, self._settings.max_pixels, since)
        except ImageError as error:
            raise image_problem(error) from error
