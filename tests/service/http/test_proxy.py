"""The service behind a real nginx: below a path, under another name, with forwarded addresses."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from tests.support.palette import CLASSES, photo
from tests.support.serving import running, top_labels, until
from tests.support.stack import NGINX, free_port, nginx

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

RED = photo(CLASSES["red"][0])
PAGE, ELSEWHERE = "https://photos.example.org", "https://app.example.org"
FORWARDED = "203.0.113.9"
# Below /photos/ nginx takes the path off, and below /photos/whole/ another one leaves it on. The
# service sees the name of the upstream in Host.
SERVERS = """
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 32m;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto https;
    location /photos/ {{ proxy_pass http://127.0.0.1:{service}/; }}
    location /named/ {{
      proxy_set_header X-Forwarded-Host photos.example.org;
      proxy_pass http://127.0.0.1:{service}/;
    }}
  }}
  server {{
    listen 127.0.0.1:{other_port};
    location / {{ proxy_pass http://127.0.0.1:{service}; }}
  }}
"""


@pytest.fixture(scope="module")
def proxied(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Two clients of nginx that ask below /photos, once without and once with the path."""
    settings = {"root_path": "/photos", "access_log": "all", "cors_origins": ELSEWHERE}
    port, other_port = free_port(), free_port()
    with running(bundle, **settings) as service:
        servers = SERVERS.format(service=service.base_url.port, port=port, other_port=other_port)
        with (
            nginx(tmp_path_factory.mktemp("nginx"), servers, port, other_port),
            httpx.Client(base_url=f"http://127.0.0.1:{port}/photos", trust_env=False) as first,
            httpx.Client(
                base_url=f"http://127.0.0.1:{other_port}/photos", trust_env=False
            ) as second,
        ):
            yield first, second


@pytest.mark.parametrize("taken_off", [True, False])
def test_the_service_works_below_a_path(
    proxied: tuple[httpx.Client, httpx.Client], taken_off: bool
) -> None:
    client = proxied[0 if taken_off else 1]
    assert top_labels(client.post("/classify", content=RED)) == ["red"]
    assert client.get("/classes/red").json()["label"] == "red"
    assert client.get("/model").status_code == client.get("/readyz").status_code == 200
    for page in ("/", "/docs"):
        text = client.get(page).text
        links = re.findall(r'(?:src|href)="([^"#:]+)"', text)
        assert links
        for link in links:
            assert client.get(f"/{link}").status_code == 200, link
    assert client.get("/openapi.json").json()["servers"] == [{"url": "."}]
    assert client.get("/nothing").json()["error"] == "Not Found"


@pytest.mark.parametrize("taken_off", [True, False])
def test_tritonclient_finds_the_model_below_a_path(
    proxied: tuple[httpx.Client, httpx.Client], taken_off: bool
) -> None:
    url = str(proxied[0 if taken_off else 1].base_url).removeprefix("http://").rstrip("/")
    with triton.InferenceServerClient(url) as client:
        tensor = triton.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([RED], np.object_))
        assert client.is_server_ready()
        assert client.infer("palette", [tensor]).as_numpy("label")[0, 0] == b"red"


def test_only_the_whole_path_is_taken_off(bundle: Path) -> None:
    with running(bundle, root_path="/photos") as service:
        for path, status in (("/photos/model", 200), ("/model", 200), ("/photosmodel", 404)):
            assert service.get(path).status_code == status
        assert service.get("/photos/photos/model").status_code == 404
        assert service.get("/photos").status_code == 404


def test_a_page_behind_the_proxy_may_send_if_the_proxy_says_its_name(
    proxied: tuple[httpx.Client, httpx.Client],
) -> None:
    client = proxied[0]
    named = str(client.base_url).replace("/photos", "/named")
    for url, origin, status in (
        (f"{named}classify", PAGE, 200),
        (f"{named}classify", "https://evil.example", 403),
        ("/classify", PAGE, 403),
        ("/classify", ELSEWHERE, 200),
    ):
        answer = client.post(url, content=RED, headers={"Origin": origin})
        assert answer.status_code == status, (url, origin)
    asked = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}
    preflight = client.options("/v2/models/palette/infer", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == ELSEWHERE


def clients(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return who asked for /model, as the access log says."""
    records = [vars(record)["access"] for record in caplog.records if "access" in vars(record)]
    return [record["client"] for record in records if record["path"] == "/model"]


def test_the_log_has_the_address_that_the_proxy_forwards(
    proxied: tuple[httpx.Client, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    for client in proxied:
        client.get("/model", headers={"X-Forwarded-For": FORWARDED})
    until(lambda: len(clients(caplog)) == 2)
    # The second nginx passes the header on, too.
    assert clients(caplog) == [FORWARDED, FORWARDED]


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [(None, FORWARDED), ("10.0.0.0/8, 127.0.0.1", FORWARDED), ("10.0.0.0/8", "127.0.0.1")],
)
def test_only_trusted_proxies_say_who_asks(
    bundle: Path, caplog: pytest.LogCaptureFixture, trusted: str | None, expected: str
) -> None:
    with running(bundle, access_log="all", trusted_proxies=trusted) as service:
        service.get("/model", headers={"X-Forwarded-For": FORWARDED})
        until(lambda: bool(clients(caplog)))
    assert clients(caplog) == [expected]
