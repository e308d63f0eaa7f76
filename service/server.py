"""The process that serves: its sockets, its signals and its exit status."""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import sys
from functools import partial
from time import monotonic
from types import FrameType
from typing import Final, cast

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from starlette.types import ASGIApp

from taillift.models.errors import UserError, end_in_one_line
from taillift.models.terminal import printable
from taillift.service.http.access import Access
from taillift.service.http.app import create_app
from taillift.service.http.connection import LINGERING, Connection
from taillift.service.http.middleware import (
    BelowPath,
    HeadAsGet,
    MetricsPort,
    ProblemsAsJson,
    RequestLog,
    SecurityHeaders,
)
from taillift.service.inference.engine import Engine
from taillift.service.inference.memory import limit_arenas, shorten_collections
from taillift.service.inference.role_follower import RoleFollower
from taillift.service.monitoring.logs import logging_to_stderr
from taillift.service.settings import Settings, cores

logger = logging.getLogger(__name__)

# Open files besides the connections: the program's own, and what the libraries open now and then.
SPARE_FILES: Final = 48


class Server(uvicorn.Server):
    """HTTP server that is not ready from the first signal on, and ends if the engine fails.

    It closes its port `notice_seconds` later, or at the second signal.
    """

    def __init__(self, engine: Engine) -> None:
        settings = engine.settings
        application = create_app(engine)
        self._follower: RoleFollower | None = application.state.follower
        connection = partial(Connection, settings, engine.metrics)
        super().__init__(
            uvicorn.Config(
                with_middleware(application, engine),
                http=cast("type[asyncio.Protocol]", connection),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                forwarded_allow_ips=settings.trusted_proxies,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )
        self._engine = engine
        self._closes_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._engine.obstacle is None:
            self._captured_signals.append(sig)
            self._engine.announce_end()
            self._closes_at = monotonic() + self._engine.settings.notice_seconds
        else:
            self._engine.drain()
            super().handle_exit(sig, frame)

    def read_again(self) -> None:
        """Read the priors and the roles of the store again."""
        self._engine.read_priors_again()
        if self._follower is not None:
            self._follower.look_again()

    async def on_tick(self, counter: int) -> bool:
        if monotonic() >= self._closes_at:
            self._engine.drain()
            self.should_exit = True
        return await super().on_tick(counter) or self._engine.failure is not None


def with_middleware(application: FastAPI, engine: Engine) -> ASGIApp:
    """Return the application behind what every server of it needs.

    The server puts the request's id into the scope's state, as `request_id`.
    """
    settings = engine.settings
    app: ASGIApp = application
    if settings.metrics_port is not None:
        app = MetricsPort(app, settings.metrics_port)
    app = HeadAsGet(Access(app, settings, engine.metrics))
    app = ProblemsAsJson(RequestLog(app, settings.access_log, engine.count_answer))
    return BelowPath(SecurityHeaders(app), settings.root_path or "")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, answer what was accepted, and return.

    If the device or a decoder hangs, the process ends with status 1 after `drain_seconds`.

    Raises `UserError` if the bundle, the provider, the address, the API keys or the settings are
    wrong.
    """
    with logging_to_stderr(settings.log_format):
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if settings.store is not None:
            limit_arenas(cores())
        shorten_collections()
        engine = Engine(with_enough_files(settings))
        server = Server(engine)
        listener = listen(settings.host, settings.port)
        sockets = [listener]
        if settings.metrics_port is not None:
            sockets.append(listen(settings.host, settings.metrics_port))
        host, port = listener.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        manifest = engine.bundle.manifest
        title = printable(f"{manifest.name} {manifest.version}")
        print(f"{title}: http://{address} (Ctrl-C stops it)", flush=True)
        for precision, variant in manifest.variants.items():
            if settings.precision in ("auto", precision):
                reason = variant.usual_ensemble_reason
                print(f"{precision}, ensemble if none is asked for: {reason}")
        for line in engine.labels.remarks:
            print(line)
        sys.stdout.flush()

        def leave(number: int, frame: FrameType | None) -> None:
            """Exit with status 0: uvicorn raises the signal again after every answer."""
            if not server.started:
                end_in_one_line(number, frame)
            raise SystemExit(0)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, leave)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda _number, _frame: server.read_again())
        try:
            server.run(sockets=sockets)
        finally:
            if engine.hung:
                # An orderly exit would wait for the thread that hangs.
                os._exit(1)
        if engine.failure is not None:
            raise engine.failure


def with_enough_files(settings: Settings) -> Settings:
    """Raise this process's limit of open files to what the connections need.

    If that is not possible, the settings that are returned have fewer connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = round((1 + LINGERING) * settings.max_connections) + SPARE_FILES
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit == needed:
        return settings
    connections = max(1, int((limit - SPARE_FILES) / (1 + LINGERING)))
    logger.warning(
        "max_connections is %d instead of %d: a process may only open %d files here (ulimit -n)",
        connections,
        settings.max_connections,
        limit,
    )
    return settings.model_copy(update={"max_connections": connections})


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise `UserError` if the address is not available.

    The address :: means all interfaces, with IPv4 and IPv6.
    """
    try:
        both = host == "::" and socket.has_dualstack_ipv6()
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(
            address[4][:2], family=address[0], backlog=2048, dualstack_ipv6=both
        )
    except OSError as error:
        # Python repeats the address in brackets.
        reason, _, _ = str(error.strerror).partition(" (while")
        raise UserError(
            f"cannot listen on {host} port {port}: {reason}; choose another host or port, "
            "or stop the program that listens there"
        ) from error
