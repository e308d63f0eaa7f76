"""An image's way from its bytes to its outputs: admitted, decoded, scheduled."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs, Stages
from taillift.models.bundle.images import VIEWS, ImageError, pixel_count
from taillift.service.inference.admission import Admission, Load, Reservation, total
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.decoder import Decoder, work
from taillift.service.inference.latency import MovingAverage
from taillift.service.inference.resident_bundle import ResidentBundle
from taillift.service.inference.scheduler import Scheduler
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import (
    ImageBytesError,
    InferenceError,
    MalformedError,
    PerImageError,
    RequestPixelsError,
    image_problem,
)
from taillift.service.settings import Settings

# Images of one request that are with the decoder at once, for each of its threads: the next one is
# there when one ends, and a small request waits for few images of a large one.
AHEAD: Final = 2


# Takes which image of a request was answered, from 0, its views uint8 [V, S, S, 3], its ensemble
# and its outputs.
Copier = Callable[[int, Pixels, Ensemble, ImageOutputs], None]


@dataclass(frozen=True)
class Plan:
    """An image's rule, the most views that it may take, and how many it takes on average."""

    rule: Stages
    views: int
    load: float


class Pipeline:
    """Answers requests' images with `bundle`; other bundles' pipelines share `admission`."""

    def __init__(
        self,
        settings: Settings,
        bundle: ResidentBundle,
        decoder: Decoder,
        scheduler: Scheduler,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._decoder = decoder
        self._scheduler = scheduler
        self._metrics = metrics
        rule = bundle.predictor.variant.exit
        self._adaptive_views = MovingAverage(rule.mean_views if rule is not None else VIEWS)
        self._admission = admission

    @contextmanager
    def reserve(self, size: int, deadline: Deadline) -> Iterator[Reservation]:
        """Reserve nothing yet, for a request whose body of `size` bytes is about to be read.

        Raises `OverloadedError` and `DeadlineError` if the body would not fit.
        """
        with self._admission.reserve(deadline) as reservation:
            reservation.precheck(size)
            yield reservation

    async def answers(
        self,
        images: Sequence[bytes],
        ensemble: Ensemble,
        reservation: Reservation,
        copier: Copier | None = None,
    ) -> list[ImageOutputs | PerImageError]:
        """Return each encoded image's outputs, or the reason why there are none.

        `copier` is given every image that was answered.

        `reservation` is changed from the body to the images, with the pixels that their headers
        say, and their views. Raises `MalformedError`, `RequestPixelsError` and, before anything is
        decoded or later, `OverloadedError` and `DeadlineError`.
        """
        plan = self._plan(ensemble)
        costs = [self._pixels(image) for image in images]
        pixels = sum(cost for cost in costs if isinstance(cost, int))
        if pixels > self._settings.max_request_pixels:
            raise RequestPixelsError(
                f"the {len(images)} images have {pixels:,} pixels together, more than the "
                f"{self._settings.max_request_pixels:,} allowed: send fewer at once"
            )
        loads = [self._load(plan, *one) for one in zip(images, costs, strict=True)]
        body = Load(size=sum(map(len, images)))
        reservation.resize(total(body, *loads))
        turns = asyncio.Semaphore(AHEAD * self._decoder.threads)
        tasks = [
            asyncio.create_task(
                self._answer(
                    image,
                    cost,
                    ensemble,
                    plan,
                    reservation,
                    load,
                    turns,
                    copier and partial(copier, number),
                )
            )
            for number, (image, cost, load) in enumerate(zip(images, costs, loads, strict=True))
        ]
        try:
            # No TaskGroup: up to Python 3.12, the images of one that fails stay in memory until
            # garbage is collected, because its error and a frame in the traceback have each other.
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def check(self, image: bytes) -> None:
        """Take an encoded image the way of a request's images; raise whatever goes wrong.

        An image that the limits refuse says nothing.
        """
        deadline = Deadline.after(self._settings.answer_seconds)
        with self.reserve(len(image), deadline) as reservation:
            (answer,) = await self.answers([image], Ensemble.OFF, reservation)
        if isinstance(answer, InferenceError):
            raise answer
        if not isinstance(answer, PerImageError):
            self._bundle.predictor.predict(answer, Ensemble.OFF)

    def _pixels(self, image: bytes) -> int | PerImageError:
        """Return the pixels that an image's header says, or why it is not worth decoding."""
        limit = self._settings.max_image_bytes
        if len(image) > limit:
            return ImageBytesError(
                f"the image has {len(image):,} bytes, more than the {limit:,} allowed: scale it "
                "down, or save it as a JPEG"
            )
        try:
            return pixel_count(image, self._settings.max_pixels)
        except ImageError as error:
            return image_problem(error)

    def _load(self, plan: Plan, image: bytes, pixels: int | PerImageError) -> Load:
        if isinstance(pixels, PerImageError):
            return Load()
        view_bytes = plan.views * self._bundle.view_bytes
        return Load(1, plan.views, view_bytes, plan.load, work(len(image), pixels), pixels)

    def _plan(self, ensemble: Ensemble) -> Plan:
        predictor = self._bundle.predictor
        if ensemble is Ensemble.ADAPTIVE and predictor.variant.exit is None:
            raise MalformedError(
                "this bundle has no rule for ensemble=adaptive: ask for full or off, or calibrate "
                "the bundle"
            )
        rule = predictor.stages(ensemble)
        views = rule.stages[-1]
        load = self._adaptive_views.value if ensemble is Ensemble.ADAPTIVE else views
        return Plan(rule, views, load)

    async def _answer(
        self,
        image: bytes,
        pixels: int | PerImageError,
        ensemble: Ensemble,
        plan: Plan,
        reservation: Reservation,
        load: Load,
        turns: asyncio.Semaphore,
        copy: Callable[[Pixels, Ensemble, ImageOutputs], None] | None,
    ) -> ImageOutputs | PerImageError:
        """Answer one image, and release the parts of `load` as soon as they are not needed."""
        since, limit = perf_counter(), self._settings.max_pixels
        try:
            if isinstance(pixels, PerImageError):
                raise pixels
            async with reservation.deadline.limit("decode"), turns:
                begun = perf_counter()
                try:
                    views = await self._decoder.views(
                        image,
                        pixels,
                        plan.views,
                        limit,
                        self._bundle.manifest.preprocessing,
                        reservation,
                        since,
                    )
                except ImageError as error:
                    raise image_problem(error) from error
                finally:
                    self._metrics.record_span("decode", begun, perf_counter())
            reservation.release(Load(raw=load.raw, pixels=load.pixels))
            load = load._replace(raw=0, pixels=0)
            outputs = await self._scheduler.answer(
                views, reservation.deadline, reservation, plan.rule
            )
        except PerImageError as problem:
            self._metrics.count_rejection(problem.reason)
            return problem
        finally:
            reservation.release(load)
        self._metrics.count_views(outputs.views, ensemble)
        if ensemble is Ensemble.ADAPTIVE:
            self._adaptive_views.update(outputs.views)
        if copy is not None:
            copy(views, ensemble, outputs)
        return outputs
