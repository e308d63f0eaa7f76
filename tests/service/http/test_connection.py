"""Limits of a connection, over raw sockets: slow clients, large requests, many connections."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from taillift.models.bundle.folder import read_manifest
from taillift.service.http.connection import Connection
from taillift.service.monitoring.counters import Metrics
from taillift.service.server import listen
from taillift.service.settings import read_settings
from tests.support.palette import CLASSES, SLOW, photo
from tests.support.serving import process, running, sample, top_labels, until

LARGE = 64 * 2**20
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
RED = photo(CLASSES["red"][0])


@pytest.fixture(scope="module")
def hasty(bundle: Path) -> Iterator[httpx.Client]:
    limits = {"max_header_bytes": 2_000, "max_headers": 20}
    with running(bundle, header_seconds=0.3, body_seconds=0.5, **limits) as client:
        yield client


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def read(connection: socket.socket) -> bytes:
    """Return everything that arrives until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def problem(answer: bytes) -> tuple[int, str]:
    """Return status and kind of a problem document, which must be the whole answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    assert int(head.split()[1]) == document["status"]
    return document["status"], document["type"].removeprefix("urn:taillift:problem:")


def rejections(client: httpx.Client, reason: str) -> float:
    return sample(client, "taillift_rejections_total", reason=reason)


def test_headers_that_do_not_end_are_refused(hasty: httpx.Client) -> None:
    before = rejections(hasty, "header_timeout")
    with connected(hasty) as connection:
        connection.sendall(GET)
        assert problem(read(connection)) == (408, "header-timeout")
    assert rejections(hasty, "header_timeout") == before + 1


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("/ HTTP/1.1", 400),
        ("/ HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        ("/ HTTP/2.0\r\nHost: x", 505),
        ("/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked", 501),
        ("/\1 HTTP/1.1\r\nHost: x", 400),
        ("/ HTTP/1.1\r\nHost: x\r\n" + "X-A: b\r\n" * 30, 431),
    ],
)
def test_a_refused_head_is_answered_without_a_body(
    hasty: httpx.Client, lines: str, status: int
) -> None:
    with connected(hasty) as connection:
        connection.sendall(f"HEAD {lines}\r\n\r\n".encode())
        head, _, body = read(connection).partition(b"\r\n\r\n")
    assert (int(head.split()[1]), body) == (status, b"")


def test_what_follows_a_head_and_is_no_request_is_answered_with_a_body(
    hasty: httpx.Client,
) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n\x89PNG")
        first, _, rest = read(connection).partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert problem(rest) == (400, "malformed")


def test_headers_that_trickle_are_refused_although_bytes_keep_coming(
    hasty: httpx.Client,
) -> None:
    with connected(hasty) as connection:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    connection.send(b"X-A: b\r\n")
                except OSError:
                    return

        connection.sendall(GET)
        thread = threading.Thread(target=trickle)
        thread.start()
        assert problem(read(connection)) == (408, "header-timeout")
        stop.set()
        thread.join()


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_on_which_no_request_begins_is_closed(
    hasty: httpx.Client, sent: bytes
) -> None:
    with connected(hasty) as connection:
        connection.sendall(sent)
        assert read(connection) == b""


def test_a_used_connection_that_then_sends_only_line_ends_is_closed(
    hasty: httpx.Client,
) -> None:
    with connected(hasty) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        assert read(connection) == b""


def test_slow_headers_of_a_second_request_do_not_lose_the_answer_to_the_first(
    hasty: httpx.Client,
) -> None:
    body = photo(SLOW)
    with connected(hasty) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body + GET)
        answer = read(connection)
    first, separator, second = answer.partition(b"HTTP/1.1 408")
    assert first.startswith(b"HTTP/1.1 200")
    assert b'"predictions"' in first
    assert problem(separator + second) == (408, "header-timeout")


def test_a_request_may_take_longer_than_its_headers(hasty: httpx.Client) -> None:
    assert hasty.post("/classify", content=photo(SLOW)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        b"X-A: " + b"a" * 3_000 + b"\r\n\r\n",
        b"X-A: " + b"a" * 3_000,
        b"".join(b"X-%d: %s\r\n" % (n, b"a" * 200) for n in range(15)) + b"\r\n",
        b"".join(b"X-%d: b\r\n" % n for n in range(30)) + b"\r\n",
    ],
    ids=["one large", "one without an end", "many large", "too many"],
)
def test_large_headers_are_refused(hasty: httpx.Client, headers: bytes) -> None:
    before = rejections(hasty, "headers_too_large")
    with connected(hasty) as connection:
        connection.sendall(GET)
        time.sleep(0.05)
        for start in range(0, len(headers), 500):
            connection.sendall(headers[start : start + 500])
            time.sleep(0.002)
        assert problem(read(connection)) == (431, "headers-too-large")
    assert rejections(hasty, "headers_too_large") == before + 1


def test_a_long_address_is_large(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"GET /" + b"a" * 3_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert problem(read(connection)) == (431, "headers-too-large")


def test_headers_within_the_limits_pass_and_are_counted_for_each_request(
    hasty: httpx.Client,
) -> None:
    request = GET + b"X-A: " + b"a" * 1_500 + b"\r\n\r\n"
    with connected(hasty) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(1_000).startswith(b"HTTP/1.1 200")
        connection.sendall(request * 3 + GET + b"Connection: close\r\n\r\n")
        assert read(connection).count(b"HTTP/1.1 200") == 4


CHUNKED = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        b"1\r\nx\r\n0\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(10)),
        b"1\r\nx\r\n0\r\n" + b"".join(b"X-%d: b\r\n" % n for n in range(30)),
        b"1\r\nx\r\n0\r\nX: " + b"a" * 3_500,
        b"1\r\nx\r\n0\r\n" + b"a" * 3_500,
        b"1;x=" + b"a" * 3_500,
    ],
    ids=["large", "many", "one without an end", "a name without an end", "a chunk's extension"],
)
def test_trailers_and_the_lines_of_chunks_have_the_limits_of_headers(
    hasty: httpx.Client, rest: bytes
) -> None:
    with connected(hasty) as connection:
        connection.sendall(CHUNKED + b"\r\n" + rest)
        assert problem(read(connection)) == (431, "headers-too-large")


def test_trailers_are_not_taken_for_headers(hasty: httpx.Client) -> None:
    body = b"%x\r\n%s\r\n0\r\nX-Taillift-Count: maybe\r\nX-Request-Id: trailer\r\n\r\n"
    with connected(hasty) as connection:
        connection.sendall(CHUNKED + b"Connection: close\r\n\r\n" + body % (len(RED), RED))
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"trailer" not in answer


def test_only_clients_of_http_1_1_are_told_to_continue(bundle: Path) -> None:
    with running(bundle) as client:  # A hasty one may not wait for the body on a busy machine.
        for version, told in ((b"1.1", True), (b"1.0", False)):
            head = b"POST /classify HTTP/%s\r\nHost: x\r\nExpect: 100-continue\r\n" % version
            with connected(client) as connection:
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(RED))
                if told:
                    assert connection.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.sendall(RED)
                assert connection.recv(1_000).startswith(b"HTTP/1.1 200")


def test_what_is_not_http_is_a_problem_document(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert problem(read(connection)) == (400, "malformed")


@pytest.mark.parametrize(
    "rest",
    [
        b"GET /classes/none HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /classes/none HTTP/1.1\r\nX-A: " + b"a" * 3_000 + b"\r\n\r\n",
        b"GET /classes/none HTTP/1.1\r\nX-A: " + b"a" * 3_000,
        b"hello\r\n\r\n",
    ],
    ids=["a request", "another too large", "one without an end", "what is not HTTP"],
)
def test_what_arrives_with_a_refused_request_is_not_answered(
    hasty: httpx.Client, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    counted = ("headers_too_large", "malformed", "unknown_class")
    before = [rejections(hasty, reason) for reason in counted]
    refused = GET + b"X-A: " + b"a" * 3_000 + b"\r\n\r\n"
    with connected(hasty) as connection:
        connection.sendall(refused[:-2])
        time.sleep(0.05)
        connection.sendall(refused[-2:] + rest)
        assert problem(read(connection)) == (431, "headers-too-large")
    assert [rejections(hasty, reason) for reason in counted] == [before[0] + 1, *before[1:]]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_body_that_trickles_is_refused(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        assert problem(read(connection)) == (408, "body-timeout")


def test_a_body_that_is_not_read_is_not_waited_for(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.sendall(GET + b"Content-Length: 1000000\r\n\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        assert read(connection) == b""
        assert time.monotonic() - start < 5


def test_a_line_end_after_a_body_does_not_lose_the_answer(hasty: httpx.Client) -> None:
    body = photo(SLOW)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with connected(hasty) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.05)
        connection.sendall(b"\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Send one answer that is larger than any buffer of the system."""
    headers = [(b"content-length", str(LARGE).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def test_an_answer_that_is_read_slowly_is_sent_completely(bundle: Path) -> None:
    settings = read_settings(bundle=bundle, body_seconds=0.5)
    protocol = partial(Connection, settings, Metrics(read_manifest(bundle), "cpu"))
    config = uvicorn.Config(
        large, http=cast("type[asyncio.Protocol]", protocol), lifespan="off", log_level="warning"
    )
    server, listener = uvicorn.Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with socket.create_connection(listener.getsockname()[:2], timeout=10) as connection:
        connection.sendall(GET + b"\r\n")
        taken = 0
        while part := connection.recv(2**20):
            taken += len(part)
            time.sleep(len(part) / (LARGE / 3))
    server.should_exit = True
    thread.join(timeout=10)
    assert taken > LARGE


def test_an_answer_that_is_not_read_is_dropped(hasty: httpx.Client) -> None:
    with connected(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        script = b"GET /swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(script * 20)

        def closed() -> bool:
            try:
                connection.send(b"x")
            except OSError:
                return True
            return False

        until(closed)


def test_connections_over_the_limit_are_refused_and_the_others_served(bundle: Path) -> None:
    with running(bundle, max_connections=4, header_seconds=5) as client, ExitStack() as stack:
        client.get("/healthz")
        held = [stack.enter_context(connected(client)) for _ in range(3)]
        with connected(client) as one_more:
            assert problem(read(one_more)) == (429, "too-many-connections")
        assert top_labels(client.post("/classify", content=RED)) == ["red"]
        assert rejections(client, "too_many_connections") == 1
        held[0].sendall(GET + b"Connection: close\r\n\r\n")
        assert read(held[0]).startswith(b"HTTP/1.1 200")
        with connected(client) as one_more:
            one_more.sendall(GET + b"Connection: close\r\n\r\n")
            assert read(one_more).startswith(b"HTTP/1.1 200")


def test_prometheus_sees_a_service_that_is_full(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--max-connections", "2", "--metrics-port", str(port))
    with process(bundle, *flags) as (_, client), ExitStack() as stack:
        stack.enter_context(connected(client))
        metrics = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        with connected(client) as one_more:
            assert problem(read(one_more)) == (429, "too-many-connections")
        assert rejections(stack.enter_context(metrics), "too_many_connections") == 1
        assert metrics.get("/healthz").status_code == 200


def test_many_slow_senders_do_not_keep_the_others_out(hasty: httpx.Client) -> None:
    with ThreadPoolExecutor(50) as pool:

        def hold(_: int) -> tuple[int, str]:
            with connected(hasty) as connection:
                connection.sendall(GET)
                return problem(read(connection))

        slow = [pool.submit(hold, number) for number in range(50)]
        assert top_labels(hasty.post("/classify", content=RED)) == ["red"]
        assert {future.result() for future in slow} == {(408, "header-timeout")}
