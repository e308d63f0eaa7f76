"""Tests that work which would come too late is not done."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import palette
from tests.support.palette import SLOW, photo, write_bundle
from tests.support.serving import form, running, sample, top_labels, until


def within(seconds: float | str) -> dict[str, str]:
    return {"X-Request-Timeout": str(seconds)}


def late(client: httpx.Client, stage: str) -> float:
    return sample(client, "taillift_deadline_drops_total", stage=stage)


def test_in_time_is_answered(client: httpx.Client) -> None:
    response = client.post("/classify", content=photo((255, 0, 0)), headers=within(20))
    assert top_labels(response) == ["red"]


def test_what_waits_beyond_its_deadline_is_given_up_before_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough on a fast machine, too: the device must be busy until after the deadline.
    monkeypatch.setattr(palette, "SLOW_ROUNDS", 5_000)
    with running(write_bundle(tmp_path / "slow")) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        response = client.post("/classify", content=photo((255, 0, 0)), headers=within(0.1))
        assert response.status_code == 408
        assert response.json()["type"] == "urn:taillift:problem:deadline"
        assert "within the 0.1 seconds allowed" in response.json()["detail"]
        assert busy.result().status_code == 200
        assert late(client, "queue") == 1
        assert sample(client, "taillift_rejections_total", reason="deadline") == 1
        assert sample(client, "taillift_batch_views_sum") == 5


def test_what_is_on_the_device_at_its_deadline_is_answered_408(bundle: Path) -> None:
    with running(bundle) as client:
        response = client.post("/classify", content=photo(SLOW), headers=within(0.1))
        assert response.status_code == 408
        assert late(client, "infer") == 1


def test_one_late_image_ends_its_request_and_no_other(bundle: Path) -> None:
    with running(bundle, batch_views=5) as client, ThreadPoolExecutor(1) as pool:
        files = form(("a", photo((255, 0, 0))), ("b", photo(SLOW)), ("c", photo((255, 0, 0))))
        request = pool.submit(client.post, "/classify", files=files, headers=within(0.35))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") >= 2)
        other = client.post("/classify", content=photo((0, 0, 255)))
        assert request.result().status_code == 408
        assert top_labels(other) == ["blue"]
        assert sample(client, "taillift_rejections_total", reason="deadline") == 1
        assert sample(client, "taillift_queue_views") == 0


def test_a_deadline_holds_while_the_body_comes(bundle: Path) -> None:
    head = (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        b"X-Request-Timeout: 0.1\r\n\r\nhalf"
    )
    with running(bundle) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address) as connection:
            connection.sendall(head)
            with connection.makefile("rb") as answer:
                text = answer.read()  # Up to the end: the service closes the connection.
        assert text.startswith(b"HTTP/1.1 408 ")
        assert b"urn:taillift:problem:deadline" in text
        assert late(client, "read") == 1


def test_the_service_has_a_deadline_of_its_own_which_no_client_extends(bundle: Path) -> None:
    with running(bundle, answer_seconds=0.1) as client:
        for headers in ({}, within(60)):
            response = client.post("/classify", content=photo(SLOW), headers=headers)
            assert response.status_code == 408
            until(lambda: client.get("/readyz").status_code == 200)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_deadline_that_is_none_is_malformed(client: httpx.Client, value: str) -> None:
    response = client.post("/classify", content=photo((255, 0, 0)), headers=within(value))
    assert response.status_code == 400
    assert "X-Request-Timeout" in response.json()["detail"]


def test_the_header_is_described(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/classify"]["post"]
    names = {(parameter["in"], parameter["name"]) for parameter in operation["parameters"]}
    assert ("header", "X-Request-Timeout") in names
    assert "408" in operation["responses"]
