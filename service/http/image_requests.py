"""A request's images on their way: received, admitted, answered, and counted.

The routes for images, of every protocol, share it.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, NamedTuple, TypeVar

from fastapi import Depends, Header, Request
from opentelemetry import trace

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.known_counts import KnownCounts
from taillift.models.bundle.posterior import Prior, among, leaning
from taillift.models.bundle.predictor import Prediction
from taillift.models.errors import UserError
from taillift.models.names import indices_of_names
from taillift.service.http.schemas import (
    Classification,
    ClassifiedImage,
    ClassifyQuery,
    FailedImage,
    InferenceQuery,
    add_assigned,
    classified,
    live_report,
    model_id,
)
from taillift.service.http.uploads import (
    Upload,
    body_bytes,
    read_uploads,
    reserving_body,
    while_connected,
)
from taillift.service.http.version_lease import Lease
from taillift.service.inference.admission import Reservation
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.engine import Engine
from taillift.service.inference.priors import LIVE, known_prior
from taillift.service.inference.resident_bundle import ResidentBundle
from taillift.service.problems import (
    ClassesError,
    MalformedError,
    NoImageError,
    NoSuchVersionError,
    PerImageError,
    TailError,
)
from taillift.service.review.reviewer import AnsweredPhoto, Reviewer
from taillift.service.settings import Settings
from taillift.service.tail.dependence import group_digest
from taillift.service.tail.prevalence import LiveShares

Item = TypeVar("Item")
Body = TypeVar("Body")
Answered = tuple[Upload, ImageOutputs | PerImageError]


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Service = Annotated[Engine, Depends(_engine)]


async def _leased(request: Request) -> Lease:
    """Return the lease on the version that this request is served by.

    Raises `NoSuchVersionError` if that version is not loaded.
    """
    lease: Lease | NoSuchVersionError = request.state.lease
    if isinstance(lease, NoSuchVersionError):
        raise lease
    return lease


Leased = Annotated[Lease, Depends(_leased)]


async def _chosen(
    request: Request,
    lease: Leased,
    key: Annotated[
        str | None,
        Header(
            alias="X-Canary-Key",
            description="by which a canary chooses the version: the same for the same key. "
            "Without it, the API key's name chooses, or else the first image",
        ),
    ] = None,
) -> Lease:
    """Return the lease on the version that answers images, as far as it is chosen by now."""
    name: str | None = key or getattr(request.state, "key", None)
    if lease.open and name is not None:
        lease.choose(name)
    return lease


Chosen = Annotated[Lease, Depends(_chosen)]


async def _writing(request: Request) -> asyncio.Lock:
    """Return the lock of answers on thousands of classes.

    They are written in a thread, because other requests wait. One is written at a time: several
    would not be ready sooner, and would take the memory of all.
    """
    writing: asyncio.Lock = request.app.state.writing
    return writing


Writing = Annotated[asyncio.Lock, Depends(_writing)]


async def _deadline(
    engine: Service,
    timeout: Annotated[
        float | None,
        Header(
            alias="X-Request-Timeout",
            gt=0,
            allow_inf_nan=False,
            description="seconds after which the answer is no longer wanted (408)",
        ),
    ] = None,
) -> Deadline:
    longest = engine.settings.answer_seconds
    return Deadline.after(longest if timeout is None else min(timeout, longest))


Until = Annotated[Deadline, Depends(_deadline)]

Thing = Annotated[
    str | None,
    Header(
        alias="X-Taillift-Group",
        description="name of the one thing that the images show; images with the same name "
        "count once for the statistics of the tail",
    ),
]
Counted = Annotated[
    Literal["yes", "no"],
    Header(
        alias="X-Taillift-Count",
        description="no: the images, as those of a probe, are answered and not counted",
    ),
]


@contextmanager
def refusing() -> Iterator[None]:
    """Answer what a query's classes or counts lack with a problem document."""
    try:
        yield
    except UserError as error:
        raise ClassesError(str(error)) from None


@dataclass(frozen=True)
class Wanted:
    """How a request wants its images answered: by which bundle, and as `Predictor.predict` says.

    `live` is what the live prior was at that moment, if the request asked for it.
    """

    bundle: ResidentBundle
    ensemble: Ensemble
    log_prior: Doubles | None
    coverage: float | None
    allowed: Sequence[int] = ()
    known: KnownCounts | None = None
    tail: float = 0.0
    live: LiveShares | None = None


def wanted_images(
    bundle: ResidentBundle, query: InferenceQuery, coverage: float | None = None
) -> Wanted:
    """Return how a query wants images answered; raises `MalformedError`."""
    ensemble = query.ensemble or bundle.usual_ensemble
    tail = bundle.usual_tail if query.tail is None else query.tail
    live = bundle.live_prior if query.prior == LIVE else None
    if live is None:
        prior = known_prior(query.prior, bundle.priors, bundle.prior_names, bundle.manifest)
    else:
        prior = live.log_prior
    try:
        prior = leaning(prior, tail, bundle.manifest.counts)
    except UserError as error:
        raise TailError(str(error)) from None
    usual = query.prior == Prior.UNIFORM and not tail
    return Wanted(bundle, ensemble, None if usual else prior, coverage, tail=tail, live=live)


def wanted_labels(bundle: ResidentBundle, query: ClassifyQuery) -> Wanted:
    """Return how a query for labels wants images answered.

    Raises `MalformedError`, and `ClassesError` if its classes or counts are not the model's.
    """
    wanted, labels = wanted_images(bundle, query, query.coverage), bundle.manifest.labels
    with refusing():
        allowed = indices_of_names(query.classes, labels, "classes")
        if query.classes:
            uniform = bundle.priors[Prior.UNIFORM]
            prior = among(uniform if wanted.log_prior is None else wanted.log_prior, allowed)
            wanted = replace(wanted, log_prior=prior, allowed=allowed)
        if query.counts is not None:
            wanted = replace(wanted, known=KnownCounts.from_json(query.counts, labels))
    if query.coverage is not None and bundle.predictor.variant.sets is None:
        raise MalformedError("this bundle has no calibration to make sets from: leave out coverage")
    return wanted


@asynccontextmanager
async def received(
    request: Request,
    engine: Engine,
    lease: Lease,
    deadline: Deadline,
    read: Callable[[Request, Reservation], Awaitable[Body]],
) -> AsyncIterator[tuple[Body, Reservation]]:
    """Yield the body that `read` makes of a request, and its reservation until the block ends.

    Raises a `ServiceError` if the body is refused, or if its version was replaced and no other
    answers yet.
    """
    size = body_bytes(request, engine.settings.max_body_bytes)
    announced = size if "content-length" in request.headers else 0
    with lease.version.pipeline.reserve(announced, deadline) as reservation:
        with engine.metrics.time_stage("read"), lease.while_reading():
            async with deadline.limit("read"):
                body = await read(reserving_body(request, reservation), reservation)
        yield body, reservation


def uploads_of(settings: Settings) -> Callable[[Request, Reservation], Awaitable[list[Upload]]]:
    """Return the function that reads a form or an image, for `received`."""

    async def read(request: Request, _: Reservation) -> list[Upload]:
        return await read_uploads(
            request, settings.max_body_bytes, settings.max_images, settings.body_seconds
        )

    return read


async def answers(
    request: Request,
    lease: Lease,
    want: Callable[[ResidentBundle], Wanted],
    uploads: Sequence[Upload],
    reservation: Reservation,
    copied: bool = False,
) -> tuple[Wanted, Sequence[Answered]]:
    """Return what `want` says, and each image with its outputs, or with why it cannot be used.

    If the images are to be `copied`, a challenger may see them. Raises a `ServiceError` if the
    request is refused.
    """
    if lease.open:
        lease.choose(str(await asyncio.to_thread(lambda: uploads[0].digest)))
    wanted = want(lease.version.bundle)
    images, copier = [upload.data for upload in uploads], lease.copier if copied else None
    span = trace.get_current_span()
    span.set_attribute("taillift.version", wanted.bundle.manifest.version)
    span.set_attribute("taillift.images", len(images))
    outputs = await while_connected(
        request, lease.version.pipeline.answers(images, wanted.ensemble, reservation, copier)
    )
    views = sum(answer.views for answer in outputs if not isinstance(answer, PerImageError))
    span.set_attribute("taillift.views", views)
    return wanted, list(zip(uploads, outputs, strict=True))


def refuse_if_all_failed(answered: Sequence[Answered]) -> None:
    """Raise the problem of the images if none of them can be used."""
    failed = [answer for _, answer in answered if isinstance(answer, PerImageError)]
    if len(failed) == len(answered):
        raise failed[0] if len(failed) == 1 else NoImageError(failed)


def results_of(
    engine: Engine,
    wanted: Wanted,
    answered: Sequence[Answered],
    result: Callable[[Upload, Prediction, ImageOutputs], Item],
) -> Iterator[Item | FailedImage]:
    """Yield `result` of each image's prediction, and the problem of an image that has none."""
    with engine.metrics.time_stage("post"):
        for upload, answer in answered:
            if isinstance(answer, PerImageError):
                yield FailedImage(filename=upload.filename, error=answer.document())
            else:
                prediction = wanted.bundle.predictor.predict(
                    answer, wanted.ensemble, wanted.log_prior, wanted.coverage
                )
                yield result(upload, prediction, answer)


class ClassifiedUploads(NamedTuple):
    """The answer on a request's images, and the prediction of each; None if it failed."""

    classification: Classification
    predictions: Sequence[Prediction | None]


async def classify_uploads(
    request: Request,
    lease: Lease,
    query: ClassifyQuery,
    uploads: Sequence[Upload],
    reservation: Reservation,
    group: str | None = None,
    count: Literal["yes", "no"] = "yes",
    refuse: Callable[[Sequence[Answered]], None] = refuse_if_all_failed,
) -> ClassifiedUploads:
    """Name the most probable classes of each image, and count what was said.

    `group` and `count` are the headers that say how the images count for the tail. `refuse` raises
    a `ServiceError` if too many images failed, and then nothing is counted.
    """
    engine: Engine = request.app.state.engine
    reviewer: Reviewer | None = request.app.state.reviewer
    wanted, answered = await answers(
        request,
        lease,
        lambda bundle: wanted_labels(bundle, query),
        uploads,
        reservation,
        copied=count == "yes",
    )
    refuse(answered)
    bundle, known = wanted.bundle, wanted.known
    top_k = min(query.top_k, len(wanted.allowed) or query.top_k)
    numbers = {id(upload): number for number, (upload, _) in enumerate(answered)}
    predictions: list[Prediction] = []

    def result(upload: Upload, prediction: Prediction, outputs: ImageOutputs) -> ClassifiedImage:
        members, image = prediction.members, numbers[id(upload)]
        predictions.append(prediction)
        if count == "yes":
            things = [upload.digest, group_digest(group)] if group else [upload.digest]
            bundle.monitoring.observe(prediction.uniform, prediction.decision, members, things)
        else:
            engine.metrics.count_omission("asked")
        answer = classified(
            upload.filename,
            prediction.requested,
            bundle.manifest.classes,
            top_k,
            prediction.views,
            prediction.reason,
            members,
        )
        identify = partial(engine.labels.identify, lease.version.code, bundle.manifest, prediction)
        if reviewer is None or count == "no":
            answer.id = identify()
        else:
            photo = AnsweredPhoto(
                upload.data,
                upload.digest,
                bundle.manifest,
                lease.version.number,
                prediction.requested,
                prediction.uniform,
                outputs.features,
                lease.is_copied(image),
            )
            answer.id = reviewer.offer(photo, identify)
        if answer.id is not None:
            lease.identify(image, answer.id)
        return answer

    if count == "yes":
        # Computed here and kept, because a large image's digest would hold up the event loop.
        await asyncio.to_thread(lambda: [upload.digest for upload, _ in answered])
    if known is not None:
        with refusing():  # Before anything is counted.
            known.check(len(answered))
    results = list(results_of(engine, wanted, answered, result))
    decisions = [prediction.decision or "none" for prediction in predictions]
    trace.get_current_span().set_attribute("taillift.decision", decisions)
    found = iter(predictions)
    rows = [next(found) if isinstance(result, ClassifiedImage) else None for result in results]
    if known is not None:
        uniform = [row and row.uniform for row in rows]
        assigned = await asyncio.to_thread(known.assign, uniform)
        add_assigned(results, assigned, bundle.manifest.classes)
    classification = Classification(
        model=model_id(wanted.bundle.manifest, lease.version.number),
        ensemble=wanted.ensemble,
        prior=query.prior,
        tail=wanted.tail,
        live_prior=live_report(wanted.live),
        classes=[bundle.manifest.labels[index] for index in wanted.allowed] or None,
        results=results,
    )
    return ClassifiedUploads(classification, rows)
