"""Who may ask: hosts, pages of other origins, and addresses that a proxy has changed."""

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

from taillift.service.server import listen
from tests.support.palette import CLASSES, photo
from tests.support.raw import exchange
from tests.support.serving import running, sample, top_labels

RED = photo(CLASSES["red"][0])
PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[httpx.Client]:
    origins = f"{PAGE}, http://localhost:3000"
    hosts = "photos.example.org, *.lab.example.org"
    with running(bundle, cors_origins=origins, allowed_hosts=hosts) as client:
        yield client


def status(client: httpx.Client, host: str, path: str = "/model") -> int:
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    (answer,) = exchange(client, request.encode())
    return answer.status


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.1",
        "[2001:db8::1]:8000",
        "EVIL.example.",
    ],
)
def test_a_rebound_name_reads_nothing(client: httpx.Client, host: str) -> None:
    before = sample(client, "taillift_rejections_total", reason="unknown_host")
    for path in ("/model", "/classes", "/metrics", "/", "/page/page.js", "/nowhere"):
        assert status(client, host, path) == 421
    after = sample(client, "taillift_rejections_total", reason="unknown_host")
    assert after == before + 6
    assert status(client, host, "/readyz") == status(client, host, "/healthz") == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:8", "127.9.9.9", "[::1]:80", "gpu1"],
)
def test_the_names_of_this_machine_are_its_own(client: httpx.Client, host: str) -> None:
    assert status(client, host) == 200


def test_allowed_hosts_are_answered_and_no_others(shared: httpx.Client) -> None:
    for host in ("photos.example.org", "a.lab.example.org:80", "b.c.lab.example.org", "localhost"):
        assert status(shared, host) == 200
    for host in ("example.org", "lab.example.org", "xphotos.example.org", "evillab.example.org"):
        assert status(shared, host) == 421


def test_a_service_for_the_world_answers_for_any_host(bundle: Path) -> None:
    with running(bundle, host="0.0.0.0") as client:
        assert status(client, "photos.example.org") == 200


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "file://"},
    {"Origin": "http://["},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_origin_sends_no_photos(
    client: httpx.Client, headers: dict[str, str]
) -> None:
    before = client.get("/classes").json()["window"]["predictions"]
    for path in ("/classify", "/confidence"):
        answer = client.post(path, content=RED, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["type"] == "urn:taillift:problem:foreign-origin"
    assert client.get("/classes").json()["window"]["predictions"] == before


def test_the_services_own_page_and_programs_send_photos(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://photos.example.org", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://photos.example.org", "X-Forwarded-Host": "photos.example.org"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert top_labels(client.post("/classify", content=RED, headers=headers)) == ["red"]


def test_an_allowed_origin_may_send_and_read(shared: httpx.Client) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    names = "x-api-key, content-type, x-taillift-count, inference-header-content-length"
    asked["Access-Control-Request-Headers"] = names
    preflight = shared.options("/classify", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    answer = shared.post("/classify", content=RED, headers=headers)
    assert top_labels(answer) == ["red"]
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    other = shared.post("/classify", content=RED, headers={"Origin": "https://app.example.com"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_without_the_setting_no_page_may_read(client: httpx.Client) -> None:
    answer = client.get("/classes", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain; version=x",
        "application/openmetrics-text; version=x",
        "application/openmetrics-text; version=1.0.0-",
        "text/plain;version=; q=a",
        "application/openmetrics-text; version=99999999999",
        ",;,=",
        "\xff",
    ],
)
def test_metrics_are_given_whatever_is_accepted(client: httpx.Client, accept: str) -> None:
    answer = client.get("/metrics", headers={b"Accept": accept.encode("latin-1")})
    assert answer.status_code == 200
    assert "taillift_ready 1.0" in answer.text


def test_the_documentation_calls_the_service_below_the_path_of_a_proxy(
    client: httpx.Client,
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.fail("the page is tested in a real browser: run `apt-get install chromium`")

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            below = self.path.removeprefix("/ml/taillift")
            answer = client.get(below) if below != self.path else httpx.Response(404)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/ml/taillift"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{base}/docs")
        box = "[id$='model_model_get']"
        for part in (box, f"{box} .try-out__btn", f"{box} .execute"):
            page.click(part)
        page.wait_for_selector(f"{box} .request-url")
        called = page.inner_text(f"{box} .request-url").split()[-1]
        browser.close()
    server.shutdown()
    server.server_close()
    assert called == f"{base}/model"


@pytest.mark.parametrize("label", ["one\nline", "\n", "a/b\r\n/c", "line\n"])
def test_a_label_may_hold_any_text(client: httpx.Client, label: str) -> None:
    answer = client.get("/classes/" + re.sub("(?s).", lambda one: f"%{ord(one[0]):02x}", label))
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:taillift:problem:unknown-class"


@pytest.mark.parametrize(
    ("host", "reached"),
    [("::", ["127.0.0.1", "::1"]), ("0.0.0.0", ["127.0.0.1"]), ("::1", ["::1"])],
)
def test_all_interfaces_are_those_of_both_families(host: str, reached: list[str]) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), 5).close()
            except OSError:
                assert address not in reached
            else:
                assert address in reached
