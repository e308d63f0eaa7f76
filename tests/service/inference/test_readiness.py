"""Tests that the service is ready if, and only if, an image sent now is answered."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NoReturn
from weakref import ReferenceType, ref

import httpx
import pytest

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import Device
from taillift.models.bundle.session import Outputs, Session
from taillift.models.errors import UserError
from taillift.service.http.app import create_app
from taillift.service.inference.engine import FAILURES, Engine
from taillift.service.settings import read_settings
from tests.support import palette
from tests.support.palette import POISON, SLOW, new_photo, photo, write_bundle
from tests.support.serving import running, sample, serving, top_labels, until


def lost(_: Pixels) -> Outputs:
    raise RuntimeError("the device is lost")


def ask(engine: Engine, method: str, path: str) -> httpx.Response:
    """Send one request to an app that was not started."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, content=photo((0, 0, 0)))

    return asyncio.run(answer())


def test_it_is_alive_and_not_ready_before_the_bundle_is_checked(bundle: Path) -> None:
    engine = Engine(read_settings(bundle=bundle))
    assert ask(engine, "GET", "/healthz").json() == {"status": "alive"}
    for response in (ask(engine, "GET", "/readyz"), ask(engine, "POST", "/classify")):
        assert response.status_code == 503
        assert "checked and warmed" in response.json()["detail"]
    assert "taillift_ready 0.0" in ask(engine, "GET", "/metrics").text


def test_a_probe_is_not_counted_among_the_rejected_requests(bundle: Path) -> None:
    engine = Engine(read_settings(bundle=bundle))
    probed = ask(engine, "GET", "/readyz")
    assert probed.headers["content-type"] == "application/problem+json"
    assert probed.json()["type"] == "urn:taillift:problem:not-ready"
    rejected = 'taillift_rejections_total{reason="not_ready"}'
    assert f"{rejected} 0.0" in ask(engine, "GET", "/metrics").text
    ask(engine, "POST", "/classify")
    assert f"{rejected} 1.0" in ask(engine, "GET", "/metrics").text


def test_it_is_ready_once_the_bundle_is_warm(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}
    assert sample(client, "taillift_ready") == 1


def test_it_is_not_ready_while_no_batch_ends(bundle: Path) -> None:
    with running(bundle, stall_seconds=0.1) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: client.get("/readyz").status_code == 503)
        assert "no batch" in client.get("/readyz").json()["detail"]
        assert busy.result().status_code == 200
        assert client.get("/readyz").status_code == 200


def test_it_is_not_ready_while_no_image_is_decoded(bundle: Path, gate: Event) -> None:
    limits = {"stall_seconds": 0.1, "decode_threads": 1}
    with running(bundle, **limits) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(client.post, "/classify", content=photo((0, 0, 255)))
        until(lambda: client.get("/readyz").status_code == 503)
        assert "no image has been decoded for 0.1" in client.get("/readyz").json()["detail"]
        gate.set()
        assert top_labels(busy.result()) == ["blue"]
        assert client.get("/readyz").status_code == 200


@dataclass
class Sessions:
    """The last session, and how many earlier graphs were in memory when each was opened."""

    last: Session | None = None
    graphs: list[ReferenceType[object]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)

    def open(self, path: Path, device: Device, size: int) -> Session:
        self.alive.append(sum(graph() is not None for graph in self.graphs))
        self.last = Session(path, device, size)
        self.graphs.append(ref(self.last._graph))
        return self.last

    def lose(self) -> None:
        vars(self.last)["run"] = lost


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    sessions = Sessions()
    monkeypatch.setattr("taillift.models.bundle.classifier.Session", sessions.open)
    return sessions


def test_a_lost_device_is_opened_again_without_an_error(bundle: Path, sessions: Sessions) -> None:
    engine = Engine(read_settings(bundle=bundle))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/classify", content=photo(POISON)).status_code == 500
        assert sample(client, "taillift_session_rebuilds_total", outcome="ready") == 0
        sessions.lose()
        assert top_labels(client.post("/classify", content=photo((0, 0, 255)))) == ["blue"]
        assert sample(client, "taillift_session_rebuilds_total", outcome="ready") == 1
        assert client.get("/readyz").status_code == 200
    # The next session may need the memory of the lost one.
    assert sessions.alive == [0, 0]


def test_a_bundle_that_was_exchanged_meanwhile_is_not_opened_again(
    tmp_path: Path,
    sessions: Sessions,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, graph = write_bundle(tmp_path / "bundle"), palette.graph()
    graph.doc_string = "another"
    monkeypatch.setattr(palette, "graph", lambda: graph)
    other = write_bundle(tmp_path / "other")
    engine = Engine(read_settings(bundle=folder))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        shutil.rmtree(folder)
        other.rename(folder)
        sessions.lose()
        assert client.post("/classify", content=photo((0, 0, 255))).status_code == 503
        assert client.get("/readyz").status_code == 503
    assert "has been exchanged for another bundle" in caplog.text
    assert f"instead of {engine.bundle.manifest.version}: restart the service" in caplog.text


def test_it_is_not_ready_until_the_bundle_can_be_opened_again(
    tmp_path: Path, sessions: Sessions
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    engine = Engine(read_settings(bundle=folder))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        sessions.lose()
        graph = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(b"damaged")
        assert client.post("/classify", content=photo((0, 0, 255))).status_code == 503
        assert "even on a blank image" in client.get("/readyz").json()["detail"]
        assert client.post("/classify", content=photo((0, 0, 255))).status_code == 503
        assert sample(client, "taillift_session_rebuilds_total", outcome="failed") >= 1
        (folder / "model.onnx").write_bytes(graph)
        until(lambda: client.get("/readyz").status_code == 200)
        assert top_labels(client.post("/classify", content=photo((0, 0, 255)))) == ["blue"]


def fails(*_: object) -> NoReturn:
    raise RuntimeError("a defect")


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service does not check itself within the test."""
    monkeypatch.setattr("taillift.service.inference.engine.SELF_CHECK_SECONDS", 3_600)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taillift.service.inference.engine.SELF_CHECK_SECONDS", 0.05)


def post(client: httpx.Client, status: int, times: int = 1) -> None:
    for _ in range(times):
        assert client.post("/classify", content=new_photo((0, 0, 255))).status_code == status


ANSWER, DECODE = (
    "taillift.service.http.image_requests.classified",
    "taillift.service.inference.decoder.load_opened",
)


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("place", [ANSWER, DECODE])
def test_ten_failures_in_a_row_make_it_not_ready_until_a_request_succeeds(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with running(bundle) as client:
        with monkeypatch.context() as patch:
            patch.setattr(place, fails)
            post(client, 500, FAILURES - 1)
            assert client.get("/readyz").status_code == 200
            post(client, 500)
            assert client.get("/readyz").status_code == 503
            assert "10 requests in a row have failed" in client.get("/readyz").json()["detail"]
            assert sample(client, "taillift_ready") == 0
        post(client, 200)
        assert client.get("/readyz").status_code == 200


@pytest.mark.usefixtures("seldom")
def test_what_is_not_a_row_of_failures_leaves_it_ready(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(bundle) as client:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(ANSWER, fails)
                post(client, 500, FAILURES - 1)
            post(client, 200)
        for content in (b"no image", photo((0, 0, 0))[:40]):
            for _ in range(FAILURES):
                assert client.post("/classify", content=content).is_client_error
        assert client.get("/readyz").status_code == 200


@pytest.mark.usefixtures("often")
def test_without_requests_it_becomes_ready_once_a_known_image_passes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(bundle) as client:
        with monkeypatch.context() as patch:
            patch.setattr(DECODE, fails)
            post(client, 500, FAILURES)
            until(lambda: "the service fails on an image of its bundle, too" in caplog.messages)
            assert client.get("/readyz").status_code == 503
        until(lambda: client.get("/readyz").status_code == 200)
        assert "the service works on an image of its bundle: it is ready again" in caplog.messages
        post(client, 200)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("limits", [{"max_pixels": 1}, {"max_image_bytes": 1}])
def test_images_that_the_model_fails_on_keep_it_from_nobody_for_long(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    """With these limits, the known image itself is refused."""
    with running(bundle, **limits) as client:
        with monkeypatch.context() as patch:
            patch.setattr("taillift.service.http.image_requests.read_uploads", fails)
            post(client, 500, FAILURES)
        until(lambda: client.get("/readyz").status_code == 200)
    with running(bundle) as client:
        for _ in range(FAILURES):
            poisoned = client.post("/classify", content=photo(POISON))
            assert poisoned.status_code == 500
        until(lambda: client.get("/readyz").status_code == 200)
        post(client, 200)


def test_it_is_not_ready_while_draining_and_still_answers_what_it_has(bundle: Path) -> None:
    engine = Engine(read_settings(bundle=bundle))
    with serving(engine) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: client.get("/readyz").status_code == 200)
        busy = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        engine.drain()
        assert client.get("/readyz").status_code == 503
        refused = client.post("/classify", content=photo((0, 0, 0)))
        assert (refused.status_code, refused.json()["detail"]) == (
            503,
            "the service is shutting down",
        )
        assert busy.result().status_code == 200


def test_a_damaged_bundle_never_becomes_ready(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(b"other")
    engine = Engine(read_settings(bundle=folder))
    asyncio.run(engine.start())
    assert isinstance(engine.failure, UserError)
    assert "model.onnx is not the file" in str(engine.failure)
    assert ask(engine, "GET", "/readyz").status_code == 503


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"queue_views": 100}, "a request of max_images=64 has 320 views"),
        ({"queue_bytes": 1_000_000}, "queue_bytes is 1,000,000"),
    ],
)
def test_limits_that_the_largest_request_cannot_meet_are_refused(
    bundle: Path, settings: dict[str, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Engine(read_settings(bundle=bundle, **settings))
