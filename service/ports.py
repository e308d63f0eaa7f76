"""Two ports: one for clients, one for whoever watches."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ProblemDocument
from service.handlers import respond

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
