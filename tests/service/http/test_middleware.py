"""The security headers, and a documentation page that complies with them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taillift.service.http.middleware import HEADERS
from tests.support.palette import POISON, photo
from tests.support.serving import running


@pytest.fixture(scope="module")
def small(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_body_bytes=1_000) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/docs", "/docs.js", "/model", "/metrics", "/nowhere"])
def test_every_answer_has_the_headers(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def test_failures_and_refusals_have_the_headers_too(
    client: httpx.Client, small: httpx.Client
) -> None:
    failed = client.post("/classify", content=photo(POISON))
    large = small.post("/classify", content=bytes(2_000))
    assert (failed.status_code, large.status_code) == (500, 413)
    for response in (failed, large):
        assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def test_the_documentation_page_loads_only_what_the_service_serves(client: httpx.Client) -> None:
    page = client.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) == 4
    for address in addresses:
        assert "//" not in address
        assert client.get(f"/{address}").status_code == 200
    assert "script-src 'self';" in HEADERS["Content-Security-Policy"]
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page) == []
    assert re.findall(r"style=|\son\w+=", page) == []


def test_the_page_shows_the_description(client: httpx.Client) -> None:
    script = client.get("/docs.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert '"openapi.json"' in script.text
    assert client.get("/openapi.json").json()["info"]["title"] == "taillift"
