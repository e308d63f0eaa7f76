"""The Open Inference Protocol 2 over HTTP: routes for the clients of Triton, KServe and MLServer.

After a request is parsed, its images go the way of POST /classify.
"""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns, time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from taillift.models.bundle.version_store import Challenger, Shadow
from taillift.models.errors import UserError, did_you_mean
from taillift.service.http.admin import Follower, problem_of, who
from taillift.service.http.image_requests import (
    Answered,
    Chosen,
    Counted,
    Leased,
    Service,
    Thing,
    Until,
    Writing,
    classify_uploads,
    received,
)
from taillift.service.http.oip_answer import ANY, FORMS, AnsweredImage, write_answer
from taillift.service.http.oip_request import (
    IMAGE,
    JSON_BYTES,
    InferRequest,
    json_size,
    parse,
    parse_json,
    parsing_bytes,
)
from taillift.service.http.uploads import Upload, read_body
from taillift.service.http.version_lease import Lease
from taillift.service.inference.admission import Reservation
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.engine import Engine
from taillift.service.inference.role_follower import RoleFollower, State
from taillift.service.problems import (
    MalformedError,
    NoSuchVersionError,
    NotReadyError,
    PerImageError,
    RefusedVersionError,
    UnknownModelError,
)
from taillift.service.settings import Settings

PLATFORM: Final = "taillift"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_repository",
    "statistics",
    "parameters",
)
# Bodies up to this size are parsed at once, in a few milliseconds at most; others in a thread.
SMALL_BODY: Final = 2**17
STATES: Final[dict[State, str]] = {
    "resident": "READY",
    "loading": "LOADING",
    "draining": "UNLOADING",
    "stored": "UNAVAILABLE",
    "refused": "UNAVAILABLE",
}
CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}
# Where Triton's tools look for the seconds that the stages took.
STAGES: Final = {
    "queue": "queue",
    "compute_input": "decode",
    "compute_infer": "infer",
    "compute_output": "post",
}
EXECUTIONS: Final = "taillift_batch_views_count"
STAGE_SERIES: Final = ("taillift_stage_seconds_count", "taillift_stage_seconds_sum")
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
POLL_SECONDS: Final = 0.05

router = APIRouter(prefix="/v2", include_in_schema=False)
open_router = APIRouter(prefix="/v2/health", include_in_schema=False)
repository_router = APIRouter(prefix="/v2/repository/models", include_in_schema=False)


@dataclass
class VersionCounts:
    """The requests that one version has answered by this protocol, and those that failed."""

    images: int = 0
    last_answer: float = 0.0
    success: Counter[str] = field(default_factory=Counter)
    fail: Counter[str] = field(default_factory=Counter)

    def add(self, images: int, nanoseconds: int) -> None:
        """Count a request and the images that it got answers on; none: it failed."""
        if images:
            self.images += images
            self.last_answer = time()
        (self.success if images else self.fail).update(count=1, ns=nanoseconds)


ProtocolStatistics = defaultdict[str, VersionCounts]


async def _statistics(request: Request) -> ProtocolStatistics:
    statistics: ProtocolStatistics = request.app.state.oip_statistics
    return statistics


Statistics = Annotated[ProtocolStatistics, Depends(_statistics)]


async def _model_name(name: str, engine: Service) -> str:
    """Return the name in the address; raise `UnknownModelError` if the model has another."""
    known = served_name(engine)
    if name not in (known, engine.bundle.manifest.name):
        raise UnknownModelError(
            f"no model {name[:80]!r} is served{did_you_mean(name[:80], [known])}: the model is "
            f"{known!r}"
        )
    return known


ModelName = Annotated[str, Depends(_model_name)]


def served_name(engine: Engine) -> str:
    """Return the name of the model: the setting, or else the champion's own."""
    return engine.settings.model_name or engine.bundle.manifest.name


def for_versions(path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a GET route at `path` below a model, and below each of its versions."""

    def decorate(route: Callable[..., Any]) -> Callable[..., Any]:
        for middle in ("", "/versions/{version}"):
            router.get(f"/models/{{name}}{middle}{path}")(route)
        return route

    return decorate


@open_router.get("/live")
async def live() -> Response:
    """Say that the process is alive."""
    return JSONResponse({"live": True})


@open_router.get("/ready")
async def ready(engine: Service) -> Response:
    """Say whether images can be sent."""
    is_ready = engine.obstacle is None
    # The specification calls the member `live` where it means `ready`.
    status = 200 if is_ready else NotReadyError.status
    return JSONResponse({"ready": is_ready, "live": True}, status)


@router.get("")
async def server(engine: Service) -> Response:
    """Describe the service."""
    version = engine.bundle.manifest.taillift_version
    return JSONResponse({"name": "taillift", "version": version, "extensions": EXTENSIONS})


@router.get("/models/stats")
async def all_statistics(engine: Service, known: Statistics) -> Response:
    """Count what was answered, and how long its stages took."""
    return JSONResponse(
        {
            "model_stats": [
                version_statistics(engine, known, version.shown_number)
                for version in engine.residents
            ]
        }
    )


@for_versions("/stats")
async def statistics(
    _name: ModelName, engine: Service, lease: Leased, known: Statistics, request: Request
) -> Response:
    """Count what was answered, and how long its stages took, for one version or for all."""
    if "version" not in request.path_params:
        return await all_statistics(engine, known)
    row = version_statistics(engine, known, lease.version.shown_number)
    return JSONResponse({"model_stats": [row]})


def version_statistics(engine: Engine, known: ProtocolStatistics, version: str) -> dict[str, Any]:
    """Return the statistics of a version as Triton's tools read them.

    The stages and executions are those of the whole process.
    """
    counts = known[version]
    # Only these: whatever collects the whole registry computes the tail's statistics, too.
    registry = engine.metrics.registry.restricted_registry([EXECUTIONS, *STAGE_SERIES])
    samples = {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }
    stages = {
        member: {
            "count": int(samples.get((STAGE_SERIES[0], stage), 0)),
            "ns": round(1e9 * samples.get((STAGE_SERIES[1], stage), 0)),
        }
        for member, stage in STAGES.items()
    }
    never = {"count": 0, "ns": 0}
    return {
        "name": served_name(engine),
        "version": version,
        "last_inference": round(1_000 * counts.last_answer),
        "inference_count": counts.images,
        "execution_count": int(samples.get((EXECUTIONS, ""), 0)),
        "inference_stats": {
            "success": never | counts.success,
            "fail": never | counts.fail,
            **stages,
            "cache_hit": never,
            "cache_miss": never,
        },
        "batch_stats": [],
    }


@for_versions("")
async def metadata(name: ModelName, engine: Service, lease: Leased) -> Response:
    """Describe the model's input and outputs."""
    return JSONResponse(
        {
            "name": name,
            "versions": [version.shown_number for version in engine.residents],
            "platform": PLATFORM,
            "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [ANY]}],
            "outputs": [
                {
                    "name": output,
                    "datatype": form.datatype,
                    "shape": [ANY, *width_of(output, form.shape, lease)],
                }
                for output, form in FORMS.items()
            ],
        }
    )


@for_versions("/ready")
async def model_ready(name: ModelName, engine: Service, lease: Leased) -> Response:
    """Say whether the model answers images."""
    scheduler = lease.version.scheduler
    is_ready = engine.obstacle is None and scheduler is not None and not scheduler.broken
    return JSONResponse(
        {"name": name, "ready": is_ready}, 200 if is_ready else NotReadyError.status
    )


@for_versions("/config")
async def config(name: ModelName, engine: Service, lease: Leased) -> Response:
    """Describe the model as Triton's tools expect it: shapes are those of one image."""
    image = {"dims": [1], "reshape": {"shape": []}}
    outputs = [
        {
            "name": output,
            "data_type": CONFIG_TYPES[form.datatype],
            **({"dims": width_of(output, form.shape, lease)} if form.shape else image),
        }
        for output, form in FORMS.items()
    ]
    return JSONResponse(
        {
            "name": name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "version_policy": {"specific": {"versions": [int(lease.version.shown_number)]}},
            "max_batch_size": engine.settings.max_images,
            "input": [{"name": IMAGE, "data_type": "TYPE_STRING", **image}],
            "output": outputs,
        }
    )


def width_of(output: str, shape: Sequence[int], lease: Lease) -> list[int]:
    """Return the shape of an output for one image, with the number of classes if it has all."""
    classes = len(lease.version.bundle.manifest.classes)
    return [classes] if output == "probabilities" else list(shape)


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(
    request: Request,
    name: ModelName,
    engine: Service,
    lease: Chosen,
    deadline: Until,
    writing: Writing,
    known: Statistics,
    group: Thing = None,
    count: Counted = "yes",
) -> Response:
    """Classify the photos of a tensor."""
    start, answered = perf_counter_ns(), 0
    try:
        engine.require_ready()
        async with received(request, engine, lease, deadline, reader(engine.settings)) as body:
            asked, reservation = body
            classification, predictions = await classify_uploads(
                request,
                lease,
                asked.query,
                [Upload(None, image) for image in asked.images],
                reservation,
                group,
                count,
                refuse_nothing if asked.wants("error") else refuse_if_one_failed,
            )
            images = list(map(AnsweredImage, classification.results, predictions))
            labels = lease.version.bundle.manifest.labels
            number, live = lease.version.shown_number, classification.live_prior
            answer = partial(write_answer, asked, name, number, images, labels, live)
            if asked.wants("probabilities"):
                async with writing:
                    response = await asyncio.to_thread(answer)
            else:
                response = answer()
        answered = sum(prediction is not None for prediction in predictions)
        return response
    finally:
        known[lease.version.shown_number].add(answered, perf_counter_ns() - start)


def reader(settings: Settings) -> Callable[[Request, Reservation], Awaitable[InferRequest]]:
    """Return the function that reads and parses a request's body, for `received`."""

    async def read(request: Request, reservation: Reservation) -> InferRequest:
        body = await read_body(request, settings.max_body_bytes, settings.body_seconds)
        size = json_size(request.headers.get(JSON_BYTES), body)
        if len(body) <= SMALL_BODY:
            reservation.extend(parsing_bytes(body, size))
            asked = parse(body, size, settings.max_images)
        else:
            reservation.extend(await asyncio.to_thread(parsing_bytes, body, size))
            asked = await asyncio.to_thread(parse, body, size, settings.max_images)
        if asked.seconds is not None:
            reservation.deadline = reservation.deadline.shortened(asked.seconds)
        return asked

    return read


def refuse_nothing(_: Sequence[Answered]) -> None:
    """Let the output `error` say which images failed, even if all did."""


def refuse_if_one_failed(answered: Sequence[Answered]) -> None:
    """Raise the problem of the first image that failed, with its number."""
    for number, (_, answer) in enumerate(answered):
        if isinstance(answer, PerImageError):
            raise type(answer)(
                f"image {number}, counted from 0: {answer.detail} (with the output `error` the "
                "other images are answered)"
            )


@router.post("/repository/index")
async def index(request: Request, engine: Service) -> Response:
    """List the versions of the store, and whether each can be asked for."""
    document = await small_document(request)
    follower: RoleFollower | None = request.app.state.follower
    if follower is None:
        versions = [
            (engine.champion.shown_number, "READY" if engine.obstacle is None else "LOADING", "")
        ]
    else:
        versions = [
            (str(number), STATES[follower.state(number)], follower.refusal(number) or "")
            for number in await asyncio.to_thread(lambda: follower.store.numbers)
        ]
    only_ready = document.get("ready") is True
    return JSONResponse(
        [
            {"name": served_name(engine), "version": version, "state": state, "reason": reason}
            for version, state, reason in versions
            if state == "READY" or not only_ready
        ]
    )


@repository_router.post("/{name}/load")
async def load(
    request: Request, _name: ModelName, engine: Service, follower: Follower, deadline: Until
) -> Response:
    """Load a version of the store, as challenger unless it is to be champion, and wait for it.

    Without a number it is the newest one. If it is loaded already, nothing changes.
    """
    parameters = await repository_parameters(request, ("version", "role"))
    numbers = await asyncio.to_thread(lambda: follower.store.numbers)
    number, role = parameters.get("version", max(numbers)), parameters.get("role")
    if role not in (None, CHAMPION, CHALLENGER):
        raise MalformedError(f"parameter `role` is neither {CHAMPION} nor {CHALLENGER}")
    if number not in numbers:
        known = ", ".join(map(str, numbers))
        raise NoSuchVersionError(f"the store has no version {number} (it has {known})")
    if role is None and number == engine.champion.number:
        return Response()
    role = role or CHALLENGER
    if number != number_with(role, engine):
        engine.refusals.pop(number, None)
        try:
            if role == CHALLENGER:
                plan = Challenger(version=number, shadow=Shadow())
                await follower.challenge(plan, "", who(request), None)
            else:
                await follower.promote(number, "", who(request), None, classes_change=False)
        except UserError as error:
            raise problem_of(error) from error
    while number != number_with(role, engine):
        waits = role == CHALLENGER or follower.pending == number
        if (reason := follower.refusal(number)) is not None or not waits:
            raise RefusedVersionError(reason or "another change of the roles came first")
        await next_look(deadline, f"version {number} is still being loaded")
    return Response()


@repository_router.post("/{name}/unload")
async def unload(
    request: Request, _name: ModelName, engine: Service, follower: Follower, deadline: Until
) -> Response:
    """Let the challenger go; the champion is never unloaded."""
    parameters = await repository_parameters(request, ("version", "unload_dependents"))
    challenger = number_with(CHALLENGER, engine)
    number = parameters.get("version", challenger)
    if number is None or number == engine.champion.number:
        raise RefusedVersionError(
            "the champion is not unloaded: make another version champion, or stop the service"
        )
    if number != challenger:
        raise NoSuchVersionError(f"version {number} is not loaded")
    try:
        await follower.unchallenge(who(request), None)
    except UserError as error:
        raise problem_of(error) from error
    while number_with(CHALLENGER, engine) == number:
        await next_look(deadline, f"version {number} is still being unloaded")
    return Response()


def number_with(role: str, engine: Engine) -> int | None:
    """Return the number of the version that has a role and is loaded."""
    version = engine.champion if role == CHAMPION else engine.challenger
    return None if version is None else version.number


async def next_look(deadline: Deadline, state: str) -> None:
    """Pause until the next look at the roles; raises `NotReadyError` if no time is left."""
    if deadline.left < POLL_SECONDS:
        raise NotReadyError(f"{state}: the index of the repository tells when it is done")
    await asyncio.sleep(POLL_SECONDS)


async def repository_parameters(request: Request, known: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a request to load or unload; `version` is a number.

    Raises `MalformedError` if one is not `known`.
    """
    document = await small_document(request)
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise MalformedError("`parameters` is not an object")
    for parameter in parameters:
        if parameter not in known:
            raise MalformedError(
                f"parameter `{parameter[:80]}` is not known{did_you_mean(parameter[:80], known)}"
            )
    version = parameters.get("version")
    if version is None:
        return {key: value for key, value in parameters.items() if key != "version"}
    if isinstance(version, bool) or not re.fullmatch(r"[0-9]{1,9}", str(version)):
        raise MalformedError("parameter `version` is not the number of a version")
    return {**parameters, "version": int(version)}


async def small_document(request: Request) -> dict[str, Any]:
    """Return the JSON object that is the body of a request, or an empty one for no body.

    Raises `MalformedError` if it is anything else, and `BodyTooLargeError`.
    """
    engine: Engine = request.app.state.engine
    body = await read_body(request, SMALL_BODY, engine.settings.body_seconds)
    document = parse_json(body) if body else {}
    if not isinstance(document, dict):
        raise MalformedError("the body is not a JSON object")
    return document
