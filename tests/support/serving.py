"""A real server on a real port, for the tests of the service."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from taillift.service.inference.engine import Engine
from taillift.service.server import Server, listen
from taillift.service.settings import read_settings

SERVE = [sys.executable, "-c", "from taillift.service.serve_cli import app; app()", "serve"]


@contextmanager
def running(bundle: Path, **settings: object) -> Iterator[httpx.Client]:
    """Serve `bundle` in a thread until the block ends; yields a client of the ready service."""
    engine = Engine(read_settings(bundle=bundle, port=0, **settings))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200 or engine.failure is not None)
        assert engine.failure is None, engine.failure
        yield client


@contextmanager
def serving(engine: Engine, port: int = 0) -> Iterator[httpx.Client]:
    listener = listen("127.0.0.1", port)
    server = Server(engine)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@contextmanager
def process(bundle: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A ready service in a process of its own."""
    command = [*SERVE, str(bundle), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[2]
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                until(lambda: client.get("/readyz").status_code == 200)
                yield server, client
        finally:
            server.kill()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for `condition`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def scrape(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a real scrape, by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def sample(client: httpx.Client, name: str, **labels: str) -> float:
    """One sample of a scrape; `class_` stands for the label `class`."""
    wanted = frozenset((key.rstrip("_"), value) for key, value in labels.items())
    return scrape(client)[name, wanted]


def top_labels(response: httpx.Response) -> list[str]:
    """The surest label of each image, in order."""
    assert response.status_code == 200, response.text
    return [result["predictions"][0]["label"] for result in response.json()["results"]]


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", file) for file in files]
