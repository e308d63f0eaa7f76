"""Problem documents: every exception becomes one, with the id of its request."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.logs import request_id
from taillift.service.problems import (
    DISCONNECTED,
    DeadlineError,
    InternalError,
    MalformedError,
    OutOfMemoryError,
    PerImageError,
    ProblemDocument,
    ServiceError,
)

MEDIA_TYPE: Final = "application/problem+json"

# The status of a request whose client has gone. Nobody receives it; proxies log the same number.
CLIENT_GONE: Final = 499

UNEXPECTED: Final = "unexpected error: the service's log has more under this request_id"


def respond(
    document: ProblemDocument, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `document` as an answer, with the id of the current request.

    Clients of the Open Inference Protocol read its member `error`.
    """
    content = {
        **document.model_dump(),
        "error": document.detail,
        "request_id": request_id.get(),
    }
    return JSONResponse(content, status, headers, MEDIA_TYPE)


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer every exception of `app` with a problem document and count it in `metrics`."""

    async def on_problem(_: Request, error: ServiceError) -> Response:
        if isinstance(error, DeadlineError):
            metrics.count_missed_deadline(error.stage)
        if not isinstance(error, PerImageError):  # These are counted for each image.
            metrics.count_rejection(error.reason)
        let_go(error)
        return respond(error.document(), error.status, error.headers)

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        details = "; ".join(map(parameter_detail, error.errors()))
        return await on_problem(request, MalformedError(details))

    async def on_http_exception(_: Request, error: HTTPException) -> Response:
        title = HTTPStatus(error.status_code).phrase
        document = ProblemDocument(
            type="about:blank", title=title, status=error.status_code, detail=str(error.detail)
        )
        return respond(document, error.status_code, error.headers)

    async def on_disconnect(_: Request, error: ClientDisconnect) -> Response:
        metrics.count_rejection(DISCONNECTED)
        let_go(error)
        return Response(status_code=CLIENT_GONE)

    async def on_memory_error(request: Request, _error: MemoryError) -> Response:
        detail = "there was no memory for this request: send it again, or send fewer images"
        return await on_problem(request, OutOfMemoryError(detail))

    async def on_exception(request: Request, _error: Exception) -> Response:
        return await on_problem(request, InternalError(UNEXPECTED))

    app.exception_handler(ServiceError)(on_problem)
    app.exception_handler(RequestValidationError)(on_validation_error)
    app.exception_handler(HTTPException)(on_http_exception)
    app.exception_handler(ClientDisconnect)(on_disconnect)
    app.exception_handler(MemoryError)(on_memory_error)
    app.exception_handler(Exception)(on_exception)


def let_go(error: Exception) -> None:
    """Take from an error of a client what it was raised by, which has the request's images.

    The tasks that have failed with it are in there, too: all would wait for the garbage collector.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


def parameter_detail(error: Mapping[str, Any]) -> str:
    """Return one sentence for one of pydantic's errors about a parameter of a request."""
    kinds = {"header": "header", "path": "part of the address"}
    kind = kinds.get(error["loc"][0], "query parameter")
    name = ".".join(str(part) for part in error["loc"][1:])[:80]
    if error["type"] == "extra_forbidden":
        return f"unknown query parameter `{name}`"
    return f"{kind} `{name}`: {error['msg']}, not {str(error['input'])[:80]!r}"
