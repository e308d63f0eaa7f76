"""Traces of requests for an OpenTelemetry collector, which need the extra `otel`.

The spans of requests are FastAPI's own. `Metrics.record_span` makes those of the stages in them.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from fastapi.telemetry import TelemetryConfig
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

NAME: Final = "taillift"
UNNAMED: Final = "unknown_service"
# What a request's query says about its photos.
CONTENTS: Final = frozenset({"classes", "counts"})
QUERY: Final = "url.query"
# Time at the end for what was not sent yet; a collector that hangs must not hold up a restart.
FLUSH_SECONDS: Final = 2.0


class QueryRedaction(SpanProcessor):
    """Takes out of each request's span what the query says about its photos."""

    def on_start(
        self,
        span: Span,
        parent_context: Context | None = None,  # noqa: ARG002
    ) -> None:
        query = (span.attributes or {}).get(QUERY)
        if isinstance(query, str):
            pairs = parse_qsl(query, keep_blank_values=True)
            kept = [(name, "REDACTED" if name in CONTENTS else value) for name, value in pairs]
            span.set_attribute(QUERY, urlencode(kept))


class Tracing:
    """The way of spans to the collector, with a queue of `OTEL_BSP_MAX_QUEUE_SIZE`.

    Raises `ValueError` if such a variable is wrong.
    """

    def __init__(self, version: str, exclude: Callable[[MutableMapping[str, Any]], bool]) -> None:
        """`exclude` tells of an ASGI scope whether it is not traced."""
        # One line for each attempt that fails is enough.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        resource = Resource.create({SERVICE_VERSION: version})
        if str(resource.attributes[SERVICE_NAME]).startswith(UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(QueryRedaction())
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer(NAME, version)
        self.config = TelemetryConfig(
            tracer_provider=self._provider,
            metrics=False,  # Prometheus has them, and the log has the exceptions.
            logs=False,
            operation_spans=False,
            auto_configure=False,
            exclude=exclude,
        )

    async def close(self) -> None:
        """Send what waits, for `FLUSH_SECONDS` at most."""
        # A thread of the event loop would not do: at its end the loop waits for its threads.
        sending = Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_SECONDS)
