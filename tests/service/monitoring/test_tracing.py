"""Traces, as a real OTLP collector receives them, and collectors that are dead or hang."""

import asyncio
import logging
import socket
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from taillift.service.http.app import is_untraced, open_tracing
from taillift.service.monitoring.tracing import Tracing
from tests.support.palette import CLASSES, new_photo
from tests.support.serving import form, running, top_labels, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
STAGES = ["read", "decode", "queue", "infer", "post"]
RED, BLUE = CLASSES["red"][0], CLASSES["blue"][0]


class Collector(ThreadingHTTPServer):
    """A collector that keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            server: Collector

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    self.server.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture(autouse=True)
def no_exporter_is_left() -> Iterator[None]:
    """Wait for the threads that send: a later test would meet them."""
    yield
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith("Otel")])


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    name_collector(monkeypatch, f"http://127.0.0.1:{collector.server_port}")
    yield collector
    collector.shutdown()
    collector.server_close()
    thread.join()


def name_collector(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")


def attributes(span: Span) -> dict[str, object]:
    found: dict[str, object] = {}
    for one in span.attributes:
        value = one.value
        if value.HasField("array_value"):
            found[one.key] = [item.string_value for item in value.array_value.values]
        else:
            found[one.key] = value.string_value or value.int_value
    return found


def test_a_sampled_request_has_its_stages_below_the_clients_span(
    bundle: Path, collector: Collector
) -> None:
    with running(bundle) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/", "/docs", "/v2/health/ready"):
            assert client.get(path, headers=SAMPLED).status_code == 200
        query = {"classes": "red,blue", "top_k": "1", "ensemble": "full"}
        files = form(("secret.png", new_photo(RED)))
        answer = client.post("/classify", files=files, params=query, headers=SAMPLED)
        assert top_labels(answer) == ["red"]
        assert client.post("/classify", content=b"x", headers=UNSAMPLED).status_code == 415
        version = client.get("/model", headers=UNSAMPLED).json()["version"]
        until(lambda: len(collector.spans) >= 6)
    server, *stages = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in stages] == STAGES
    assert server.name == "POST /classify"
    assert server.parent_span_id.hex() == PARENT
    for span in stages:
        assert (span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id)
        assert server.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= server.end_time_unix_nano
    found = attributes(server)
    assert found["taillift.version"] == version
    assert (found["taillift.images"], found["taillift.views"]) == (1, 5)
    assert found["taillift.decision"] == ["none"]
    assert found["url.query"] == "classes=REDACTED&top_k=1&ensemble=full"
    assert found["http.response.status_code"] == 200
    sent = b"".join(collector.bodies)
    assert b"taillift" in sent
    for content in (b"red", b"blue", b"secret"):
        assert content not in sent


def test_every_image_has_its_stages_whoever_asks(bundle: Path, collector: Collector) -> None:
    with running(bundle) as client:
        images = form(*[(str(number), new_photo(BLUE)) for number in range(3)])
        assert client.post("/confidence", files=images, headers=SAMPLED).status_code == 200
        photo = {**SAMPLED, "Inference-Header-Content-Length": "0"}
        infer = "/v2/models/palette/infer"
        assert client.post(infer, content=new_photo(RED), headers=photo).status_code == 200
        until(lambda: len(collector.spans) == 18)
    by_request: dict[str, list[str]] = {}
    servers = {
        span.span_id: span.name for span in collector.spans if span.kind == span.SPAN_KIND_SERVER
    }
    for span in collector.spans:
        if span.span_id not in servers:
            by_request.setdefault(servers[span.parent_span_id], []).append(span.name)
    assert {name: sorted(stages) for name, stages in by_request.items()} == {
        "POST /confidence": sorted(["read", "post", *STAGES[1:4] * 3]),
        "POST /v2/models/{name}/infer": sorted(STAGES),
    }


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "http://collector:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[collector"}, "http://collector:4318"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_BSP_MAX_QUEUE_SIZE": "1"},
            "max_queue_size",
        ),
    ],
)
def test_without_a_collector_that_can_be_used_there_are_no_traces(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    words: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert open_tracing("0") is None
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_without_the_extra_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "taillift.service.monitoring.tracing")
    assert open_tracing("0") is None
    assert "install taillift[otel]" in caplog.text


def test_fastapi_sends_nothing_by_itself(
    bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    with running(bundle) as client:
        assert top_labels(client.post("/classify", content=new_photo(RED))) == ["red"]
    assert collector.bodies == []


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a collector that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        name_collector(monkeypatch, endpoint)
        yield endpoint


def ask_all(client: httpx.Client, count: int) -> None:
    for _ in range(count):
        answer = client.post("/classify", content=new_photo(RED), headers=SAMPLED)
        assert top_labels(answer) == ["red"]


@pytest.mark.usefixtures("hanging")
@pytest.mark.parametrize("state", ["dead", "hanging"])
def test_a_collector_that_does_not_answer_costs_no_request_anything(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    state: str,
) -> None:
    if state == "dead":
        name_collector(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("taillift.service.monitoring.tracing.FLUSH_SECONDS", 0.2)
    with running(bundle) as client:
        ask_all(client, 10)
        assert client.get("/readyz").status_code == 200
    assert not [record for record in caplog.records if record.levelno < logging.ERROR]


@pytest.mark.usefixtures("hanging")
def test_spans_that_cannot_be_sent_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64")
    tracing = Tracing("0", is_untraced)
    tracing.tracer.start_span("read").end()
    tracemalloc.start()
    try:
        for _ in range(5_000):  # They would take seven megabytes.
            tracing.tracer.start_span("read").end()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        asyncio.run(tracing.close())
    assert taken < 3_000_000
