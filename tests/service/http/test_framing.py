"""Where requests begin and end: offers to upgrade, pipelining, broken framing, early refusals."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support import serving
from tests.support.palette import CLASSES, SLOW, photo
from tests.support.raw import answers, connected, exchange, read_to_end
from tests.support.serving import process, running, sample, top_labels, until

RED = photo(CLASSES["red"][0])
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"
SCRIPT = b"GET /swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
JAVA = Path(__file__).parents[2] / "support" / "Classify.java"


def post(*headers: bytes, body: bytes = RED) -> bytes:
    length = b"Content-Length: %d" % len(body)
    lines = [b"POST /classify HTTP/1.1", b"Host: localhost", length, *headers]
    return b"\r\n".join([*lines, b"", body])


def best(body: bytes) -> str:
    label: str = json.loads(body)["results"][0]["predictions"][0]["label"]
    return label


@pytest.mark.parametrize(
    "offer",
    [
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"],
        [b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"],
        [b"Upgrade: TLS/1.0, HTTP/1.1", b"Connection: keep-alive, UPGRADE"],
        [b"upgrade: h2c", b"upgrade: irc/6.9", b"connection: Upgrade"],
    ],
)
def test_an_offer_to_upgrade_is_ignored(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, offer: list[bytes]
) -> None:
    request = post(*offer)
    first, second, last = exchange(client, request + request + GET + CLOSE)
    assert (first.status, second.status, last.status) == (200, 200, 200)
    assert best(first.body) == best(second.body) == "red"
    assert not caplog.records


def test_an_offer_to_upgrade_may_come_byte_by_byte_with_chunks_and_an_id(
    client: httpx.Client,
) -> None:
    head = (
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nX-Request-Id: mine\r\n"
        b"Connection: close, Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with connected(client) as connection:
        for byte in head:
            connection.sendall(bytes([byte]))
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(RED), RED))
        (answer,) = answers(read_to_end(connection))
    assert (answer.status, best(answer.body)) == (200, "red")
    assert answer.headers["x-request-id"] == "mine"


def test_connect_is_refused_once(client: httpx.Client) -> None:
    (answer,) = exchange(client, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n\x16\x03\x01")
    assert answer.status == 400


def test_curl_with_http2_classifies(client: httpx.Client, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None or b"HTTP2" not in subprocess.check_output([curl, "--version"]):
        pytest.skip("curl with HTTP/2 is not installed (apt-get install curl)")
    (tmp_path / "red.jpg").write_bytes(RED)
    url = f"{client.base_url}/classify"
    for body in (["-F", "images=@red.jpg"], ["--data-binary", "@red.jpg"]):
        command = [curl, "-sS", "--http2", "--noproxy", "*", "-w", "\n%{http_code}", *body, url]
        text = subprocess.check_output(command, cwd=tmp_path, timeout=60)
        answer, _, status = text.rpartition(b"\n")
        assert (status, best(answer)) == (b"200", "red")


def test_javas_client_as_it_comes_classifies(client: httpx.Client, tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("no JDK is installed (apt-get install default-jdk-headless)")
    (tmp_path / "red.jpg").write_bytes(RED)
    subprocess.run(["javac", "-d", tmp_path, JAVA], check=True, timeout=120)
    photo_file = str(tmp_path / "red.jpg")
    command = ["java", "-cp", str(tmp_path), "Classify", str(client.base_url), photo_file]
    text = subprocess.check_output(command, timeout=120, text=True)
    statuses = re.findall(r"^(\d+) \{.*\"label\":\"red\"", text, re.MULTILINE)
    assert statuses == ["200", "200", "200"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"-1\r\nabc", 400),
        (b"0x5\r\nabcde\r\n0\r\n\r\n", 400),
        (b"5\nabcde\n0\n\n", 400),
        (b"2\r\nabcde\r\n0\r\n\r\n", 400),
        (b"ffffffffffffffffff\r\nabc", 400),
        (b"3\r\nabc\r\n\r\n0\r\n\r\n", 400),
        (b" 3\r\nabc\r\n", 400),
        (b"3\r\nabc0\r\n\r\n", 400),
    ],
)
def test_broken_chunks_are_refused_at_once_and_once(
    client: httpx.Client, body: bytes, status: int
) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for sent in (head + body, head + b"1\r\nx\r\n" + body):
        (answer,) = exchange(client, sent)  # To its end: the service closes the connection.
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert json.loads(answer.body)["type"] == "urn:taillift:problem:malformed"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /model HTTP/1.1\r\n", 400),
        (b"GET /model HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /model HTTP/1.1\r\nhost: localhost\r\nHOST: evil.example\r\n", 400),
        (b"GET /model HTTP/1.1\r\nHost: local host\r\n", 400),
        (b"GET /model HTTP/1.1\r\nHost: localhost/x\r\n", 400),
        (b"GET /model HTTP/1.1\r\nHost: a@localhost\r\n", 400),
        (b"GET /model HTTP/2.0\r\nHost: localhost\r\n", 505),
        (b"GET /model HTTP/3.0\r\nHost: localhost\r\n", 505),
        (b"GET /model HTTP/0.9\r\nHost: localhost\r\n", 505),
        (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET http://localhost:99999/model HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", 505),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n",
            501,
        ),
        (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: br,chunked\r\n", 501),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n",
            501,
        ),
        (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n", 400),
        (b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n", 400),
        (
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n",
            400,
        ),
        (b"GET /healthz HTTP/1.0\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", 200),
    ],
)
def test_a_head_is_judged_by_its_version_its_host_and_its_coding(
    client: httpx.Client, head: bytes, status: int
) -> None:
    (answer,) = exchange(client, head + b"\r\n")
    assert answer.status == status


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("size", "count", "status"),
    [(1, 9_000, 415), (1, 40_000, 400), (30, 20_000, 400), (63, 12_000, 400), (64, 12_000, 415)],
)
def test_a_body_may_come_in_so_many_tiny_chunks_only(
    client: httpx.Client, size: int, count: int, status: int
) -> None:
    """415: it was read to its end, and is not an image."""
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    body = count * chunk(b"x" * size) + b"0\r\n\r\n"
    (answer,) = exchange(client, head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert answer.status == status
    if status == 400:
        assert "send larger chunks, or a Content-Length" in json.loads(answer.body)["detail"]


def test_what_is_pipelined_is_answered_in_order(client: httpx.Client) -> None:
    labels = list(CLASSES)
    coding = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = []
    for label in labels:
        image = photo(CLASSES[label][0])
        chunks = b"".join(chunk(image[at : at + 97]) for at in range(0, len(image), 97))
        parts += [post(body=image), coding + chunks + b"0\r\n\r\n"]
    *classified, last = exchange(client, b"\r\n".join(parts) + GET + CLOSE)
    assert [best(answer.body) for answer in classified] == [one for one in labels for _ in "12"]
    assert last.body == b'{"status":"alive"}'


def test_hundreds_of_pipelined_requests_are_all_answered(client: httpx.Client) -> None:
    assert [one.status for one in exchange(client, 700 * (GET + b"\r\n") + GET + CLOSE)] == [
        200
    ] * 701


@pytest.fixture(scope="module")
def hasty(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, header_seconds=0.5, body_seconds=20) as client:
        yield client


@pytest.mark.parametrize("stray", [b"\r\n", b"\r\n\r\n\r\n", b"G", GET])
@pytest.mark.parametrize("late", [b"G", b"GET / HTTP/1.1\r\nX-A: ", b"\r"])
def test_a_head_that_has_begun_is_always_timed(
    hasty: httpx.Client, stray: bytes, late: bytes
) -> None:
    pending = 6
    with connected(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.sendall(pending * SCRIPT + stray)
        time.sleep(0.7)  # Longer than header_seconds, with an unread answer.
        text = b""
        while text.count(b"HTTP/1.1 200") < pending:
            text += connection.recv(1 << 18)
        # Closed after header_seconds, perhaps before this comes; the socket waits for 20 seconds.
        with suppress(ConnectionError):
            connection.sendall(late)
            read_to_end(connection)


def test_pipelined_requests_behind_an_unread_answer_take_little_memory(bundle: Path) -> None:
    tiny = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with process(bundle) as (server, client):
        status = Path(f"/proc/{server.pid}/status")

        def resident() -> int:
            found = re.search(r"VmRSS:\s+(\d+)", status.read_text())
            assert found
            return int(found[1])

        before = resident()
        held = []
        for _ in range(5):
            connection = socket.create_connection((client.base_url.host, client.base_url.port), 20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(6 * SCRIPT)
            connection.setblocking(False)
            held.append(connection)
            left, end = tiny * 40_000, time.monotonic() + 1
            while left and time.monotonic() < end:
                try:
                    left = left[connection.send(left[: 1 << 16]) :]
                except BlockingIOError:
                    time.sleep(0.02)
        assert client.get("/healthz").status_code == 200
        # An unread answer of 1.4 MB and at most 0.4 MiB of requests each; parsed they were 42 MiB.
        assert resident() - before < 5 * 6 * 1024
        for connection in held:
            connection.close()


@pytest.mark.parametrize("size", [3_000_000, 12_000_000])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /nowhere HTTP/1.1", 404),
        (b"POST /model HTTP/1.0", 405),
        (b"POST /classify?top_k=none HTTP/1.1", 400),
        (b"POST /classify HTTP/1.0", 413),
        (b"POST /classify/ HTTP/1.1", 404),
        (b"PUT / HTTP/1.1", 405),
    ],
)
def test_an_early_refusal_reaches_a_client_that_sends_on(
    small: httpx.Client, line: bytes, status: int, size: int
) -> None:
    lines = [line, b"Host: localhost", b"Connection: close", b"Content-Length: %d" % size]
    (answer,) = exchange(small, b"\r\n".join([*lines, b"", bytes(size)]))
    assert answer.status == status


def test_an_early_refusal_reaches_a_client_that_sends_chunks(small: httpx.Client) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    body = 100 * chunk(bytes(65_536)) + b"0\r\n\r\n"
    (answer,) = exchange(small, head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert answer.status == 413


def test_a_large_head_with_a_body_behind_it_is_told_so(small: httpx.Client) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 40_000
    (answer,) = exchange(small, head + b"\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000))
    assert answer.status == 431


@pytest.fixture(scope="module")
def small(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_body_bytes=100_000) as client:
        yield client


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize("colour", [CLASSES["blue"][0], SLOW])
def test_a_client_that_closes_its_sending_side_gets_the_answer(
    client: httpx.Client, colour: tuple[int, int, int], pause: float
) -> None:
    with connected(client) as connection:
        connection.sendall(GET + b"\r\n" + post(body=photo(colour)))
        time.sleep(pause)
        connection.shutdown(socket.SHUT_WR)
        first, second = answers(read_to_end(connection))
    assert (first.status, second.status) == (200, 200)
    assert json.loads(second.body)["results"][0]["predictions"]


def test_half_a_request_before_the_end_gets_no_answer(client: httpx.Client) -> None:
    for half in (post()[:-1], GET, b"G", b""):
        with connected(client) as connection:
            connection.sendall(half)
            connection.shutdown(socket.SHUT_WR)
            assert read_to_end(connection) == b""


def test_a_client_that_is_gone_is_told_from_one_that_has_closed_its_sending_side(
    bundle: Path,
) -> None:
    with running(bundle) as client:
        with connected(client) as connection:
            connection.sendall(post(body=photo(SLOW)))
            until(lambda: sample(client, "taillift_stage_seconds_count", stage="decode") == 1)
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        until(lambda: sample(client, "taillift_rejections_total", reason="disconnected") == 1)


def test_an_idle_connection_is_kept_as_long_as_the_setting_says(bundle: Path) -> None:
    with running(bundle, keep_alive_seconds=1) as client, connected(client) as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(1_000).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)
        assert connection.recv(1_000) == b""


def test_a_connection_is_kept_for_longer_than_load_balancers_keep_theirs(
    client: httpx.Client,
) -> None:
    with connected(client) as connection:
        connection.sendall(GET + b"\r\n")
        connection.recv(1_000)
        time.sleep(6)
        connection.sendall(post())
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/metrics", "/classes", "/page/dom.js"]
)
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path not in ("/metrics", "/classes"):
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_head_is_refused_with_the_status_of_get(client: httpx.Client) -> None:
    for path, status in (("/classify", 405), ("/nowhere", 404), ("/classes/none", 404)):
        assert client.head(path).status_code == status


@pytest.mark.parametrize(
    "path", ["/classify/", "/confidence/", "/metrics/", "/docs/", "/healthz/", "/model/", "/page"]
)
def test_nothing_redirects(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, path)
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x-unknown"])
def test_a_compressed_body_is_refused_with_the_reason(client: httpx.Client, encoding: str) -> None:
    answer = client.post("/classify", content=RED, headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert "Content-Encoding" in answer.json()["detail"]


def test_a_body_that_says_it_is_not_compressed_is_taken(client: httpx.Client) -> None:
    headers = {"Content-Encoding": "Identity"}
    assert top_labels(client.post("/classify", content=RED, headers=headers)) == ["red"]


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (b"", b'form-data; name="images"\r\nContent-Type: image/jpeg'),
        (b"", b'form-data; name="images"\r\nContent-Type: application/octet-stream'),
        (b"", b"form-data; name=images\r\nX-A: b\r\ncontent-type: IMAGE/PNG; a=b"),
        (b"", b'form-data; name="images"; filename=""\r\nContent-Type: image/jpeg'),
        (b"This is a message in MIME format.\r\n", b'form-data; name="images"; filename="a"'),
        (b"--other\r\n--\r\n\r\n", b'form-data; name="images"; filename="a"'),
        (b"\r\n\r\n", b'form-data; name="images"; filename="a"'),
        (b"x" * 200_000 + b"\r\n", b'form-data; name="images"; filename="a"'),
    ],
)
def test_a_form_may_have_a_preamble_and_files_without_names(
    client: httpx.Client, before: bytes, part: bytes
) -> None:
    body = before + b"--b\r\nContent-Disposition: " + part + b"\r\n\r\n" + RED + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert top_labels(client.post("/classify", content=body, headers=headers)) == ["red"]
    pieces = iter(body[at : at + 1000] for at in range(0, len(body), 1000))
    assert top_labels(client.post("/classify", content=pieces, headers=headers)) == ["red"]


@pytest.mark.parametrize("body", [b"", b"--a\r\n", b"no boundary at all", b"x--b\r\n\r\n--b--\r\n"])
def test_a_form_without_its_boundary_is_malformed(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/classify", content=body, headers=headers).status_code == 400


def test_pythons_client_gets_the_answer_to_a_body_that_is_too_large(small: httpx.Client) -> None:
    connection = http.client.HTTPConnection(small.base_url.host, small.base_url.port, timeout=20)
    connection.request("POST", "/classify", bytes(30_000_000), {"Connection": "close"})
    assert connection.getresponse().status == 413
    connection.close()


def test_few_file_descriptors_mean_fewer_connections_and_a_line(
    bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    monkeypatch.setattr(serving, "SERVE", [prlimit, "--nofile=90:90", *serving.SERVE])
    with process(bundle) as (server, client):
        opened = [
            socket.create_connection((client.base_url.host, client.base_url.port), 20)
            for _ in range(120)
        ]
        assert client.get("/page/page.js").status_code == 200
        assert top_labels(client.post("/classify", content=RED)) == ["red"]
        assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 90
        refused = answers(read_to_end(opened[-1]))
        assert [one.status for one in refused] in ([429], [])
        for connection in opened:
            connection.close()
    assert "max_connections is 38 instead of 800" in capfd.readouterr().err
