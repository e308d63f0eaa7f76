"""The admin API: who may change the version, and what is refused with which status."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taillift.models.bundle.version_store import VersionStore
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support import palette
from tests.support.palette import palette_manifest, photo, write_bundle
from tests.support.raw import connected
from tests.support.serving import process, sample, serving, top_labels, until

KEY = "an-admin-key-of-the-tests"
ADMIN = {"X-API-Key": KEY}


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> VersionStore:
    """A store with champion 1, and 2 and 3 of the same classes."""
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write_bundle(tmp_path / "second", name="second"), note="a try")
    store.add(write_bundle(tmp_path / "third", name="third"))
    return store


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "admin.keys"
    file.write_text(f"{KEY} ann\n")
    return file


@pytest.fixture
def admin(store: VersionStore, keys: Path) -> Iterator[httpx.Client]:
    """A client of a service with the store, which is ready; it sends the admin key."""
    engine = Engine(read_settings(store=store.folder, port=0, admin_keys_file=keys))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        client.headers.update(ADMIN)
        yield client


def champion(client: httpx.Client) -> str:
    return client.get("/model").headers["X-Taillift-Version"]


def put(
    client: httpx.Client, number: int, tag: str | None = None, **more: object
) -> httpx.Response:
    headers = {} if tag is None else {"If-Match": tag}
    return client.put("/admin/roles/champion", json={"version": number, **more}, headers=headers)


def test_without_admin_keys_there_is_no_admin(client: httpx.Client) -> None:
    assert client.get("/admin/versions", headers=ADMIN).status_code == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "admin" in path]


def test_a_location_is_below_the_path_that_a_proxy_takes_off(
    store: VersionStore, keys: Path
) -> None:
    settings = read_settings(store=store.folder, admin_keys_file=keys, root_path="/photos")
    with serving(Engine(settings)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        client.headers.update(ADMIN)
        location = put(client, 2).headers["Location"]
        assert location == "/photos/admin/versions/2"
        assert client.get(location).json()["number"] == 2


def test_a_key_is_needed_and_is_not_one_for_images(admin: httpx.Client) -> None:
    refused = admin.get("/admin/versions", headers={"X-API-Key": "another-key-of-the-tests"})
    assert refused.status_code == 401
    assert httpx.get(f"{admin.base_url}/admin/versions", trust_env=False).status_code == 401
    # Images need no key here.
    assert httpx.post(
        f"{admin.base_url}/classify", content=photo((255, 0, 0)), trust_env=False
    ).is_success
    paths = admin.get("/openapi.json").json()["paths"]
    assert {path for path in paths if "admin" in path} == {
        "/admin/versions",
        "/admin/versions/{number}",
        "/admin/roles/champion",
        "/admin/roles/challenger",
        "/admin/challenger",
        "/admin/rollback",
        "/admin/live-prior/reset",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/admin/roles/champion"),
        ("PUT", "/admin/roles/challenger"),
        ("POST", "/admin/rollback"),
    ],
)
def test_a_body_is_read_after_the_key_and_is_small(
    admin: httpx.Client, method: str, path: str
) -> None:
    """A client without a key is refused before it has sent a byte of the body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(admin) as connection:
        connection.sendall(f"{head}Content-Length: 50\r\n\r\n".encode())
        assert connection.recv(1_000).startswith(b"HTTP/1.1 401 ")
    assert admin.request(method, path, content=b" " * 2**16 + b"{}").status_code == 413
    many = b"{%s}" % b",".join(b'"%d":0' % number for number in range(101))
    refused = admin.request(method, path, content=many)
    assert refused.status_code == 400
    assert "more than 100 members" in refused.json()["detail"]


def test_a_promotion_is_accepted_done_and_logged_once(
    admin: httpx.Client, store: VersionStore
) -> None:
    listed = admin.get("/admin/versions")
    assert listed.headers["ETag"] == '"1"'
    assert [(row["number"], row["state"], row["role"]) for row in listed.json()["versions"]] == [
        (1, "resident", "champion"),
        (2, "stored", None),
        (3, "stored", None),
    ]
    assert listed.json()["versions"][1]["note"] == "a try"
    answer = put(admin, 2, listed.headers["ETag"], because="better")
    assert answer.status_code == 202
    assert answer.headers["Location"] == "/admin/versions/2"
    until(lambda: champion(admin) == "2")
    now = admin.get(answer.headers["Location"]).json()
    assert (now["state"], now["role"], now["name"]) == ("resident", "champion", "second")
    assert now["load_seconds"] > 0
    roles = store.roles()
    assert (roles.champion, roles.previous) == (2, 1)
    line = store.log()[-1]
    assert (line.action, line.who, line.because, line.previous) == ("promote", "ann", "better", 1)
    back = admin.post("/admin/rollback", json={"because": "worse"})
    assert back.status_code == 202
    until(lambda: champion(admin) == "1")
    assert [line.action for line in store.log()][-2:] == ["promote", "rollback"]
    assert sample(admin, "taillift_role_changes_total", outcome="done") == 2


def test_of_two_promoters_with_one_etag_the_second_is_too_late(admin: httpx.Client) -> None:
    tag = admin.get("/admin/versions").headers["ETag"]
    answers = [put(admin, number, tag) for number in (2, 3)]
    assert [answer.status_code for answer in answers] == [202, 412]
    until(lambda: champion(admin) == "2")
    stale = put(admin, 3, tag)
    assert stale.status_code == 412
    assert stale.json()["type"] == "urn:taillift:problem:stale-roles"
    for odd in ("yesterday", "9" * 5_000):
        assert put(admin, 3, odd).status_code == 400
    assert champion(admin) == "2"


def test_refusals_have_a_status_and_a_reason(
    admin: httpx.Client, store: VersionStore, tmp_path: Path
) -> None:
    assert put(admin, 1).status_code == 409
    assert put(admin, 9).status_code == 404
    assert admin.get("/admin/versions/9").status_code == 404
    assert "part of the address `number`" in admin.get("/admin/versions/x").json()["detail"]
    for digits in (300, 4_000):
        assert put(admin, 10**digits).status_code == 404
        assert admin.get(f"/admin/versions/{10**digits}").status_code == 404
    assert admin.post("/admin/rollback", json={}).status_code == 409
    assert admin.delete("/admin/roles/challenger").status_code == 409
    assert admin.put("/admin/roles/champion", json={"version": "x"}).status_code == 400
    infos = tuple(
        info.model_copy(update={"label": "teal"}) if info.label == "cyan" else info
        for info in palette_manifest("", {}).classes
    )
    other = store.add(write_bundle(tmp_path / "other", classes=infos), classes_change=True)
    added = store.path(other) / "added.json"
    document = json.loads(added.read_text()) | {"classes_change": False}
    added.write_text(json.dumps(document))
    refused = put(admin, other)
    assert refused.status_code == 409
    assert "teal new; cyan missing" in refused.json()["detail"]
    assert champion(admin) == "1"
    assert put(admin, other, classes_change=True).status_code == 202
    until(lambda: champion(admin) == str(other))


def test_the_reason_of_a_damaged_version_stands_in_its_state(
    admin: httpx.Client, store: VersionStore
) -> None:
    golden = store.path(2) / "golden.npz"
    golden.unlink()
    golden.write_bytes(b"damaged")
    assert put(admin, 2).status_code == 202
    until(lambda: admin.get("/admin/versions/2").json()["state"] == "refused")
    assert "its hash differs" in admin.get("/admin/versions/2").json()["reason"]
    assert champion(admin) == "1"
    assert store.roles().champion == 1
    assert [(line.action, line.who) for line in store.log()][-1] == ("refused", "ann")
    assert sample(admin, "taillift_role_changes_total", outcome="refused") == 1
    # It is tried again once it is repaired.
    golden.unlink()
    golden.write_bytes((store.path(3) / "golden.npz").read_bytes())
    assert put(admin, 2).status_code == 202
    until(lambda: champion(admin) == "2")


def test_a_version_that_does_not_fit_into_memory_is_refused_with_the_numbers(
    bundle: Path,
    store: VersionStore,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = palette.graph()
    graph.doc_string = " " * 40 * 2**20
    monkeypatch.setattr(palette, "graph", lambda: graph)
    large = store.add(write_bundle(tmp_path / "large"))
    flags = ["--store", str(store.folder), "--admin-keys-file", str(keys), "--threads", "1"]
    with process(bundle, *flags) as (server, client):
        client.headers.update(ADMIN)
        status = Path(f"/proc/{server.pid}/status").read_text()
        (size,) = [int(line.split()[1]) for line in status.splitlines() if "VmSize" in line]
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_AS)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (size * 1024 + 150 * 2**20, hard))
        refused = put(client, large)
        assert refused.status_code == 507
        assert "version 4 needs about 24" in refused.json()["detail"]
        assert "MB are left" in refused.json()["detail"]
        assert top_labels(client.post("/classify", content=photo((255, 0, 0)))) == ["red"]
        resource.prlimit(server.pid, resource.RLIMIT_AS, (hard, hard))
        assert put(client, large).status_code == 202
        until(lambda: champion(client) == "4")


def test_only_a_number_is_a_number(admin: httpx.Client) -> None:
    """A JSON true is not version 1, nor is the text "2" version 2."""
    wrong = (True, False, "1", None, [1])
    bodies: list[tuple[str, str, dict[str, object]]] = [
        (f"/admin/roles/{role}", "version", {"version": value})
        for role in ("champion", "challenger")
        for value in (*wrong, 2.0)
    ]
    bodies += [
        ("/admin/roles/challenger", f"{part}.share", {"version": 2, part: {"share": value}})
        for part in ("shadow", "canary")
        for value in wrong
    ]
    for path, member, body in bodies:
        answer = admin.put(path, json=body)
        assert answer.status_code == 400, (body, answer.text)
        assert member in answer.json()["detail"], body
    assert champion(admin) == "1"
    whole = {"version": 2, "canary": {"share": 1}}
    assert admin.put("/admin/roles/challenger", json=whole).status_code == 202


def test_numbers_in_addresses_are_digits(admin: httpx.Client) -> None:
    assert admin.get("/admin/versions/2").is_success
    for path in ("/admin/versions/2.0", "/admin/versions/0_2", "/admin/challenger?differences=1.0"):
        answer = admin.get(path)
        assert answer.status_code == 400, answer.text
        assert "integer" in answer.json()["detail"]


def test_a_rollback_to_the_version_that_is_served_already_keeps_it(
    store: VersionStore, keys: Path
) -> None:
    store.promote(2)
    (store.path(2) / "golden.npz").unlink()
    engine = Engine(read_settings(store=store.folder, port=0, admin_keys_file=keys))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        client.headers.update(ADMIN)
        assert champion(client) == "1"
        listed = client.get("/admin/versions").json()
        assert (listed["served"], listed["champion"]) == (1, 2)
        assert listed["versions"][1]["state"] == "refused"
        assert client.post("/admin/rollback", json={}).status_code == 202
        until(lambda: client.get("/admin/versions").json()["champion"] == 1)
        until(lambda: sample(client, "taillift_role_changes_total", outcome="done") == 1)
        assert not engine.draining
        answer = client.post("/classify", content=photo((255, 0, 0)))
        assert top_labels(answer) == ["red"]
