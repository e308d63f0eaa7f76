"""What a browser is told about every answer."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taillift.service.http.handlers import respond
from taillift.service.problems import ProblemDocument

# Pages load what the service itself serves, run no script that stands in them, and are shown in
# no frame. Styles set from scripts are what the documentation page is made with.
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
    """ASGI middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


METRICS: Final = "/metrics"
HEALTH: Final = frozenset({"/healthz", "/readyz"})


class MetricsPort:
    """ASGI middleware that answers /metrics on `port` only, and there nothing but that and health.

    So the port of the clients can be opened to the world, and this one to Prometheus.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] != "http" or self._serves(scope) else NOT_FOUND
        await app(scope, receive, send)

    def _serves(self, scope: Scope) -> bool:
        here = scope["server"][1] == self._port
        return scope["path"] in HEALTH or (scope["path"] == METRICS) == here


NOT_FOUND: Final = respond(
    ProblemDocument(type="about:blank", title="Not Found", status=404, detail="Not Found"), 404
)
