"""The HTTP interface: the routes, and a request's way from bytes to JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response, Security
from prometheus_client.exposition import choose_encoder

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.posterior import Doubles, Prior
from taillift.models.bundle.predictor import Prediction
from taillift.service.http import class_report
from taillift.service.http.auth import Keys, require_key
from taillift.service.http.disconnect import held, while_connected
from taillift.service.http.handlers import add_handlers, respond
from taillift.service.http.openapi import IMAGES_BODY, INFERENCE_PROBLEMS, add_docs, problems
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
    chosen_classes,
    classified,
    confidence_json,
    confidences,
    known_prior,
    model_id,
    model_summary,
)
from taillift.service.http.uploads import Upload, body_bytes, read_uploads
from taillift.service.inference import jobs
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.engine import Engine
from taillift.service.page import add_page
from taillift.service.problems import MalformedError, NoImageError, NotReadyError, PerImageError
from taillift.service.tail.sightings import group_digest

Result = TypeVar("Result")
Answered = tuple[Upload, jobs.ImageOutputs | PerImageError]

# What needs an API key where there are any, and what never does.
router = APIRouter()
open_router = APIRouter()


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Service = Annotated[Engine, Depends(_engine)]


async def _writing(request: Request) -> asyncio.Lock:
    """For answers on thousands of classes, which are written in a thread: requests are waiting.

    One at a time, since several would not be sooner and take the memory of all.
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
            description="seconds after which no answer is wanted any more (408)",
        ),
    ] = None,
) -> Deadline:
    longest = engine.settings.answer_seconds
    return Deadline.after(longest if timeout is None else min(timeout, longest))


Until = Annotated[Deadline, Depends(_deadline)]


@router.post("/classify", responses=INFERENCE_PROBLEMS, openapi_extra=IMAGES_BODY)
async def classify(
    request: Request,
    query: Annotated[ClassifyQuery, Query()],
    engine: Service,
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
    predictor, asked = engine.predictor, _asked(engine, query)
    if query.coverage is not None and predictor.variant.sets is None:
        raise MalformedError("this bundle has no calibration to make sets from: leave out coverage")

    def result(upload: Upload, prediction: Prediction, views: int) -> ClassifiedImage:
        decision = predictor.decide(prediction) if query.prior == Prior.UNIFORM else None
        members = predictor.members(prediction, asked.ensemble, query.coverage)
        if count == "yes":
            things = [upload.digest, group_digest(group)] if group else [upload.digest]
            engine.monitoring.observe(prediction.uniform, decision, members, things)
        else:
            engine.metrics.count_omission("asked")
        return classified(
            upload.filename,
            prediction.asked,
            engine.manifest.classes,
            query.top_k,
            views,
            decision,
            members,
        )

    async with _answered(request, engine, asked, deadline) as answered:
        # Computed here and kept, because a large image's digest would hold up the event loop.
        await asyncio.to_thread(lambda: [upload.digest for upload, _ in answered])
        results = list(_results(engine, asked, answered, result))
    return Classification(
        model=model_id(engine.manifest),
        ensemble=asked.ensemble,
        prior=query.prior,
        results=results,
    )


@router.post(
    "/confidence",
    response_model=Confidence,
    responses=INFERENCE_PROBLEMS,
    openapi_extra=IMAGES_BODY,
)
async def confidence(
    request: Request,
    query: Annotated[ConfidenceQuery, Query()],
    engine: Service,
    deadline: Until,
    writing: Writing,
) -> Response:
    """Give the confidence of every class, or of those asked for, and of every group."""
    engine.require_ready()
    chosen, asked = chosen_classes(query.classes, engine.manifest), _asked(engine, query)

    def result(upload: Upload, prediction: Prediction, views: int) -> ConfidenceOfImage:
        return confidences(upload.filename, prediction.asked, engine.manifest, chosen, views)

    answer = InferenceResponse(
        model=model_id(engine.manifest), ensemble=asked.ensemble, prior=query.prior
    )
    # Within the request's hold, because its images are in memory until then.
    async with _answered(request, engine, asked, deadline) as answered, writing:
        results = _results(engine, asked, answered, result)
        content = await asyncio.to_thread(confidence_json, answer, results)
    return Response(content, media_type="application/json")


@dataclass(frozen=True)
class Asked:
    """How a request wants its images answered; `log_prior` [C]."""

    ensemble: Ensemble
    log_prior: Doubles


def _asked(engine: Engine, query: InferenceQuery) -> Asked:
    ensemble = query.ensemble or engine.usual_ensemble
    return Asked(ensemble, known_prior(query.prior, engine.priors))


@asynccontextmanager
async def _answered(
    request: Request, engine: Engine, asked: Asked, deadline: Deadline
) -> AsyncIterator[Sequence[Answered]]:
    """Each image of the request with its logits, or with the reason why it cannot be used.

    The request's share of what is in work is held until the end of the block. Raises a
    `ServiceError` where no image can be used.
    """
    settings = engine.settings
    pipeline = engine.opened.pipeline
    size = body_bytes(request, settings.max_body_bytes)
    with pipeline.hold(size if "content-length" in request.headers else 0, deadline) as hold:
        with engine.metrics.time_stage("read"):
            async with deadline.limit("read"):
                uploads = await read_uploads(
                    held(request, hold),
                    settings.max_body_bytes,
                    settings.max_images,
                    settings.body_seconds,
                )
        answers = await while_connected(request, pipeline.answers(uploads, asked.ensemble, hold))
        failed = [answer for answer in answers if isinstance(answer, PerImageError)]
        if len(failed) == len(answers):
            raise failed[0] if len(failed) == 1 else NoImageError(failed)
        yield list(zip(uploads, answers, strict=True))


def _results(
    engine: Engine,
    asked: Asked,
    answered: Sequence[Answered],
    result: Callable[[Upload, Prediction, int], Result],
) -> Iterator[Result | FailedImage]:
    """`result` of each image, a problem in the place of each that cannot be used."""
    with engine.metrics.time_stage("post"):
        for upload, answer in answered:
            if isinstance(answer, PerImageError):
                yield FailedImage(filename=upload.filename, error=answer.document())
            else:
                prediction = engine.predictor.read(
                    answer.logits, answer.views, asked.ensemble, asked.log_prior
                )
                yield result(upload, prediction, answer.views)


@router.get("/classes", response_model=class_report.Classes)
async def classes(engine: Service, writing: Writing) -> Response:
    """List every class and group, with how often it is predicted and expected to be."""
    async with writing:
        seen = class_report.take_snapshot(engine.monitoring)
        text = await asyncio.to_thread(lambda: class_report.classes(seen).model_dump_json())
    return Response(text, media_type="application/json")


@router.get("/classes/{label:path}", responses=problems(404))
async def one_class(label: str, engine: Service) -> class_report.ClassDetails:
    """Tell of one class how it fares, and how soon a change of it would be found."""
    return class_report.class_details(engine.monitoring, label)


@router.get("/model")
async def model(engine: Service) -> ModelSummary:
    """Give the manifest in short, and what runs the model."""
    return model_summary(
        engine.predictor, engine.settings.device, list(engine.priors), engine.precision_reason
    )


@open_router.get("/healthz")
async def healthz() -> Status:
    """Tell that the process is alive."""
    return Status(status="alive")


@open_router.get("/readyz", response_model=Status, responses=problems(503))
async def readyz(engine: Service) -> Status | Response:
    """Tell whether images can be sent: the bundle is checked and warm, and work progresses."""
    if (obstacle := engine.obstacle) is None:
        return Status(status="ready")
    problem = NotReadyError(obstacle)
    # Not raised, which would count it: a probe that is told so has been answered.
    return respond(problem.document(), problem.status)


@open_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, engine: Service) -> Response:
    """Give the metrics to Prometheus."""
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encoder(engine.metrics.registry), headers={"content-type": content_type})


def create_app(engine: Engine) -> FastAPI:
    """The service of `engine`, which starts and ends with it.

    Raises `UserError` where the API keys cannot be read.
    """
    keys = Keys.of(engine.settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Not awaited: meanwhile /healthz and /readyz answer.
        start = asyncio.create_task(engine.start())
        keep = asyncio.create_task(engine.monitoring.keep())
        try:
            yield
        finally:
            await engine.close(start)
            engine.monitoring.end()
            await keep

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        title="taillift",
        version=engine.manifest.taillift_version,
        summary="Classification of long-tailed images",
        lifespan=lifespan,
    )
    app.state.engine = engine
    app.state.keys = keys
    app.state.writing = asyncio.Lock()
    if keys.needed:
        app.include_router(router, dependencies=[Security(require_key)], responses=problems(401))
    else:
        app.include_router(router)
    app.include_router(open_router)
    add_docs(app)
    add_page(app)
    add_handlers(app, engine.metrics)
    return app
