"""Who may ask: which hosts this service answers for, and which web pages may use it.

A browser sends what a page of any origin tells it to, and lets a page read whatever has the page's
own host name, even if that name now leads to this machine (DNS rebinding). API keys are in `auth`.
"""

import re
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from taillift.service.http.handlers import respond
from taillift.service.http.oip_request import JSON_BYTES
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.logs import READINESS, REQUEST_ID
from taillift.service.problems import ForeignOriginError, ServiceError, UnknownHostError
from taillift.service.settings import Settings, parts

ANY: Final = "*"
# What probes ask says nothing about the model, and probes name a host as they please.
HEALTH: Final = frozenset({"/healthz", "/v2/health/live", *READINESS})
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# How a browser describes a request of the service's own page, or of no page.
OWN_SITES: Final = frozenset({"same-origin", "none"})
SENT: Final = (
    "Authorization",
    "Content-Type",
    "X-API-Key",
    "X-Request-Timeout",
    "X-Canary-Key",
    "X-Taillift-Group",
    "X-Taillift-Count",
    JSON_BYTES,
    REQUEST_ID,
)
ANSWERED: Final = (REQUEST_ID, "Retry-After", "X-Taillift-Version", JSON_BYTES)

HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
PORT: Final = re.compile(r":[0-9]*$")
DEFAULT_PORT: Final = re.compile(r":(80|443)?$")


def is_host(value: bytes) -> bool:
    """Tell whether the value of a header Host is a host with or without a port (RFC 9110, 7.2)."""
    return HOST.fullmatch(value) is not None


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address, without brackets, always means the machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Access:
    """ASGI middleware that refuses hosts and web pages that are not this service's own."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = {host.lower() for host in parts(settings.allowed_hosts)}
        if not self._hosts:
            bound = settings.host.lower()
            self._hosts = {bound} if is_loopback(bound) else {ANY}
        self._origins = {origin.lower() for origin in parts(settings.cors_origins)}
        if self._origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=list(self._origins),
                allow_methods=["GET", "POST"],
                allow_headers=SENT,
                expose_headers=ANSWERED,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            self._metrics.count_rejection(problem.reason)
            await respond(problem.document(), problem.status)(scope, receive, send)

    def _problem(self, scope: Scope) -> ServiceError | None:
        if scope["path"] in HEALTH:
            return None
        headers = Headers(scope=scope)
        host = PORT.sub("", headers.get("host", "")).strip("[]").rstrip(".").lower()
        if not self.answers_for(host):
            return UnknownHostError(
                f"the service does not answer for the host {host[:80]!r}: ask for one of its own, "
                "or add this one to the setting allowed_hosts"
            )
        if scope["method"] not in READING and self.is_foreign(headers):
            return ForeignOriginError(
                "a web page of another origin may not send this: add its origin to the setting "
                "cors_origins to allow it"
            )
        return None

    def answers_for(self, host: str) -> bool:
        """Tell whether `host`, in lower case without a port, is one of the service's own.

        Besides `allowed_hosts` these are the names that always mean this machine and those without
        a dot, which nobody can register and lead here.
        """
        if ANY in self._hosts or host in self._hosts or is_loopback(host):
            return True
        is_name = ":" not in host and "." not in host
        return is_name or any(
            allowed.startswith("*.") and host.endswith(allowed[1:]) for allowed in self._hosts
        )

    def is_foreign(self, headers: Headers) -> bool:
        """Tell whether a browser sends this for a page that is not the service's own or allowed."""
        origin = headers.get("origin")
        if origin is not None and self._origins & {ANY, origin.lower()}:
            return False
        if (site := headers.get("sec-fetch-site")) is not None:
            return site not in OWN_SITES
        if origin is None:
            return False  # Not a browser: every browser names the origin of what it posts.
        # The second is what a proxy was asked for. No page of another origin can set either.
        own = {headers.get(name, "").lower() for name in ("host", "x-forwarded-host")} - {""}
        page = origin.lower().partition("://")[2]
        return DEFAULT_PORT.sub("", page) not in {DEFAULT_PORT.sub("", one) for one in own}
