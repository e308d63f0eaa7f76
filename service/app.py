"""The HTTP interface: the routes, and a request's way from bytes to JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response, Security
from fastapi.responses import RedirectResponse
from prometheus_client.exposition import choose_encoder

from models.bundle.posterior import Doubles
from service.answers import (
    Classes,
    Classification,
    ClassifiedImage,
    ClassifyQuery,
    Confidence,
    ConfidenceOfImage,
    ConfidenceQuery,
    FailedImage,
    InferenceQuery,
    ModelSummary,
    Status,
    chosen_classes,
    class_list,
    classified,
    confidences,
    model_id,
    model_summary,
)
from service.client import held, while_connected
from service.deadline import Deadline
from service.docs import IMAGES_BODY, INFERENCE_PROBLEMS, add_docs, problems
from service.engine import Engine
from service.errors import NoImageError, PerImageError
from service.handlers import add_handlers
from service.keys import Keys, require_key
from service.upload import Upload, body_bytes, read_uploads

Result = TypeVar("Result")

# What needs an API key where there are any, and what never does.
router = APIRouter()
open_router = APIRouter()


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Service = Annotated[Engine, Depends(_engine)]


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
    request: Request, query: Annotated[ClassifyQuery, Query()], engine: Service, deadline: Until
) -> Classification:
    """Name the most probable classes of each image."""

    def result(upload: Upload, probabilities: Doubles, views: int) -> ClassifiedImage:
        image = classified(
            upload.filename,
            probabilities,
            engine.manifest.classes,
            query.top_k,
            views,
        )
        best = image.predictions[0]
        engine.metrics.predicted(best.label, best.group, best.confidence)
        return image

    return Classification(
        model=model_id(engine.manifest),
        ensemble=query.ensemble,
        prior=query.prior,
        results=await _results(request, engine, query, deadline, result),
    )


@router.post("/confidence", responses=INFERENCE_PROBLEMS, openapi_extra=IMAGES_BODY)
async def confidence(
    request: Request, query: Annotated[ConfidenceQuery, Query()], engine: Service, deadline: Until
) -> Confidence:
    """Give the confidence of every class, or of those asked for, and of every group."""
    chosen = chosen_classes(query.classes, engine.manifest)

    def result(upload: Upload, probabilities: Doubles, views: int) -> ConfidenceOfImage:
        return confidences(upload.filename, probabilities, engine.manifest, chosen, views)

    return Confidence(
        model=model_id(engine.manifest),
        ensemble=query.ensemble,
        prior=query.prior,
        results=await _results(request, engine, query, deadline, result),
    )


async def _results(
    request: Request,
    engine: Engine,
    query: InferenceQuery,
    deadline: Deadline,
    result: Callable[[Upload, Doubles, int], Result],
) -> list[Result | FailedImage]:
    """`result` of each image of the request, a problem in the place of each that cannot be used.

    Raises a `ServiceError` where no image can be.
    """
    engine.require_ready()
    settings = engine.settings
    pipeline = engine.opened.pipeline
    size = body_bytes(request, settings.max_body_bytes)
    announced = "content-length" in request.headers
    with pipeline.hold(size if announced else 0, deadline) as hold:
        with engine.metrics.stage("read"):
            async with deadline.limit("read"):
                uploads = await read_uploads(
                    request if announced else held(request, hold),
                    settings.max_body_bytes,
                    settings.max_images,
                    settings.body_seconds,
                )
        answers = await while_connected(request, pipeline.answers(uploads, query.ensemble, hold))
    failed = [answer for answer in answers if isinstance(answer, PerImageError)]
    if len(failed) == len(answers):
        raise failed[0] if len(failed) == 1 else NoImageError(failed)
    with engine.metrics.stage("post"):
        return [
            FailedImage(filename=upload.filename, error=answer.document())
            if isinstance(answer, PerImageError)
            else result(
                upload, engine.probabilities(answer, query.ensemble, query.prior), answer.views
            )
            for upload, answer in zip(uploads, answers, strict=True)
        ]


@router.get("/classes")
async def classes(engine: Service) -> Classes:
    """List every class: label, group, training images, measured accuracy."""
    return class_list(engine.manifest)


@router.get("/model")
async def model(engine: Service) -> ModelSummary:
    """Give the manifest in short, and what runs the model."""
    return model_summary(engine.manifest, engine.settings.device)


@open_router.get("/healthz")
async def healthz() -> Status:
    """Tell that the process is alive."""
    return Status(status="alive")


@open_router.get("/readyz", responses=problems(503))
async def readyz(engine: Service) -> Status:
    """Tell whether images can be sent: the bundle is checked and warm, and batches progress."""
    engine.require_ready()
    return Status(status="ready")


@open_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, engine: Service) -> Response:
    """Give the metrics to Prometheus."""
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encoder(engine.metrics.registry), headers={"content-type": content_type})


@open_router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    return RedirectResponse("docs")


def create_app(engine: Engine) -> FastAPI:
    """The service of `engine`, which starts and ends with it.

    Raises `UserError` where the API keys cannot be read.
    """
    keys = Keys.of(engine.settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Not awaited: meanwhile /healthz and /readyz answer.
        start = asyncio.create_task(engine.start())
        try:
            yield
        finally:
            await engine.close(start)

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
    if keys.needed:
        app.include_router(router, dependencies=[Security(require_key)], responses=problems(401))
    else:
        app.include_router(router)
    app.include_router(open_router)
    add_docs(app)
    add_handlers(app, engine.metrics)
    return app
