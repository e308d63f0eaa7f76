"""Serve a bundle on a Ray cluster: the whole service in each replica, behind Ray's proxy.

    serve run --app-dir docker ray_serve:build bundle=/bundles/photos replicas=4 threads=2

The arguments of `build` are settings of `taillift serve`; docs/ray.md says which of them do nothing
here, and what Ray does instead.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ray
import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taillift.models.bundle.atomic import atomic_file
from taillift.service.http.app import create_app
from taillift.service.inference.engine import Engine
from taillift.service.monitoring.logs import REQUEST_ID, VALID_ID, new_request_id
from taillift.service.server import listen, with_middleware
from taillift.service.settings import Settings, read_settings


class RequestIdOfRay:
    """ASGI middleware that takes the request's id from Ray's proxy, which also answers it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[REQUEST_ID]
            await send(message)

        if scope["type"] == "http":
            given = Headers(scope=scope).get(REQUEST_ID, "")
            valid = VALID_ID.fullmatch(given.encode("latin-1"))
            scope.setdefault("state", {})["request_id"] = given if valid else new_request_id()
        await self._app(scope, receive, send_without_id)


# The service refuses what would be late with 429, so Ray passes everything on. New replicas are
# ready before old ones end, so a bundle that cannot be served takes the place of nothing.
@serve.deployment(
    max_ongoing_requests=1_000,
    max_surge_percent=100,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class TailliftReplica:
    """One replica: the application of `taillift serve`, and its metrics on a port of its own."""

    def __init__(self, settings: Settings, targets: Path | None) -> None:
        """`targets` is the folder that tells Prometheus where the metrics of each replica are."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._node, self._targets = ray.util.get_node_ip_address(), targets
        self._metrics = listen(self._node, 0)
        port = self._metrics.getsockname()[1]
        self._engine = Engine(settings.model_copy(update={"metrics_port": port}))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        application = create_app(self._engine)
        self._start_engine = application.router.lifespan_context
        application.router.lifespan_context = self._lifespan
        self._app = RequestIdOfRay(with_middleware(application, self._engine))
        return self._app

    @asynccontextmanager
    async def _lifespan(self, application: FastAPI) -> AsyncIterator[None]:
        """Start everything and be ready: Ray sends requests as soon as this has yielded."""
        async with self._start_engine(application):
            while self._engine.obstacle is not None:
                if self._engine.failure is not None:
                    raise self._engine.failure
                await asyncio.sleep(0.05)
            server = uvicorn.Server(uvicorn.Config(self._app, lifespan="off", log_config=None))
            scrapes = asyncio.create_task(server.serve([self._metrics]))
            name = serve.get_replica_context().replica_id.unique_id
            target = None if self._targets is None else self._targets / f"{name}.json"
            if target is not None:
                port = self._engine.settings.metrics_port
                with atomic_file(target) as file:
                    file.write_text(json.dumps([{"targets": [f"{self._node}:{port}"]}]))
            try:
                yield
            finally:
                if target is not None:
                    target.unlink(missing_ok=True)
                server.should_exit = True
                await scrapes

    def check_health(self) -> None:
        """Raise what keeps the service from being ready: Ray then replaces this replica."""
        if (obstacle := self._engine.obstacle) is not None:
            raise RuntimeError(obstacle)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what a policy of autoscaling should go by: requests have one image or many."""
        return {"predicted_wait_seconds": self._engine.predicted_wait}


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application of `replicas` and `targets`, and of settings of the service.

    Raises `UserError` if a setting is wrong.
    """
    given: dict[str, Any] = {"threads": 2, "decode_threads": 2, "host": "0.0.0.0"} | arguments
    replicas, targets = int(given.pop("replicas", 2)), given.pop("targets", None)
    settings = read_settings(**given)
    deployment = TailliftReplica.options(  # type: ignore[attr-defined]
        num_replicas=replicas, ray_actor_options={"num_cpus": settings.threads}
    )
    return deployment.bind(settings, targets and Path(targets).absolute())
