"""Tests with many clients: every answer is for its own image, and no client harms another."""

import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.support.palette import CLASSES, POISON, SLOW, photo
from tests.support.serving import form, running, sample, top_labels, until


def test_answers_belong_to_their_images(client: httpx.Client) -> None:
    choose = random.Random(0)
    requests = [choose.choices(list(CLASSES), k=choose.randint(1, 8)) for _ in range(120)]

    def ask(labels: list[str]) -> list[str]:
        kind, ensemble = choose.choice(["PNG", "JPEG", "WEBP"]), choose.choice(["full", "off"])
        files = form(*[(label, photo(CLASSES[label][0], kind)) for label in labels])
        response = client.post("/classify", params={"ensemble": ensemble}, files=files)
        assert [answer["filename"] for answer in response.json()["results"]] == labels
        return top_labels(response)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, requests)) == requests


def test_a_request_larger_than_a_batch_is_answered_whole(bundle: Path) -> None:
    labels = list(CLASSES) * 3
    with running(bundle, batch_views=10) as client:
        files = form(*[(label, photo(CLASSES[label][0])) for label in labels])
        assert top_labels(client.post("/classify", files=files)) == labels
        assert sample(client, "taillift_batch_views_bucket", le="10.0") == sample(
            client, "taillift_batch_views_count"
        )


def test_views_gather_while_the_device_is_busy(bundle: Path) -> None:
    with running(bundle) as client, ThreadPoolExecutor(5) as pool:
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        waiting = [pool.submit(client.post, "/classify", content=photo((0, 0, 0))) for _ in "1234"]
        assert [top_labels(answer.result()) for answer in waiting] == [["black"]] * 4
        assert busy.result().status_code == 200
        assert sample(client, "taillift_batch_views_count") <= 3


def test_an_image_that_fails_in_the_model_fails_alone(bundle: Path) -> None:
    with running(bundle) as client, ThreadPoolExecutor(4) as pool:
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        red = pool.submit(client.post, "/classify", content=photo((255, 0, 0)))
        poison = pool.submit(client.post, "/classify", content=photo(POISON))
        blue = pool.submit(client.post, "/classify", content=photo((0, 0, 255)))
        assert top_labels(red.result()) == ["red"]
        assert top_labels(blue.result()) == ["blue"]
        assert (poison.result().status_code, busy.result().status_code) == (500, 200)
        assert poison.result().json()["type"] == "urn:taillift:problem:inference-failed"

        files = form(("r", photo((255, 0, 0))), ("p", photo(POISON)), ("g", photo((0, 255, 0))))
        first, second, third = client.post("/classify", files=files).json()["results"]
        assert first["predictions"][0]["label"] == "red"
        assert second["error"]["status"] == 500
        assert third["predictions"][0]["label"] == "green"
        assert client.get("/readyz").status_code == 200
        assert sample(client, "taillift_rejections_total", reason="inference_failed") == 2


def test_over_the_queue_limit_clients_are_told_when_to_come_back(bundle: Path) -> None:
    with running(bundle, max_images=1, queue_views=5) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        response = client.post("/classify", content=photo((255, 0, 0)))
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert response.json()["type"] == "urn:taillift:problem:overloaded"
        assert busy.result().status_code == 200
        assert sample(client, "taillift_rejections_total", reason="overloaded") == 1
        assert top_labels(client.post("/classify", content=photo((255, 0, 0)))) == ["red"]


def send(client: httpx.Client, content: bytes, times: int, stack: ExitStack) -> None:
    """Send `content` over so many connections, which stay open until the end of `stack`."""
    for _ in range(times):
        address = (client.base_url.host, client.base_url.port)
        stack.enter_context(socket.create_connection(address)).sendall(content)


def test_announced_bodies_that_do_not_come_keep_no_request_out(bundle: Path) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf"
    limits = {"max_body_bytes": 100_000, "queue_bytes": 350_000, "max_images": 1}
    with running(bundle, **limits) as client, ExitStack() as stack:
        send(client, head, 20, stack)
        assert top_labels(client.post("/classify", content=photo((255, 0, 0)))) == ["red"]
        stack.close()
        until(lambda: sample(client, "taillift_rejections_total", reason="disconnected") == 20)
        assert sample(client, "taillift_rejections_total", reason="overloaded") == 0


def test_announced_bodies_are_bounded_together_while_they_are_read(bundle: Path) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    limits = {"max_body_bytes": 100_000, "queue_bytes": 350_000, "max_images": 1}
    with running(bundle, **limits) as client, ExitStack() as stack:
        send(client, head + bytes(90_000), 5, stack)
        until(lambda: sample(client, "taillift_rejections_total", reason="overloaded") == 2)
        response = client.post("/classify", content=bytes(100_000))
        assert response.status_code == 429
        assert "270,000 bytes are in work and 100,000 more" in response.json()["detail"]
        stack.close()
        until(lambda: sample(client, "taillift_rejections_total", reason="disconnected") == 3)
        assert top_labels(client.post("/classify", content=photo((255, 0, 0)))) == ["red"]


def test_bodies_of_unknown_length_are_bounded_together_while_they_are_read(bundle: Path) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"c350\r\n" + bytes(50_000) + b"\r\n"
    limits = {"max_body_bytes": 100_000, "queue_bytes": 101_000, "max_images": 1}
    with running(bundle, **limits) as client, ExitStack() as stack:
        send(client, head + part, 3, stack)
        until(lambda: sample(client, "taillift_rejections_total", reason="overloaded") == 1)
        response = client.post("/classify", content=iter([photo((255, 0, 0)), bytes(2_000)]))
        assert response.status_code == 429
        assert "bytes are in work and" in response.json()["detail"]
        stack.close()
        until(lambda: sample(client, "taillift_rejections_total", reason="disconnected") == 2)
        assert top_labels(client.post("/classify", content=iter([photo((255, 0, 0))]))) == ["red"]


def test_a_body_that_does_not_come_is_given_up(bundle: Path) -> None:
    limits = {"max_body_bytes": 100_000, "queue_bytes": 101_000, "max_images": 1}
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf"
    with (
        running(bundle, body_seconds=0.2, **limits) as client,
        socket.create_connection((client.base_url.host, client.base_url.port)) as connection,
    ):
        connection.sendall(head)
        with connection.makefile("rb") as answer:
            text = answer.read()  # Up to the end: the service closes the connection.
        assert text.startswith(b"HTTP/1.1 408 ")
        assert b"not complete after 0.2 seconds" in text
        assert top_labels(client.post("/classify", content=photo((255, 0, 0)))) == ["red"]


def test_the_work_of_clients_that_left_is_dropped(bundle: Path) -> None:
    body = photo(SLOW)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with running(bundle, batch_views=5) as client:
        address = (client.base_url.host, client.base_url.port)
        leaving = [socket.create_connection(address) for _ in range(6)]
        for connection in leaving:
            connection.sendall(head.encode() + body)
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="decode") == 6)
        for connection in leaving:
            connection.close()
        assert top_labels(client.post("/classify", content=photo((0, 0, 255)))) == ["blue"]
        assert sample(client, "taillift_rejections_total", reason="disconnected") == 6
        assert sample(client, "taillift_batch_views_count") <= 3
        assert sample(client, "taillift_queue_views") == 0


def test_a_client_that_leaves_while_sending_does_no_harm(client: httpx.Client) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"
    before = sample(client, "taillift_rejections_total", reason="disconnected")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(head)
    until(lambda: sample(client, "taillift_rejections_total", reason="disconnected") > before)
    assert top_labels(client.post("/classify", content=photo((0, 0, 255)))) == ["blue"]
