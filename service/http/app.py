"""The HTTP interface: the routes, and a request's way from bytes to JSON."""

import asyncio
import logging
import os
from collections.abc import (
    AsyncIterator,
    MutableMapping,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.telemetry import TelemetryConfig
from starlette.convertors import PathConvertor, register_url_convertor

from taillift.models.bundle.ensemble import ImageOutputs
from taillift.models.bundle.predictor import Prediction
from taillift.models.errors import first_lines
from taillift.service.http import admin, class_report, feedback, review_routes
from taillift.service.http import oip_routes as oip
from taillift.service.http.access import HEALTH, is_loopback
from taillift.service.http.auth import (
    Keys,
    require_admin_key,
    require_feedback_right,
    require_key,
)
from taillift.service.http.handlers import add_handlers, respond
from taillift.service.http.image_requests import (
    Chosen,
    Counted,
    Leased,
    Service,
    Thing,
    Until,
    Wanted,
    Writing,
    answers,
    classify_uploads,
    received,
    refuse_if_all_failed,
    results_of,
    uploads_of,
    wanted_images,
    wanted_labels,
)
from taillift.service.http.middleware import ExactAddresses
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
    ClassifyQuery,
    Confidence,
    ConfidenceOfImage,
    ConfidenceQuery,
    InferenceResponse,
    ModelSummary,
    Status,
    chosen_classes,
    confidence_json,
    confidences,
    live_report,
    model_id,
    model_summary,
)
from taillift.service.http.uploads import (
    Upload,
)
from taillift.service.http.version_lease import PIN, VersionLease
from taillift.service.inference.engine import Engine
from taillift.service.inference.resident_bundle import ResidentBundle
from taillift.service.inference.role_follower import RoleFollower
from taillift.service.monitoring.exporter import Exposition
from taillift.service.page import add_page
from taillift.service.problems import (
    NotReadyError,
)
from taillift.service.review.reviewer import Reviewer
from taillift.service.settings import is_web_address

if TYPE_CHECKING:
    from taillift.service.monitoring.tracing import Tracing

logger = logging.getLogger(__name__)


class TextConvertor(PathConvertor):
    """Part of an address that may hold any text: slashes and line ends, too."""

    regex = "(?s:.*)"


register_url_convertor("text", TextConvertor())

# What the environment says about OpenTelemetry's collector, and how it is reached.
COLLECTOR: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
HTTP_PROTOBUF: Final = "http/protobuf"
NO_TELEMETRY: Final = TelemetryConfig(
    tracing=False, metrics=False, logs=False, auto_configure=False
)
UNTRACED: Final = HEALTH | {"/", "/metrics", "/docs", "/docs.js", "/openapi.json"}

# Routes that need an API key if there are any keys, and routes that never do.
router = APIRouter()
open_router = APIRouter()


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
    group: Thing = None,
    count: Counted = "yes",
) -> Classification:
    """Name the most probable classes of each image."""
    engine.require_ready()
    wanted_labels(lease.version.bundle, query)  # Refused before the body is read.
    async with received(request, engine, lease, deadline, uploads_of(engine.settings)) as body:
        uploads, reservation = body
        classified_images = await classify_uploads(
            request, lease, query, uploads, reservation, group, count
        )
    return classified_images.classification


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
        return wanted_images(bundle, query)

    want(lease.version.bundle)  # Refused before the body is read.
    # Within the reservation, because the request's images are in memory until then.
    async with received(request, engine, lease, deadline, uploads_of(engine.settings)) as body:
        wanted, answered = await answers(request, lease, want, *body)
        refuse_if_all_failed(answered)
        manifest = wanted.bundle.manifest
        chosen = chosen_classes(query.classes, manifest)

        def result(upload: Upload, prediction: Prediction, _: ImageOutputs) -> ConfidenceOfImage:
            return confidences(
                upload.filename, prediction.requested, manifest, chosen, prediction.views
            )

        answer = InferenceResponse(
            model=model_id(manifest, lease.version.number),
            ensemble=wanted.ensemble,
            prior=query.prior,
            tail=wanted.tail,
            live_prior=live_report(wanted.live),
        )
        async with writing:
            results = results_of(engine, wanted, answered, result)
            content = await asyncio.to_thread(confidence_json, answer, results)
    return Response(content, media_type="application/json")


@router.get(
    "/classes",
    tags=[MODEL],
    summary="All classes: how often predicted, how often expected",
    response_model=class_report.Classes,
    responses=problems(404),
)
async def classes(engine: Service, lease: Leased, bundle: Served, writing: Writing) -> Response:
    """List every class and group, with how often it is predicted and expected to be."""
    live = await engine.labels.report(lease.version.code)
    async with writing:
        snapshot = class_report.take_snapshot(bundle.manifest, bundle.monitoring.monitor, live)
        text = await asyncio.to_thread(lambda: class_report.classes(snapshot).model_dump_json())
    return Response(text, media_type="application/json")


@router.get(
    "/classes/{label:text}",
    tags=[MODEL],
    summary="One class in detail",
    responses=problems(404),
)
async def one_class(
    label: str, engine: Service, lease: Leased, bundle: Served, writing: Writing
) -> class_report.ClassDetails:
    """Describe one class: how often it is predicted, and how soon a change would be noticed."""
    index = class_report.class_index(label, bundle.manifest.labels)
    live = await engine.labels.report(lease.version.code)
    async with writing:
        snapshot = class_report.take_snapshot(bundle.manifest, bundle.monitoring.monitor, live)
        state = bundle.monitoring.class_state(index)
        return await asyncio.to_thread(class_report.class_details, snapshot, state, index)


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
        bundle.prior_names,
        bundle.precision_reason,
        lease.version.number,
        labelling=engine.settings.review_dir is not None,
        tail=bundle.usual_tail,
        live=bundle.live_prior,
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


def open_tracing(version: str) -> "Tracing | None":
    """Return what sends traces, exactly if the environment names a collector.

    What it lacks is logged, because images matter more than traces.
    """
    endpoint = os.environ.get(COLLECTOR)
    protocol = os.environ.get(PROTOCOL) or HTTP_PROTOBUF
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    lack = ""
    if not is_web_address(endpoint):
        lack = "it must be an address such as http://collector:4318"
    elif protocol != HTTP_PROTOBUF:
        lack = f"{PROTOCOL} must be {HTTP_PROTOBUF}"
    else:
        try:
            from taillift.service.monitoring.tracing import Tracing

            return Tracing(version, is_untraced)
        except ImportError:
            lack = "install taillift[otel]"
        except ValueError as error:  # Of another variable.
            lack = first_lines(error)
    logger.warning("%s is set, but no traces are sent: %s", COLLECTOR, lack)
    return None


def is_untraced(scope: MutableMapping[str, Any]) -> bool:
    """Tell whether a request is for a probe, for Prometheus or for a page."""
    path = scope["path"]
    return path in UNTRACED or path.startswith(("/page/", "/swagger/"))


def create_app(engine: Engine) -> FastAPI:
    """Return the HTTP application, which starts `engine` when it starts and closes it at its end.

    Raises `UserError` if the API keys cannot be read.
    """
    keys = Keys.of(engine.settings)
    follower = None if engine.store is None else RoleFollower(engine, engine.store)
    reviewer = None
    if engine.settings.review_dir is not None:
        reviewer = Reviewer(engine.settings, engine.metrics.registry)
        engine.labels.listeners.append(reviewer.follow_labels)
        engine.choose_for_labelling = reviewer.choose_difference
        if not keys.needed and not is_loopback(engine.settings.host):
            logger.warning(
                "anyone who reaches this service sees the photos that are kept for labelling: set "
                "keys_file"
            )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Not awaited: /healthz and /readyz answer meanwhile.
        start = asyncio.create_task(engine.start())
        keep = asyncio.create_task(engine.evidence.keep())
        look = asyncio.create_task(engine.labels.keep())
        trim = None if reviewer is None else asyncio.create_task(reviewer.keep_trimmed())
        follow = None if follower is None else asyncio.create_task(follower.follow(start))
        try:
            yield
        finally:
            if follower is not None and follow is not None:
                await follower.end(follow)
            await engine.close(start)
            engine.evidence.end()
            await keep
            look.cancel()
            if reviewer is not None and trim is not None:
                trim.cancel()
                await reviewer.close()
            await asyncio.to_thread(engine.labels.close)
            if tracing is not None:
                await tracing.close()

    tracing = open_tracing(engine.bundle.manifest.taillift_version)
    if tracing is not None:
        engine.metrics.tracer = tracing.tracer
    app = FastAPI(
        telemetry=NO_TELEMETRY if tracing is None else tracing.config,
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
    app.state.reviewer = reviewer
    app.state.keys = keys
    app.state.exposition = Exposition(engine.metrics.registry)
    app.state.writing = asyncio.Lock()
    app.state.oip_statistics = oip.ProtocolStatistics(oip.VersionCounts)
    labelling = [feedback.router, *([] if reviewer is None else [review_routes.router])]
    right = [Depends(require_feedback_right)]
    key = [Security(require_key)] if keys.needed else []
    refusals = problems(401) if keys.needed else {}
    for routes in (router, oip.router):
        app.include_router(routes, dependencies=key, responses=refusals)
    for routes in labelling:
        dependencies = [*key, *right] if keys.needed else []
        app.include_router(routes, dependencies=dependencies, responses=refusals)
    for routes in (open_router, oip.open_router):
        app.include_router(routes)
    if engine.settings.admin_keys_file is not None and follower is not None:
        app.state.admin_keys = Keys(None, engine.settings.admin_keys_file)
        for routes in (admin.router, oip.repository_router):
            app.include_router(routes, dependencies=[Security(require_admin_key)])
    app.add_middleware(VersionLease, engine=engine)
    app.add_middleware(ExactAddresses)
    add_docs(app)
    add_page(app)
    add_handlers(app, engine.metrics)
    return app
