"""Each request has an id, in its answer and in every log line that belongs to it."""

import io
import json
import logging
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from taillift.service.inference.engine import Engine
from taillift.service.monitoring.logs import (
    AccessRecord,
    BoundedHandler,
    JsonFormatter,
    RequestIdFilter,
    TextFormatter,
    log_access,
    request_id,
)
from taillift.service.settings import AccessLevel, read_settings
from tests.support.palette import CLASSES, POISON, photo
from tests.support.serving import process, running, serving, until

RED = photo(CLASSES["red"][0])
KEY = "a-key-of-the-tests-0123"
MADE = re.compile("[0-9a-f]{32}")


def sent(value: str | bytes) -> dict[bytes, bytes]:
    return {b"X-Request-Id": value.encode() if isinstance(value, str) else value}


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def raw_answer(client: httpx.Client, request: bytes) -> tuple[int, str, dict[str, Any]]:
    """Send bytes; return the status, the id in the header and the problem document."""
    parts = []
    with connected(client) as connection:
        connection.sendall(request)
        while part := connection.recv(65_536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    (value,) = re.findall(rb"\r\nx-request-id: (\S+)", head.lower())
    return int(head.split()[1]), value.decode(), json.loads(body)


@pytest.mark.parametrize("value", ["a", "3f1c-Q/=+~!", "x" * 128])
def test_a_valid_id_is_returned(client: httpx.Client, value: str) -> None:
    for path in ("/healthz", "/", "/docs.js", "/swagger/swagger-ui.css", "/model", "/metrics"):
        response = client.get(path, headers=sent(value))
        assert (response.status_code, response.headers["x-request-id"]) == (200, value)
    response = client.post("/classify", content=RED, headers=sent(value))
    assert (response.status_code, response.headers["x-request-id"]) == (200, value)
    assert "request_id" not in response.json()


def test_without_one_each_request_gets_its_own(client: httpx.Client) -> None:
    made = [client.get("/healthz").headers["x-request-id"] for _ in range(20)]
    assert all(MADE.fullmatch(value) for value in made)
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    "value",
    [b"", b"x" * 129, b"two words", b"a\tb", "é".encode("latin-1"), "é".encode(), b"\x7f"],
    ids=["empty", "too long", "a space", "a tab", "Latin-1", "UTF-8", "DEL"],
)
def test_an_invalid_id_is_replaced(client: httpx.Client, value: bytes) -> None:
    response = client.get("/nowhere", headers=sent(value))
    assert MADE.fullmatch(response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.fixture(scope="module")
def strict(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY} the camera at the gate\n")
    limits = {"max_header_bytes": 2_000, "header_seconds": 0.3, "max_body_bytes": 100_000}
    with running(bundle, keys_file=keys, access_log="all", **limits) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "method", "path", "content"),
    [
        (400, "POST", "/classify?top_k=none", RED),
        (400, "POST", "/classify", b""),
        (404, "GET", "/classes/none", b""),
        (404, "GET", "/nowhere", b""),
        (405, "GET", "/classify", b""),
        (413, "POST", "/classify", bytes(100_001)),
        (415, "POST", "/classify", b"text"),
        (422, "POST", "/classify", photo(CLASSES["red"][0], "JPEG")[:-50]),
        (422, "POST", "/classify", photo(CLASSES["red"][0], size=(700, 20))),
        (500, "POST", "/classify", photo(POISON)),
    ],
)
def test_every_problem_document_has_the_id(
    strict: httpx.Client, status: int, method: str, path: str, content: bytes
) -> None:
    headers = {"X-Request-Id": "mine", "X-API-Key": KEY}
    response = strict.request(method, path, content=content, headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == "mine"


def test_a_document_about_several_images_has_the_id_once(client: httpx.Client) -> None:
    files = [("images", ("a", b"text")), ("images", ("b", b"text"))]
    document = client.post("/classify", files=files, headers=sent("mine")).json()
    assert document["request_id"] == "mine"
    assert [set(image) for image in document["images"]] == [
        {"type", "title", "status", "detail"}
    ] * 2


def test_a_refusal_without_a_key_has_the_id(strict: httpx.Client) -> None:
    response = strict.get("/model", headers=sent("mine"))
    assert (response.status_code, response.headers["x-request-id"]) == (401, "mine")
    assert response.json()["request_id"] == "mine"


def test_the_answer_of_a_service_that_is_not_ready_has_the_id(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_ready(_: Engine) -> None: ...

    monkeypatch.setattr(Engine, "start", never_ready)
    with serving(Engine(read_settings(bundle=bundle, port=0))) as client:
        for method, path in (("GET", "/readyz"), ("POST", "/classify")):
            response = client.request(method, path, content=RED, headers=sent("mine"))
            assert (response.status_code, response.headers["x-request-id"]) == (503, "mine")
            assert response.json()["request_id"] == "mine"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_the_answer_to_an_unexpected_failure_has_the_id(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    async def fails(*_: object) -> None:
        raise failure("a fault of the tests")

    monkeypatch.setattr("fastapi.routing.APIRoute.handle", fails)
    settings = read_settings(bundle=bundle, port=0, access_log="off")
    with serving(Engine(settings)) as client:
        response = client.get("/model", headers=sent("mine"))
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
    assert response.json()["type"] == "urn:taillift:problem:internal"
    assert response.json()["request_id"] == "mine"


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (408, b"GET /healthz HTTP/1.1\r\nHost: x\r\n%s"),
        (431, b"GET /healthz HTTP/1.1\r\nHost: x\r\n%sX-A: " + b"a" * 3_000 + b"\r\n\r\n"),
        (400, b"GET /healthz HTTP/1.1\r\nHost: x\r\n%sno header\r\n\r\n"),
    ],
)
def test_a_refusal_of_the_connection_has_the_id(
    strict: httpx.Client, status: int, request_bytes: bytes
) -> None:
    # The parser reports a header when the next one begins.
    answer = raw_answer(strict, request_bytes % b"X-Request-Id: mine\r\nX-B: b\r\n")
    assert (answer[0], answer[1], answer[2]["request_id"]) == (status, "mine", "mine")
    answer = raw_answer(strict, request_bytes % b"")
    assert answer[0] == status
    assert MADE.fullmatch(answer[1])
    assert answer[2]["request_id"] == answer[1]


def test_an_earlier_request_of_the_connection_does_not_lend_its_id(strict: httpx.Client) -> None:
    with connected(strict) as connection:
        get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n%s\r\n"
        connection.sendall(get % b"X-Request-Id: mine\r\n")
        assert b"x-request-id: mine\r\n" in connection.recv(65_536).lower()
        connection.sendall(get % b"")
        assert b"x-request-id: mine\r\n" not in connection.recv(65_536).lower()
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = connection.recv(65_536).lower()
    assert answer.startswith(b"http/1.1 400")
    assert b"x-request-id: mine" not in answer


def test_pipelined_requests_keep_their_ids(strict: httpx.Client) -> None:
    with connected(strict) as connection:
        get = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n"
        connection.sendall(b"".join(get % number for number in range(5)))
        answers = b""
        while answers.count(b'"request_id"') < 5:
            answers += connection.recv(65_536)
    assert re.findall(rb'"request_id":"(\d)"', answers) == [b"0", b"1", b"2", b"3", b"4"]
    assert re.findall(rb"x-request-id: (\d)", answers.lower()) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_connection_over_the_limit_and_the_metrics_port_have_one_too(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--max-connections", "2", "--metrics-port", str(port))
    with process(bundle, *flags) as (_, client), ExitStack() as stack:
        stack.enter_context(connected(client))
        status, value, document = raw_answer(client, b"")
        assert (status, document["request_id"]) == (429, value)
        assert MADE.fullmatch(value)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as watcher:
            for path, expected in (("/metrics", 200), ("/readyz", 200), ("/model", 404)):
                response = watcher.get(path, headers=sent("mine"))
                assert (response.status_code, response.headers["x-request-id"]) == (
                    expected,
                    "mine",
                )
            assert response.json()["request_id"] == "mine"


def test_many_requests_at_once_do_not_mix_their_ids(
    strict: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(RequestIdFilter())

    def ask(number: int) -> None:
        headers = {"X-Request-Id": f"id-{number}", "X-API-Key": KEY}
        if number % 3 == 0:
            response = strict.get(f"/classes/none-{number}", headers=headers)
        else:
            body = RED if number % 3 == 1 else photo(POISON)
            response = strict.post(
                f"/classify?top_k={1 + number % 5}", content=body, headers=headers
            )
        assert response.headers["x-request-id"] == f"id-{number}"
        assert response.status_code == (404, 200, 500)[number % 3]
        if response.status_code != 200:
            assert response.json()["request_id"] == f"id-{number}"

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(120)))
    until(lambda: len(accesses(caplog)) == 120)
    for record in accesses(caplog):
        number = int(vars(record)["request_id"].removeprefix("id-"))
        access = vars(record)["access"]
        assert access["status"] == (404, 200, 500)[number % 3]
        if number % 3 == 0:
            assert access["path"] == f"/classes/none-{number}"
    failures = [r for r in caplog.records if "the model failed on an image" in r.getMessage()]
    failed = [vars(record)["request_id"] for record in failures]
    assert sorted(failed) == sorted(f"id-{number}" for number in range(2, 120, 3))


def accesses(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "taillift.access"]


def test_an_access_record_has_the_sizes_the_client_and_the_name_of_the_key(
    strict: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    response = strict.post("/classify?prior=train", content=RED, headers={"X-API-Key": KEY})
    strict.head("/healthz")
    strict.get("/model")
    raw_answer(strict, b"GET /long?secret HTTP/1.1\r\nX-A: " + b"a" * 3_000 + b"\r\n\r\n")
    until(lambda: len(accesses(caplog)) == 4)
    first, second, third, fourth = (vars(record)["access"] for record in accesses(caplog))
    assert 0 < first.pop("seconds") < 10
    assert first == {
        "method": "POST",
        "path": "/classify",
        "status": 200,
        "bytes_in": len(RED),
        "bytes_out": len(response.content),
        "client": "127.0.0.1",
        "key": "the camera at the gate",
    }
    assert (second["method"], second["bytes_out"], second["key"]) == ("HEAD", 0, None)
    assert (third["path"], third["status"], third["key"]) == ("/model", 401, None)
    assert (fourth["method"], fourth["path"], fourth["status"]) == (None, "/long", 431)
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("level", "logged"),
    [("off", []), ("errors", [500, 503]), ("all", [200, 404, 429, 500, 503, 503])],
)
def test_the_setting_decides_which_requests_are_logged(
    level: AccessLevel, logged: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    answers = [("/", 200), ("/x", 404), (None, 429), ("/a", 500), ("/a", 503), ("/readyz", 503)]
    for path, status in answers:
        log_access(AccessRecord("GET", path, status, 0.1, 0, 0, "::1"), level)
    assert [vars(record)["access"]["status"] for record in accesses(caplog)] == logged


def lines_of_a_service(
    bundle: Path, capfd: pytest.CaptureFixture[str], *flags: str
) -> tuple[list[str], httpx.Response]:
    """Return the log of a service after an answer, a failure, a 404 and a malformed request."""
    with process(bundle, *flags) as (server, client):
        client.post("/classify", content=RED, headers=sent("good"))
        failed = client.post("/classify", content=photo(POISON), headers=sent("failed"))
        client.get("/no%0Awhere%1B[31m?query", headers=sent("forged"))
        raw_answer(client, b"GET / HTTP/1.1\r\nX-Request-Id: broken\r\nX-B: b\r\nno header\r\n\r\n")
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pytest.fail("the service does not end")
    return capfd.readouterr().err.splitlines(), failed


def test_text_lines_have_the_id(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines, failed = lines_of_a_service(bundle, capfd, "--access-log", "all")
    assert failed.json()["request_id"] == "failed"
    assert "ERROR: the model failed on an image request_id=failed" in lines
    assert "WARNING: Invalid HTTP request received. request_id=broken" in lines
    (good,) = [line for line in lines if line.endswith(" request_id=good")]
    assert re.fullmatch(
        r"INFO: request method=POST path=/classify status=200 seconds=[\d.]+ bytes_in=\d+ "
        r"bytes_out=\d+ client=127.0.0.1 request_id=good",
        good,
    )
    (forged,) = [line for line in lines if line.endswith(" request_id=forged")]
    assert " path=/no%0Awhere%1B[31m status=404 " in forged
    assert all(re.match("INFO|WARNING|ERROR|  ", line) for line in lines)


def test_json_lines_have_the_id(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("--access-log", "all", "--log-format", "json")
    lines, _ = lines_of_a_service(bundle, capfd, *flags)
    records = [json.loads(line) for line in lines]
    for record in records:
        assert {"time", "level", "logger", "message", "request_id"} <= set(record)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"])
    of_failed = [record for record in records if record["request_id"] == "failed"]
    assert [record["message"] for record in of_failed] == [
        "the model failed on an image",
        "request",
    ]
    assert "Traceback" in of_failed[0]["traceback"]
    assert of_failed[1]["status"] == 500
    assert of_failed[1]["level"] == "WARNING"
    (good,) = [record for record in records if record["request_id"] == "good"]
    assert (good["logger"], good["level"], good["method"]) == ("taillift.access", "INFO", "POST")


def test_by_default_only_errors_are_logged(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines, _ = lines_of_a_service(bundle, capfd)
    requests = [line for line in lines if ": request " in line]
    assert len(requests) == 1
    assert requests[0].startswith("WARNING: request method=POST path=/classify status=500 ")


def test_failed_requests_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The seconds are those of the records: three of them, with 50, 20 and 1 failures."""
    levels: list[AccessLevel] = ["errors", "all"]
    for level in levels:
        caplog.clear()
        log_access(AccessRecord("GET", "/a", 500, 0.1, 0, 0, "::1"), level)
        (failure,) = (vars(record) for record in accesses(caplog))
        handler = BoundedHandler(stream := io.StringIO())
        for second, count in ((7, 50), (8, 20), (9, 1)):
            for number in range(count):
                created = second + number / count
                handler.handle(logging.makeLogRecord({**failure, "created": created}))
        other = {"msg": "something else", "created": 9.5}
        for _ in range(30):
            handler.handle(logging.makeLogRecord(other))
        handler.tell()
        lines = stream.getvalue().splitlines()
        told = ["30 more failed requests within a second are not listed"]
        written = 20 * ["request"] + told + 20 * ["request"] + ["request"]
        assert lines == (written if level == "errors" else 71 * ["request"]) + 30 * [other["msg"]]


def test_what_was_left_out_is_told_at_the_end() -> None:
    handler = BoundedHandler(stream := io.StringIO())
    for _ in range(23):
        handler.handle(logging.makeLogRecord({"msg": "request", "created": 7.0, "bounded": True}))
    handler.tell()
    handler.tell()
    assert stream.getvalue().splitlines()[20:] == [
        "3 more failed requests within a second are not listed"
    ]


FORGED = "/a\nERROR: forged\r\x1b[31m\u2028\u202e\x85 status=200"


def formatted(formatter: logging.Formatter, message: str, **extra: object) -> str:
    logger = logging.getLogger("tests.forged")
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, (), None, extra=extra)
    return formatter.format(record)


def test_no_text_forges_a_line() -> None:
    access = {"path": FORGED, "client": 'a" key=b', "status": 200}
    line = formatted(TextFormatter(), FORGED, access=access)
    assert line.isprintable()
    assert r"/a\nERROR: forged\r\x1b[31m\u2028\u202e\x85 status=200" in line
    assert r'path="/a\nERROR: forged\r\u001b[31m\u2028\u202e\u0085 status=200"' in line
    assert r'client="a\" key=b" status=200' in line
    text = formatted(JsonFormatter(), FORGED, access=access)
    assert text.isprintable()
    assert json.loads(text)["message"] == FORGED
    assert json.loads(text)["path"] == FORGED


def test_a_traceback_is_indented_below_its_line() -> None:
    logger = logging.getLogger("tests.forged")
    try:
        raise ValueError("what\nERROR: forged\x1b[31m")
    except ValueError as error:
        failure = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "failed", (), failure)
    first, *rest = TextFormatter().format(record).split("\n")
    assert first == "ERROR: failed"
    assert rest[-2:] == ["  ValueError: what", r"  ERROR: forged\x1b[31m"]
    assert all(line.startswith("  ") for line in rest)


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_one_place_gives_one_traceback_a_minute(
    formatter: type[TextFormatter] | type[JsonFormatter],
) -> None:
    logger, form = logging.getLogger("tests.often"), formatter()

    def logged(seconds: float) -> str:
        try:
            int("x")
        except ValueError as error:
            failure = (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "failed", (), failure)
        record.created = seconds
        return form.format(record)

    assert "Traceback" in logged(1_000)
    for seconds in (1_000, 1_030, 1_059):
        assert "Traceback" not in logged(seconds)
        assert "ValueError: invalid literal" in logged(seconds)
    assert "Traceback" in logged(1_061)
    assert "Traceback" not in logged(1_100)


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
@pytest.mark.parametrize("text", ["x" * 10**6, "tag 1\n" * 10**5, "\x1b" * 10**5])
def test_a_record_is_short_whatever_a_file_makes_of_it(
    formatter: type[TextFormatter] | type[JsonFormatter], text: str
) -> None:
    logger, form = logging.getLogger("tests.long"), formatter()
    try:
        raise ValueError(text)
    except ValueError as error:
        failure = (type(error), error, error.__traceback__)
    for cause in (None, failure, failure):
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), cause)
        assert len(form.format(record)) < 500_000


def test_a_line_outside_of_requests_has_no_id() -> None:
    logger = logging.getLogger("tests.none")
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "started", (), None)
    request_id.set(None)
    assert RequestIdFilter().filter(record)
    assert TextFormatter().format(record) == "WARNING: started"
    assert json.loads(JsonFormatter().format(record))["request_id"] is None


def test_the_description_has_the_header_and_the_member(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert operations
    for operation in operations:
        (parameter,) = [
            entry for entry in operation["parameters"] if entry["name"] == "X-Request-Id"
        ]
        assert (parameter["in"], parameter["required"]) == ("header", False)
        for response in operation["responses"].values():
            assert response["headers"]["X-Request-Id"]["required"]
            for kind, content in response.get("content", {}).items():
                if kind == "application/problem+json":
                    assert "request_id" in json.dumps(content["schema"])
