"""ASGI middleware: the request's id and log line, the security headers, and the metrics port."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taillift.service.http.access import HEALTH
from taillift.service.http.handlers import MEDIA_TYPE, UNEXPECTED, respond
from taillift.service.http.version_lease import BELOW
from taillift.service.monitoring.logs import REQUEST_ID, AccessRecord, log_access, request_id
from taillift.service.problems import CLOSING, InternalError, NotReadyError, ProblemDocument
from taillift.service.settings import AccessLevel

# Pages load only what the service itself serves, run no inline scripts and are shown in no frame.
# Inline styles are allowed because the documentation page sets styles from its script.
POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeaders:
    """ASGI middleware that adds the security headers, `HEADERS`, to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


# Where `Connection` puts, into the scope's state, why the rest of a body cannot be had.
PROBLEM: Final = "problem"


class RequestLog:
    """ASGI middleware that puts the request's id on its answer and its log lines, and logs it.

    The id is the one that `Connection` has put into the scope's state. A body whose rest cannot be
    had raises the `ServiceError` that is there.
    """

    def __init__(
        self, app: ASGIApp, level: AccessLevel, count_answer: Callable[[int], None]
    ) -> None:
        """`count_answer` is called with the status of each answer to images."""
        self._app = app
        self._level = level
        self._count_answer = count_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, state = perf_counter(), scope["state"]
        status = bytes_in = bytes_out = 0
        # Not reset afterwards: the server logs a failure of the request in the same task.
        request_id.set(state["request_id"])

        async def counting_receive() -> Message:
            nonlocal bytes_in
            message = await receive()
            if (problem := state.get(PROBLEM)) is not None:
                raise problem
            bytes_in += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = state["request_id"]
            elif scope["method"] != "HEAD":
                bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counting_receive, counting_send)
        except asyncio.CancelledError:
            # The server gives up what is not answered at the end of a drain.
            if not status:
                late = NotReadyError(CLOSING)
                answer = respond(late.document(), late.status, {"Connection": "close"})
                await answer(scope, counting_receive, counting_send)
        except BaseException:
            if not status:
                problem = InternalError(UNEXPECTED)
                answer = respond(problem.document(), problem.status, problem.headers)
                await answer(scope, counting_receive, counting_send)
            raise
        finally:
            if scope["method"] == "POST" and "lease" in state:
                self._count_answer(status)
            client = scope["client"]
            record = AccessRecord(
                method=scope["method"],
                path=scope["raw_path"].decode("ascii", "backslashreplace"),
                status=status,
                seconds=perf_counter() - start,
                bytes_in=bytes_in,
                bytes_out=bytes_out,
                client=client and client[0],
                key=state.get("key"),
            )
            log_access(record, self._level)


class HeadAsGet:
    """ASGI middleware that answers HEAD as GET; the server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class ProblemsAsJson:
    """ASGI middleware that calls problem documents plain JSON below /v2, as its clients expect.

    The SDK of KServe shows the text of an error only then.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_as_json(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type") == MEDIA_TYPE:
                    headers["content-type"] = "application/json"
            await send(message)

        is_protocol = scope.get("path", "").startswith("/v2/")
        await self._app(scope, receive, send_as_json if is_protocol else send)


class BelowPath:
    """ASGI middleware that takes the path of the setting `root_path` off a request's address.

    A proxy may have done so already. Links in pages are relative, so nothing else needs the path.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._below = f"{root_path}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._below) > 1 and scope.get("path", "").startswith(self._below):
            start = len(self._below) - 1
            scope = {**scope, "path": scope["path"][start:], "raw_path": scope["raw_path"][start:]}
        await self._app(scope, receive, send)


def no_such_address() -> Response:
    """Return the answer for an address that does not exist."""
    document = ProblemDocument(
        type="about:blank", title="Not Found", status=404, detail="Not Found"
    )
    return respond(document, document.status)


class ExactAddresses:
    """ASGI middleware that knows no address with a line end behind it, but for those of labels.

    Routes take it for the address without, which the checks by address do not: `/metrics` would be
    on every port.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_inexact = path.endswith("\n") and not path.startswith(BELOW)
        await (no_such_address() if is_inexact else self._app)(scope, receive, send)


METRICS: Final = "/metrics"


class MetricsPort:
    """ASGI middleware that answers /metrics on `port` only, and only it and health checks there.

    The port of the clients can then be open to the world, and this one to Prometheus.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in HEALTH:
            here = scope["server"][1] == self._port
            if (scope["path"] == METRICS) != here:
                app = no_such_address()
        await app(scope, receive, send)
