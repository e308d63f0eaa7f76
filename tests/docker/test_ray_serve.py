"""The whole service in two replicas of a real Ray cluster, which these tests start and end."""

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from taillift.models.errors import UserError
from tests.support.palette import CLASSES, POISON, new_photo, photo, write_bundle
from tests.support.serving import form, running, scrape, top_labels, until

ROOT = Path(__file__).parents[2]
PREFIX = "/photos"
LABELS = list(CLASSES)
IMAGES = "taillift_class_predictions_total"
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own defaults.


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    """Start a cluster, and yield the module `ray.serve`; its proxy's address is `ADDRESS`."""
    ray, module = pytest.importorskip("ray"), pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docker")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(module, "ADDRESS", f"http://127.0.0.1:{port}{PREFIX}", raising=False)
        # Four CPUs as Ray counts them: two replicas, and during an update two more.
        variables = {"PYTHONPATH": ":".join([str(ROOT / "docker"), *filter(None, sys.path)])}
        try:
            # By default Ray would connect to a cluster that runs here, or has.
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
            )
            module.start(http_options={"host": "127.0.0.1", "port": port})
            yield module
        finally:
            if ray.is_initialized():
                module.shutdown()
                ray.shutdown()


def deploy(serve: Any, bundle: Path, targets: Path) -> Any:
    """Serve a bundle by two replicas; return Ray's handle as soon as it calls them running."""
    targets.mkdir(exist_ok=True)
    given = {"bundle": str(bundle), "targets": str(targets), "root_path": PREFIX}
    given |= {"replicas": "2", "threads": "1", "decode_threads": "1"}
    application = import_module("ray_serve").build(given)
    return serve.run(application, route_prefix=PREFIX)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "targets"


@pytest.fixture(scope="module")
def handle(serve: Any, bundle: Path, targets: Path) -> Any:
    return deploy(serve, bundle, targets)


@pytest.fixture
def client(serve: Any, handle: Any) -> Iterator[httpx.Client]:
    assert handle
    with httpx.Client(base_url=serve.ADDRESS, trust_env=False, timeout=30) as client:
        yield client


def addresses(targets: Path) -> list[str]:
    """Return where Prometheus finds the metrics of each replica."""
    found = [json.loads(path.read_text()) for path in targets.glob("*.json")]
    return [address for (target,) in found for address in target["targets"]]


def counted(targets: Path) -> list[float]:
    """Return how many images each replica has answered, and that there are some."""
    counts = []
    for address in addresses(targets):
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=30) as client:
            samples = scrape(client)
        names = {key: value for key, value in samples.items() if key[0].startswith(IMAGES)}
        counts.append(sum(names.values()))
    return counts


def test_replicas_answer_from_the_first_request_on_and_as_the_service_does(
    client: httpx.Client, bundle: Path, targets: Path
) -> None:
    photos = [new_photo(colour) for colour, _ in CLASSES.values()] * 4
    answers = [client.post("/classify", content=data) for data in photos]
    assert [top_labels(answer) for answer in answers] == [[label] for label in LABELS] * 4
    with running(bundle) as plain:
        expected = [plain.post("/classify", content=data) for data in photos]
    assert [answer.json()["results"][0]["predictions"] for answer in answers] == [
        answer.json()["results"][0]["predictions"] for answer in expected
    ]
    # Each replica counts what it has answered, on a port of its own; both had some of it.
    assert len(addresses(targets)) == 2
    assert sum(counted(targets)) == len(photos)
    assert client.get("/metrics").status_code == 404


def test_forms_pages_and_the_other_protocol_work_below_the_path(client: httpx.Client) -> None:
    files = [("a.png", photo(CLASSES["red"][0])), ("b.png", photo(CLASSES["blue"][0]))]
    assert top_labels(client.post("/classify", files=form(*files))) == ["red", "blue"]
    assert client.get("/readyz").json() == {"status": "ready"}
    assert "<html" in client.get("/").text
    assert client.get("/model").json()["name"] == "palette"
    headers = {"Inference-Header-Content-Length": "0"}
    infer = client.post("/v2/models/palette/infer", content=files[0][1], headers=headers)
    label = {output["name"]: output for output in infer.json()["outputs"]}["label"]
    assert label["data"][0] == "red"


@pytest.mark.parametrize("given", [None, "an-id-of-the-client"])
def test_a_refusal_is_a_problem_document_with_the_id_of_the_answer(
    client: httpx.Client, given: str | None
) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    answer = client.post("/classify", content=b"no image", headers=headers)
    assert answer.status_code == 415
    (identity,) = answer.headers.get_list("X-Request-Id")
    assert answer.json()["request_id"] == identity
    assert given in (None, identity)


def test_a_replica_that_fails_is_not_healthy_until_it_works_again(
    client: httpx.Client, handle: Any
) -> None:
    reasons: list[str] = []

    def is_healthy() -> bool:
        try:
            handle.check_health.remote().result(timeout_s=30)
        except RuntimeError as error:
            reasons.append(str(error))
            return False
        return True

    assert is_healthy()
    for _ in range(40):
        assert client.post("/classify", content=new_photo(POISON)).status_code == 500
    until(lambda: not is_healthy())
    assert "requests in a row have failed" in reasons[0]
    client.post("/classify", content=new_photo(CLASSES["red"][0]))
    until(lambda: all(is_healthy() for _ in range(8)), seconds=60)


def test_an_update_loses_no_request(
    serve: Any, client: httpx.Client, targets: Path, tmp_path: Path
) -> None:
    other = write_bundle(tmp_path / "other", name="other")
    old, updated = set(addresses(targets)), Event()

    def ask_until_it_is_updated() -> set[int]:
        statuses = set()
        with httpx.Client(base_url=serve.ADDRESS, trust_env=False, timeout=30) as own:
            while not updated.is_set():
                answer = own.post("/classify", content=new_photo(CLASSES["green"][0]))
                statuses.add(answer.status_code)
        return statuses

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask_until_it_is_updated)
        try:
            deploy(serve, other, targets)
            until(lambda: not old & set(addresses(targets)), seconds=60)
        finally:
            updated.set()
    assert asked.result() == {200}
    assert client.get("/model").json()["name"] == "other"
    assert len(addresses(targets)) == 2


def test_a_bundle_that_cannot_be_served_replaces_nothing(
    serve: Any, client: httpx.Client, targets: Path, tmp_path: Path
) -> None:
    broken = write_bundle(tmp_path / "broken", name="broken")
    (broken / "model.onnx").write_bytes(b"no graph")
    before = set(addresses(targets))
    with pytest.raises(RuntimeError):
        deploy(serve, broken, targets)
    assert set(addresses(targets)) == before
    assert client.post("/classify", content=photo(CLASSES["cyan"][0])).status_code == 200
    assert serve.status().applications["default"].status == "DEPLOY_FAILED"
    assert client.get("/model").json()["name"] == "other"


def test_nothing_is_left_at_the_end(serve: Any, client: httpx.Client, targets: Path) -> None:
    serve.delete("default")
    assert addresses(targets) == []
    with suppress(httpx.TransportError):
        assert client.get("/readyz").status_code in (404, 503)


def test_a_wrong_setting_is_one_line_before_anything_starts() -> None:
    pytest.importorskip("ray.serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docker")
        with pytest.raises(UserError, match="setting threads"):
            import_module("ray_serve").build({"bundle": "bundles/photos", "threads": "none"})
