"""The process: a socket, a signal, an exit status."""

import asyncio
import os
import signal
import socket
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from prometheus_client import disable_created_metrics
from starlette.types import ASGIApp

from taillift.models.errors import UserError
from taillift.service.http.app import create_app
from taillift.service.http.connection import Connection
from taillift.service.http.middleware import MetricsPort, SecurityHeaders
from taillift.service.inference.engine import Engine
from taillift.service.settings import Settings


class Server(uvicorn.Server):
    """Not ready from the first signal on, and at an end where the engine cannot start."""

    def __init__(self, engine: Engine) -> None:
        connection = partial(Connection, engine.settings, engine.metrics)
        super().__init__(
            uvicorn.Config(
                SecurityHeaders(_application(engine)),
                http=cast("type[asyncio.Protocol]", connection),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=engine.settings.drain_seconds,
            )
        )
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.drain()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._engine.failure is not None


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, answer what was accepted, and return.

    Where the device or a decoding hangs, the process ends with 1 after `drain_seconds`.

    Raises `UserError` where the bundle, the provider, the address, the API keys or the settings
    are wrong.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    engine = Engine(settings)
    server = Server(engine)
    listener = listen(settings.host, settings.port)
    sockets = [listener]
    if settings.metrics_port is not None:
        sockets.append(listen(settings.host, settings.metrics_port))
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    manifest = engine.bundle.manifest
    print(f"{manifest.name} {manifest.version}: http://{address} (Ctrl-C stops it)", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        server.run(sockets=sockets)
    finally:
        if engine.hung:
            # An orderly end would wait for the thread that hangs.
            os._exit(1)
    if engine.failure is not None:
        raise engine.failure


def _application(engine: Engine) -> ASGIApp:
    app, port = create_app(engine), engine.settings.metrics_port
    return app if port is None else MetricsPort(app, port)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # uvicorn raises the signal again when it has drained; then all is done and well.
    raise SystemExit(0)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `UserError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another host or port, "
            "or stop what listens there"
        ) from error
