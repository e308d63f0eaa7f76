"""The HTTP interface: the routes, and a request's way from bytes to JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response, Security
from starlette.convertors import PathConvertor, register_url_convertor

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.known_counts import KnownCounts
from taillift.models.bundle.posterior import Prior, among, leaning
from taillift.models.bundle.predictor import Prediction
from taillift.models.errors import UserError
from taillift.models.names import indices_of_names
from taillift.service.http import admin, class_report
from taillift.service.http.auth import Keys, require_admin_key, require_key
from taillift.service.http.handlers import add_handlers, respond
from taillift.service.http.openapi import (
    GROUPS_OF_ROUTES,
    IMAGES,
    IMAGES_BODY,
    INFERENCE_PROBLEMS,
    MODEL,
    OPERATION,
    add_docs,
    problems,
)
from taillift.service.http.schemas import (
    Classification,
    ClassifiedImage,
    ClassifyQuery,
    Confidence,
    ConfidenceOfImage,
    ConfidenceQuery,
    FailedImage,
    InferenceQuery,
    InferenceResponse,
    ModelSummary,
    Status,
    add_assigned,
    chosen_classes,
    classified,
    confidence_json,
    confidences,
    known_prior,
    model_id,
    model_summary,
)
from taillift.service.http.uploads import (
    Upload,
    body_bytes,
    read_uploads,
    reserving_body,
    while_connected,
)
from taillift.service.http.version_lease import PIN, Lease, VersionLease
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.engine import Engine
from taillift.service.inference.resident_bundle import ResidentBundle
from taillift.service.inference.role_follower import RoleFollower
from taillift.service.monitoring.exporter import Exposition
from taillift.service.page import add_page
from taillift.service.problems import (
    ClassesError,
    MalformedError,
    NoImageError,
    NotReadyError,
    PerImageError,
    TailError,
)
from taillift.service.tail.dependence import group_digest


class TextConvertor(PathConvertor):
    """Part of an address that may hold any text: slashes and line ends, too."""

    regex = "(?s:.*)"


register_url_convertor("text", TextConvertor())

Item = TypeVar("Item")
Answered = tuple[Upload, ImageOutputs | PerImageError]

# Routes that need an API key if there are any keys, and routes that never do.
router = APIRouter()
open_router = APIRouter()


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Service = Annotated[Engine, Depends(_engine)]


async def _leased(request: Request) -> Lease:
    """Return the lease on the version that this request is served by."""
    lease: Lease = request.state.lease
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


async def _bundle(
    lease: Leased,
    _version: Annotated[
        str | None,
        Query(alias=PIN, description="champion, challenger or the number of a loaded version"),
    ] = None,
) -> ResidentBundle:
    """Return the bundle that this request is served by."""
    return lease.version.bundle


Served = Annotated[ResidentBundle, Depends(_bundle)]


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


@router.post(
    "/classify",
    tags=[IMAGES],
    summary="Most probable classes, and whether to accept the answer",
    responses=INFERENCE_PROBLEMS,
    openapi_extra=IMAGES_BODY,
)
async def classify(
    request: Request,
    query: Annotated[ClassifyQuery, Query()],
    engine: Service,
    lease: Chosen,
    deadline: Until,
    group: Annotated[
        str | None,
        Header(
            alias="X-Taillift-Group",
            description="name of the one thing that the images show; images with the same name "
            "count once for the statistics of the tail",
        ),
    ] = None,
    count: Annotated[
        Literal["yes", "no"],
        Header(
            alias="X-Taillift-Count",
            description="no: the images, as those of a probe, are answered and not counted",
        ),
    ] = "yes",
) -> Classification:
    """Name the most probable classes of each image."""
    engine.require_ready()

    def want(bundle: ResidentBundle) -> Wanted:
        wanted, labels = _wanted(bundle, query, query.coverage), bundle.manifest.labels
        with _refusing():
            allowed = indices_of_names(query.classes, labels, "classes")
            if query.classes:
                prior = _log_prior(bundle, query.prior, wanted.tail)
                wanted = replace(wanted, log_prior=among(prior, allowed), allowed=allowed)
            if query.counts is not None:
                wanted = replace(wanted, known=KnownCounts.from_json(query.counts, labels))
        if query.coverage is not None and bundle.predictor.variant.sets is None:
            raise MalformedError(
                "this bundle has no calibration to make sets from: leave out coverage"
            )
        return wanted

    copied, uniform = count == "yes", list[Doubles]()
    async with _answered(request, engine, lease, want, deadline, copied) as (wanted, answered):
        bundle, known = wanted.bundle, wanted.known
        top_k = min(query.top_k, len(wanted.allowed) or query.top_k)

        def result(upload: Upload, prediction: Prediction) -> ClassifiedImage:
            members = prediction.members
            uniform.append(prediction.uniform)
            if count == "yes":
                things = [upload.digest, group_digest(group)] if group else [upload.digest]
                bundle.monitoring.observe(prediction.uniform, prediction.decision, members, things)
            else:
                engine.metrics.count_omission("asked")
            return classified(
                upload.filename,
                prediction.requested,
                bundle.manifest.classes,
                top_k,
                prediction.views,
                prediction.reason,
                members,
            )

        if count == "yes":
            # Computed here and kept, because a large image's digest would hold up the event loop.
            await asyncio.to_thread(lambda: [upload.digest for upload, _ in answered])
        if known is not None:
            with _refusing():  # Before anything is counted.
                known.check(len(answered))
        results = list(_results(engine, wanted, answered, result))
        if known is not None:
            found = iter(uniform)
            good = [isinstance(result, ClassifiedImage) for result in results]
            rows = [next(found) if one else None for one in good]
            assigned = await asyncio.to_thread(known.assign, rows)
            add_assigned(results, assigned, bundle.manifest.classes)
    return Classification(
        model=model_id(wanted.bundle.manifest, lease.version.number),
        ensemble=wanted.ensemble,
        prior=query.prior,
        tail=wanted.tail,
        classes=[bundle.manifest.labels[index] for index in wanted.allowed] or None,
        results=results,
    )


@router.post(
    "/confidence",
    tags=[IMAGES],
    summary="Confidence of every class and group",
    response_model=Confidence,
    responses=INFERENCE_PROBLEMS,
    openapi_extra=IMAGES_BODY,
)
async def confidence(
    request: Request,
    query: Annotated[ConfidenceQuery, Query()],
    engine: Service,
    lease: Chosen,
    deadline: Until,
    writing: Writing,
) -> Response:
    """Give the confidence of every class, or of the classes in the query, and of every group."""
    engine.require_ready()

    def want(bundle: ResidentBundle) -> Wanted:
        chosen_classes(query.classes, bundle.manifest)
        return _wanted(bundle, query)

    # Within the reservation, because the request's images are in memory until then.
    async with _answered(request, engine, lease, want, deadline) as (wanted, answered), writing:
        manifest = wanted.bundle.manifest
        chosen = chosen_classes(query.classes, manifest)

        def result(upload: Upload, prediction: Prediction) -> ConfidenceOfImage:
            return confidences(
                upload.filename, prediction.requested, manifest, chosen, prediction.views
            )

        answer = InferenceResponse(
            model=model_id(manifest, lease.version.number),
            ensemble=wanted.ensemble,
            prior=query.prior,
            tail=wanted.tail,
        )
        results = _results(engine, wanted, answered, result)
        content = await asyncio.to_thread(confidence_json, answer, results)
    return Response(content, media_type="application/json")


@contextmanager
def _refusing() -> Iterator[None]:
    """Answer what a query's classes or counts lack with a problem document."""
    try:
        yield
    except UserError as error:
        raise ClassesError(str(error)) from None


@dataclass(frozen=True)
class Wanted:
    """How a request wants its images answered: by which bundle, and as `Predictor.predict` says."""

    bundle: ResidentBundle
    ensemble: Ensemble
    log_prior: Doubles | None
    coverage: float | None
    allowed: Sequence[int] = ()
    known: KnownCounts | None = None
    tail: float = 0.0


def _wanted(bundle: ResidentBundle, query: InferenceQuery, coverage: float | None = None) -> Wanted:
    ensemble = query.ensemble or bundle.usual_ensemble
    tail = bundle.usual_tail if query.tail is None else query.tail
    log_prior = _log_prior(bundle, query.prior, tail)
    usual = query.prior == Prior.UNIFORM and not tail
    return Wanted(bundle, ensemble, None if usual else log_prior, coverage, tail=tail)


def _log_prior(bundle: ResidentBundle, name: str, tail: float) -> Doubles:
    """Return the prior [C] of this name, which leans toward the rare classes by `tail`."""
    prior = known_prior(name, bundle.priors)
    try:
        return leaning(prior, tail, bundle.manifest.counts)
    except UserError as error:
        raise TailError(str(error)) from None


@asynccontextmanager
async def _answered(
    request: Request,
    engine: Engine,
    lease: Lease,
    want: Callable[[ResidentBundle], Wanted],
    deadline: Deadline,
    copied: bool = False,
) -> AsyncIterator[tuple[Wanted, Sequence[Answered]]]:
    """Yield what `want` says, and each image with its outputs, or with why it cannot be used.

    If the images are to be `copied`, a challenger may see them. The request's reservation is kept
    until the end of the block. Raises a `ServiceError` if no image can be used.
    """
    settings, wanted = engine.settings, want(lease.version.bundle)
    size = body_bytes(request, settings.max_body_bytes)
    announced = size if "content-length" in request.headers else 0
    with lease.version.pipeline.reserve(announced, deadline) as reservation:
        with engine.metrics.time_stage("read"):
            async with deadline.limit("read"):
                uploads = await read_uploads(
                    reserving_body(request, reservation),
                    settings.max_body_bytes,
                    settings.max_images,
                    settings.body_seconds,
                )
        if lease.open and uploads:
            lease.choose(str(await asyncio.to_thread(lambda: uploads[0].digest)))
            wanted = want(lease.version.bundle)
        images, copier = [upload.data for upload in uploads], lease.copier if copied else None
        answers = await while_connected(
            request,
            lease.version.pipeline.answers(images, wanted.ensemble, reservation, copier),
        )
        failed = [answer for answer in answers if isinstance(answer, PerImageError)]
        if len(failed) == len(answers):
            raise failed[0] if len(failed) == 1 else NoImageError(failed)
        yield wanted, list(zip(uploads, answers, strict=True))


def _results(
    engine: Engine,
    wanted: Wanted,
    answered: Sequence[Answered],
    result: Callable[[Upload, Prediction], Item],
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
                yield result(upload, prediction)


@router.get(
    "/classes",
    tags=[MODEL],
    summary="All classes: how often predicted, how often expected",
    response_model=class_report.Classes,
    responses=problems(404),
)
async def classes(bundle: Served, writing: Writing) -> Response:
    """List every class and group, with how often it is predicted and expected to be."""
    async with writing:
        snapshot = class_report.take_snapshot(bundle.manifest, bundle.monitoring.monitor)
        text = await asyncio.to_thread(lambda: class_report.classes(snapshot).model_dump_json())
    return Response(text, media_type="application/json")


@router.get(
    "/classes/{label:text}",
    tags=[MODEL],
    summary="One class in detail",
    responses=problems(404),
)
async def one_class(label: str, bundle: Served) -> class_report.ClassDetails:
    """Describe one class: how often it is predicted, and how soon a change would be noticed."""
    return class_report.class_details(bundle.monitoring, label)


@router.get(
    "/model",
    tags=[MODEL],
    summary="The served bundle, its calibration and its accuracy",
    responses=problems(404),
)
async def model(engine: Service, lease: Leased, bundle: Served) -> ModelSummary:
    """Give the manifest in short, and what runs the model."""
    return model_summary(
        bundle.predictor,
        engine.settings.device,
        list(bundle.priors),
        bundle.precision_reason,
        lease.version.number,
        bundle.usual_tail,
    )


@open_router.get("/healthz", tags=[OPERATION], summary="Is the process alive?")
async def healthz() -> Status:
    """Say that the process is alive."""
    return Status(status="alive")


@open_router.get(
    "/readyz",
    tags=[OPERATION],
    summary="Can images be sent?",
    response_model=Status,
    responses=problems(503),
)
async def readyz(engine: Service) -> Status | Response:
    """Say whether images can be sent: the bundle is checked and warm, and work progresses."""
    if (obstacle := engine.obstacle) is None:
        return Status(status="ready")
    problem = NotReadyError(obstacle)
    # Not raised, which would count it as rejected: the probe has been answered.
    return respond(problem.document(), problem.status)


@open_router.get(
    "/metrics",
    tags=[OPERATION],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Give the metrics for Prometheus."""
    exposition: Exposition = request.app.state.exposition
    content, content_type = exposition.render(request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})


def create_app(engine: Engine) -> FastAPI:
    """Return the HTTP application, which starts `engine` when it starts and closes it at its end.

    Raises `UserError` if the API keys cannot be read.
    """
    keys = Keys.of(engine.settings)
    follower = None if engine.store is None else RoleFollower(engine, engine.store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Not awaited: /healthz and /readyz answer meanwhile.
        start = asyncio.create_task(engine.start())
        keep = asyncio.create_task(engine.evidence.keep())
        follow = None if follower is None else asyncio.create_task(follower.follow(start))
        try:
            yield
        finally:
            if follower is not None and follow is not None:
                await follower.end(follow)
            await engine.close(start)
            engine.evidence.end()
            await keep

    app = FastAPI(
        openapi_url=None,  # `add_docs` adds one that is encoded once.
        docs_url=None,
        redoc_url=None,
        title="taillift",
        version=engine.bundle.manifest.taillift_version,
        summary="Classification of long-tailed images",
        lifespan=lifespan,
        redirect_slashes=False,
        # Relative, so that the description is right below a path of a proxy as well.
        servers=[{"url": "."}],
        openapi_tags=GROUPS_OF_ROUTES,
    )
    app.state.engine = engine
    app.state.follower = follower
    app.state.keys = keys
    app.state.exposition = Exposition(engine.metrics.registry)
    app.state.writing = asyncio.Lock()
    if keys.needed:
        app.include_router(router, dependencies=[Security(require_key)], responses=problems(401))
    else:
        app.include_router(router)
    app.include_router(open_router)
    if engine.settings.admin_keys_file is not None and follower is not None:
        app.state.admin_keys = Keys(None, engine.settings.admin_keys_file)
        app.include_router(admin.router, dependencies=[Security(require_admin_key)])
    app.add_middleware(VersionLease, engine=engine)
    add_docs(app)
    add_page(app)
    add_handlers(app, engine.metrics)
    return app
