"""API keys: where they come from, what they allow, and that their file may change."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from taillift.models.errors import UserError
from taillift.service.http.auth import Keys, parse_keys
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, photo
from tests.support.serving import running, sample, top_labels

FIRST, SECOND, OTHER = "first-key-0123456789", "second-key-012345678", "another-key-01234567"
RED = photo(CLASSES["red"][0])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# the clients\n\n{FIRST} the camera at the gate\n{SECOND}  # temporary\n")
    return file


@pytest.fixture(scope="module")
def guarded(bundle: Path, file: Path) -> Iterator[httpx.Client]:
    with running(bundle, keys_file=file) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refused(response: httpx.Response) -> str:
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["type"] == "urn:taillift:problem:unauthorised"
    detail: str = response.json()["detail"]
    return detail


def test_a_known_key_is_accepted_in_either_header(guarded: httpx.Client) -> None:
    for headers in (bearer(FIRST), bearer(SECOND), {"X-API-Key": FIRST}):
        response = guarded.post("/classify", content=RED, headers=headers)
        assert top_labels(response) == ["red"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/classify"),
        ("POST", "/classify?top_k=none"),
        ("POST", "/confidence"),
        ("GET", "/classes"),
        ("GET", "/model"),
    ],
)
def test_every_answer_about_the_model_needs_a_key(
    guarded: httpx.Client, method: str, path: str
) -> None:
    assert "send an API key" in refused(guarded.request(method, path))
    assert "not one of those" in refused(guarded.request(method, path, headers=bearer(OTHER)))


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_health_metrics_and_documentation_need_no_key(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Basic {FIRST}"},
        {"Authorization": FIRST},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {FIRST}x"},
        {"Authorization": f"Bearer {FIRST[:-1]}"},
        {"X-API-Key": ""},
        {"X-API-Key": f"{FIRST} the camera at the gate"},
        {"X-API-Key": "\xe9" * 20},
    ],
)
def test_another_scheme_or_nearly_a_key_is_refused(
    guarded: httpx.Client, headers: dict[str, str]
) -> None:
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    refused(guarded.get("/model", headers=encoded))


def test_a_wrong_bearer_is_not_helped_by_a_right_header(guarded: httpx.Client) -> None:
    refused(guarded.get("/model", headers=bearer(OTHER) | {"X-API-Key": FIRST}))


def test_refusals_are_counted(guarded: httpx.Client) -> None:
    before = sample(guarded, "taillift_rejections_total", reason="unauthorised")
    refused(guarded.get("/model"))
    assert sample(guarded, "taillift_rejections_total", reason="unauthorised") == before + 1


def test_a_body_is_not_read_without_a_key(guarded: httpx.Client) -> None:
    address = (guarded.base_url.host, guarded.base_url.port)
    head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 401"
    with socket.create_connection(address, timeout=10) as connection:
        expecting = f"{head}Authorization: Bearer {FIRST}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(expecting.encode())
        assert connection.recv(12) == b"HTTP/1.1 100"


def test_the_description_asks_for_a_key_if_one_is_needed(
    guarded: httpx.Client, client: httpx.Client
) -> None:
    paths = guarded.get("/openapi.json").json()["paths"]
    assert "401" in paths["/classify"]["post"]["responses"]
    assert paths["/model"]["get"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert "security" not in paths["/healthz"]["get"]
    paths = client.get("/openapi.json").json()["paths"]
    assert "401" not in paths["/classify"]["post"]["responses"]
    assert "security" not in paths["/model"]["get"]


def test_a_changed_file_takes_effect_and_a_wrong_one_does_not(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(FIRST)

    def allowed(key: str) -> bool:
        return client.get("/model", headers=bearer(key)).status_code == 200

    with running(bundle, keys_file=file) as client:
        assert allowed(FIRST)
        assert not allowed(SECOND)
        file.write_text(f"{SECOND} the second\n")
        assert allowed(SECOND)
        assert not allowed(FIRST)
        for content in ("", "short"):
            file.write_text(content)
            assert allowed(SECOND)
            assert not allowed("short")
        file.unlink()
        assert allowed(SECOND)
        replacement = tmp_path / "new"
        replacement.write_text(FIRST)
        replacement.rename(file)
        assert allowed(FIRST)
        assert not allowed(SECOND)
    assert "1 keys (the second)" in caplog.text
    assert "the keys stay as they were" in caplog.text
    assert FIRST not in caplog.text
    assert SECOND not in caplog.text


def test_keys_of_the_environment_and_of_a_file_are_both_known(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(FIRST)
    monkeypatch.setenv("TAILLIFT_KEYS", f"{SECOND} backup, {OTHER}")
    monkeypatch.setenv("TAILLIFT_KEYS_FILE", str(tmp_path / "keys"))
    with running(bundle) as client:
        for key in (FIRST, SECOND, OTHER):
            assert client.get("/model", headers=bearer(key)).status_code == 200
        refused(client.get("/model", headers=bearer("backup")))


def test_without_keys_none_is_needed() -> None:
    assert not Keys(None, None).needed
    assert Keys(FIRST, None).needed


def test_a_key_is_neither_kept_nor_shown() -> None:
    keys = parse_keys([f"{FIRST} gate"], "here")
    assert [key.name for key in keys] == ["gate"]
    assert FIRST not in repr(keys)
    with pytest.raises(UserError) as caught:
        parse_keys([FIRST, "secret"], "here")
    assert str(caught.value).startswith("here, key 2: an API key has at least 16 characters")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no API key"),
        (b"# no client\n\n", "holds no API key"),
        (b"tooshort\n", "at least 16 characters"),
        (b"\xff" * 20, "not UTF-8"),
        ("ä".encode() * 20, "all ASCII"),
        (None, "No such file"),
    ],
)
def test_a_file_without_keys_does_not_start(
    bundle: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(app, ["serve", str(bundle), "--keys-file", str(file)])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
    assert str(file) in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("given", ["", " , "])
def test_an_empty_variable_does_not_start(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("TAILLIFT_KEYS", given)
    result = CliRunner().invoke(app, ["serve", str(bundle)])
    assert isinstance(result.exception, UserError)
    assert "TAILLIFT_KEYS holds no API key" in str(result.exception)


def test_the_log_of_a_running_service_holds_no_key(
    guarded: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        guarded.get("/model", headers=bearer(FIRST))
        guarded.get("/model", headers=bearer(OTHER))
    assert FIRST not in caplog.text
    assert OTHER not in caplog.text
