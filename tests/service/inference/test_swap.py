"""Versions that change under load: nothing is lost, and each answer is of the version it names."""

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from weakref import ref

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from taillift.models.bundle.version_store import Challenger, Shadow, VersionStore
from taillift.models.errors import UserError
from taillift.service.http.version_lease import VersionLease
from taillift.service.inference import memory
from taillift.service.inference.engine import Engine
from taillift.service.inference.served_version import ServedVersion
from taillift.service.settings import read_settings
from tests.support.damage import (
    change_golden_logits,
    flip_a_byte,
    lose_a_file,
    name_another_schema,
    replace_golden,
)
from tests.support.palette import (
    CLASSES,
    SLOW,
    canvases,
    logits_of,
    new_photo,
    palette_manifest,
    photo,
    write_bundle,
)
from tests.support.serving import process, sample, scrape, serving, top_labels, until

COLOURS = {label: colour for label, (colour, _) in CLASSES.items()}


def swapped(target: Path) -> Path:
    """Write the palette bundle with the labels red and green exchanged."""
    infos = list(palette_manifest("", {}).classes)
    labels = ["green", "red", *(info.label for info in infos[2:])]
    classes = [
        info.model_copy(update={"label": label}) for info, label in zip(infos, labels, strict=True)
    ]
    return write_bundle(target, classes=tuple(classes))


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> VersionStore:
    """A store with the palette bundle as champion 1, and 2, which says green for red."""
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(swapped(tmp_path / "swapped"))
    return store


RED = {"1": "red", "2": "green"}


@contextmanager
def running_store(store: VersionStore, **settings: object) -> Iterator[tuple[httpx.Client, Engine]]:
    """Serve a store in a thread until the block ends, and yield a client once it is ready."""
    engine = Engine(read_settings(store=store.folder, port=0, **settings))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200 or engine.failure is not None)
        assert engine.failure is None, engine.failure
        yield client, engine


def served(client: httpx.Client) -> str:
    return client.get("/model").headers["X-Taillift-Version"]


def outcome(client: httpx.Client, name: str) -> float:
    return sample(client, "taillift_role_changes_total", outcome=name)


def test_answers_name_the_version_and_a_bundle_alone_has_none(
    store: VersionStore, client: httpx.Client
) -> None:
    plain = client.post("/classify", content=photo(COLOURS["red"]))
    assert "X-Taillift-Version" not in plain.headers
    assert set(plain.json()["model"]) == {"name", "version"}
    with running_store(store) as (stored, _):
        answer = stored.post("/classify", content=photo(COLOURS["red"]))
        assert answer.headers["X-Taillift-Version"] == "1"
        assert answer.json()["model"]["number"] == 1
        results = [one.json()["results"][0] for one in (answer, plain)]
        assert results[0].pop("id") != results[1].pop("id")
        assert results[0] == results[1]
        assert stored.post("/confidence", content=b"none").headers["X-Taillift-Version"] == "1"


def test_under_load_nothing_is_lost_and_each_answer_is_of_the_version_it_names(
    store: VersionStore,
) -> None:
    swaps, stop, wrong = 6, threading.Event(), list[str]()
    seen: Counter[str] = Counter()

    def send(url: httpx.URL) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/classify", content=new_photo(COLOURS["red"]))
                number = answer.headers.get("X-Taillift-Version", "none")
                seen[number] += 1
                if answer.status_code != 200 or top_labels(answer) != [RED[number]]:
                    wrong.append(f"{answer.status_code} from {number}: {answer.text}")

    with running_store(store) as (client, engine), ThreadPoolExecutor(6) as pool:
        senders = [pool.submit(send, client.base_url) for _ in range(6)]
        try:
            for index in range(swaps):
                number = 2 if index % 2 == 0 else 1
                store.promote(number)
                until(lambda: served(client) == str(number))  # noqa: B023
        finally:
            stop.set()
        for sender in senders:
            sender.result()
        until(lambda: not engine.draining)
        assert outcome(client, "done") == swaps
        # A counter belongs to the process: a swap looks like no restart.
        samples = scrape(client)
        counted = sum(
            value for (name, _), value in samples.items() if name == "taillift_predictions_total"
        )
        assert counted == sum(seen.values())
    assert wrong == []
    assert seen["1"] > 10
    assert seen["2"] > 10


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
def test_a_version_that_was_loaded_in_the_background_serves_at_the_usual_priority(
    store: VersionStore,
) -> None:
    def priorities() -> set[int]:
        found = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # It has ended just now.
                found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        return found

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with running_store(store, threads=3) as (client, _):
        store.promote(2)
        until(lambda: served(client) == "2")
        # The threads that loaded it may still be there for a moment.
        until(lambda: priorities() == {own})


def test_a_request_ends_with_the_version_that_it_began_with(store: VersionStore) -> None:
    with running_store(store) as (client, engine), ThreadPoolExecutor(2) as pool:
        old = engine.champion
        graph = ref(old.bundle._classifier.session._graph)  # type: ignore[union-attr]
        slow = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: old.leases == 1)
        store.promote(2)
        until(lambda: engine.champion.number == 2)
        assert old in engine.draining
        answer = slow.result()
        assert answer.status_code == 200
        assert answer.headers["X-Taillift-Version"] == "1"
        until(lambda: not engine.draining)
        assert graph() is None
        assert old.scheduler is None


def halted(rest: threading.Event) -> Iterator[bytes]:
    """Yield the beginning of a red photo, and the rest of it once that is wanted."""
    content = photo(COLOURS["red"])
    yield content[:20]
    rest.wait(20)
    yield content[20:]


def test_a_slow_upload_keeps_its_version(store: VersionStore) -> None:
    rest = threading.Event()
    with running_store(store) as (client, engine), ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.post, "/classify", content=halted(rest))
        until(lambda: engine.champion.leases == 1)
        store.promote(2)
        until(lambda: engine.champion.number == 2)
        assert len(engine.draining) == 1
        rest.set()
        answer = sent.result()
        assert (answer.headers["X-Taillift-Version"], top_labels(answer)) == ("1", ["red"])
        until(lambda: not engine.draining)


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "its hash differs"),
        (lose_a_file, "golden.npz is missing"),
        (name_another_schema, "is not valid at schema_version"),
        (change_golden_logits, "gives other logits here"),
        (vanish, "has no version 2"),
    ],
)
def test_a_version_that_cannot_be_served_changes_nothing_also_after_a_restart(
    store: VersionStore, damage: Callable[[Path], None], words: str
) -> None:
    with running_store(store) as (client, engine):
        damage(store.folder / "versions" / "2")
        # By hand, because the store would notice some of it.
        roles = store.roles().model_copy(update={"champion": 2, "previous": 1, "etag": 9})
        (store.folder / "roles.json").write_text(roles.model_dump_json())
        until(lambda: outcome(client, "refused") == 1)
        assert words in engine.refusals[2]
        assert served(client) == "1"
        assert client.get("/readyz").status_code == 200
    with running_store(store) as (client, engine):
        assert served(client) == "1"
        assert 2 in engine.refusals
        assert top_labels(client.post("/classify", content=photo(COLOURS["red"]))) == ["red"]


def test_a_version_that_is_deleted_while_it_loads_takes_nothing_with_it(
    store: VersionStore, tmp_path: Path
) -> None:
    with running_store(store) as (client, engine):
        for index in range(4):
            number = store.add(write_bundle(tmp_path / f"b{index}", name=f"b{index}"))
            before = outcome(client, "done") + outcome(client, "refused")
            store.promote(number)
            until(lambda: number in engine.loading or engine.champion.number == number)  # noqa: B023
            sleep(0.01 * index)
            shutil.rmtree(store.folder / "versions" / str(number))
            until(lambda: outcome(client, "done") + outcome(client, "refused") > before)  # noqa: B023
            answer = client.post("/classify", content=new_photo(COLOURS["red"]))
            assert top_labels(answer) == ["red"]


def test_a_process_follows_a_signal_and_serves_the_champion_after_being_killed(
    store: VersionStore, tmp_path: Path
) -> None:
    flags = ["--store", str(store.folder), "--tail-file", str(tmp_path / "tail.sqlite")]
    with process(tmp_path / "unused", *flags) as (server, client):
        assert served(client) == "1"
        store.promote(2)
        server.send_signal(signal.SIGHUP)
        until(lambda: served(client) == "2")
        server.kill()
    with process(tmp_path / "unused", *flags) as (_, client):
        assert served(client) == "2"
        assert top_labels(client.post("/classify", content=photo(COLOURS["red"]))) == ["green"]


def test_a_champion_that_was_refused_at_the_start_is_tried_again_at_a_signal(
    store: VersionStore, tmp_path: Path
) -> None:
    golden = store.path(2) / "golden.npz"
    content = golden.read_bytes()
    store.promote(2)
    golden.unlink()
    with process(tmp_path / "unused", "--store", str(store.folder)) as (server, client):
        assert served(client) == "1"
        golden.write_bytes(content)
        server.send_signal(signal.SIGHUP)
        until(lambda: served(client) == "2")


def test_a_store_without_a_champion_or_with_damaged_roles_is_one_line(
    tmp_path: Path, bundle: Path
) -> None:
    store = VersionStore.at(tmp_path / "store")
    store.add(bundle)
    with pytest.raises(UserError, match="has no champion: choose one with `taillift models"):
        Engine(read_settings(store=store.folder))
    (store.folder / "roles.json").write_text("{")
    with pytest.raises(UserError, match=r"roles\.json cannot be read"):
        Engine(read_settings(store=store.folder))


def test_damaged_roles_leave_the_service_as_it_is(
    store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    with running_store(store) as (client, _):
        text = (store.folder / "roles.json").read_text()
        (store.folder / "roles.json").write_text(text[:10])
        until(lambda: "the roles stay as they were" in caplog.text)
        assert served(client) == "1"
        (store.folder / "roles.json").write_text(text)
        store.promote(2)
        until(lambda: served(client) == "2")


def test_after_a_rollback_the_evidence_is_what_it_was(tmp_path: Path, store: VersionStore) -> None:
    file = tmp_path / "tail.sqlite"
    with running_store(store, tail_file=file) as (client, engine):
        for label in ("red", "blue", "black"):
            client.post("/classify", content=new_photo(COLOURS[label]))
        before = client.get("/classes").json()
        assert before["window"]["predictions"] == 3
        store.promote(2)
        until(lambda: served(client) == "2")
        assert client.get("/classes").json()["window"]["predictions"] == 0
        client.post("/classify", content=new_photo(COLOURS["white"]))
        store.rollback()
        until(lambda: served(client) == "1")
        assert client.get("/classes").json()["classes"] == before["classes"]
        assert sample(client, "taillift_class_predictions_total", class_="white", group="few") == 1
        until(lambda: not engine.draining)
    with running_store(store, tail_file=file) as (client, _):
        assert client.get("/classes").json()["window"]["predictions"] == 3
        store.promote(2)
        until(lambda: served(client) == "2")
        assert client.get("/classes").json()["window"]["predictions"] == 1


def test_a_pinned_version_must_be_loaded(store: VersionStore) -> None:
    with running_store(store) as (client, _):
        red = photo(COLOURS["red"])
        for pin in ("1", "champion"):
            answer = client.post("/classify", params={"version": pin}, content=red)
            assert top_labels(answer) == ["red"]
        for pin in ("2", "challenger", "", "x" * 99):
            refused = client.post("/classify", params={"version": pin}, content=red)
            assert refused.status_code == 404
            assert refused.json()["type"] == "urn:taillift:problem:no-such-version"
        assert sample(client, "taillift_rejections_total", reason="no_such_version") == 4


def test_the_info_series_follow_the_champion(store: VersionStore) -> None:
    with running_store(store) as (client, engine):
        first = engine.champion.bundle.manifest.version
        labels = {"number": "1", "version": first, "role": "champion"}
        assert sample(client, "taillift_version_info", **labels) == 1
        assert sample(client, "taillift_load_seconds", number="1") > 0
        store.promote(2)
        until(lambda: served(client) == "2")
        until(lambda: not engine.draining)
        numbers = {dict(key)["number"] for name, key in scrape(client) if name == "taillift_leases"}
        assert numbers == {"2"}
        versions = [
            dict(key)["version"] for name, key in scrape(client) if name == "taillift_model_info"
        ]
        assert versions == [engine.champion.bundle.manifest.version] != [first]


KEY = "an-admin-key-of-the-tests"


def promote_by_api(client: httpx.Client, number: int) -> None:
    answer = client.put(
        "/admin/roles/champion", json={"version": number}, headers={"X-API-Key": KEY}
    )
    assert answer.status_code == 202, answer.text


@pytest.fixture
def admin_keys(tmp_path: Path) -> Path:
    file = tmp_path / "admin.keys"
    file.write_text(f"{KEY} ann\n")
    return file


def test_a_version_that_replaces_the_champion_is_loaded_once_that_is_closed(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, asked = list[bool](), threading.Event()
    open_version = ServedVersion.open

    async def spied(version: ServedVersion) -> None:
        if version.number == 2:
            left.append(graph() is None)
            await asyncio.to_thread(asked.wait, 20)
        await open_version(version)

    monkeypatch.setattr(ServedVersion, "open", spied)
    red = photo(COLOURS["red"])
    with running_store(store, swap="replace") as (client, engine), ThreadPoolExecutor(1) as pool:
        graph = ref(engine.champion.bundle._classifier.session._graph)  # type: ignore[union-attr]
        slow = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: engine.workshop.admission.images == 1)
        store.promote(2)
        until(lambda: engine.gap is not None)
        refused = client.post("/classify", content=red)
        assert refused.status_code == 503
        assert refused.json()["detail"] == "version 2 is loaded in place of version 1"
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/readyz").status_code == client.get("/v2/health/ready").status_code
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.get("/classes").headers["X-Taillift-Version"] == "1"
        assert sample(client, "taillift_ready") == 0
        assert slow.result().status_code == 200
        assert slow.result().headers["X-Taillift-Version"] == "1"
        asked.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert left == [True]
        answer = client.post("/classify", content=red)
        assert (answer.headers["X-Taillift-Version"], top_labels(answer)) == ("2", ["green"])
        numbers = {dict(key)["number"] for name, key in scrape(client) if name == "taillift_leases"}
        assert numbers == {"2"}


def test_a_slow_upload_does_not_delay_a_replacement_and_is_answered_by_what_serves_at_its_end(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests, loaded = [threading.Event() for _ in range(3)], threading.Event()
    open_version = ServedVersion.open

    async def halting(version: ServedVersion) -> None:
        if version.number == 2:
            await asyncio.to_thread(loaded.wait, 20)
        await open_version(version)

    monkeypatch.setattr(ServedVersion, "open", halting)
    with running_store(store, swap="replace") as (client, engine), ThreadPoolExecutor(3) as pool:
        pins: list[dict[str, str]] = [{}, {}, {"version": "1"}]
        sent = [
            pool.submit(client.post, "/classify", params=pin, content=halted(rest))
            for pin, rest in zip(pins, rests, strict=True)
        ]
        until(lambda: reading(engine) == 3)
        store.promote(2)
        until(lambda: engine.gap is not None and not engine.draining)
        rests[0].set()
        refused = sent[0].result()
        assert refused.status_code == 503
        assert refused.json()["detail"] == "version 2 is loaded in place of version 1"
        assert int(refused.headers["Retry-After"]) >= 1
        loaded.set()
        until(lambda: client.get("/readyz").status_code == 200)
        for rest in rests:
            rest.set()
        answer, pinned = (future.result() for future in sent[1:])
        assert (answer.headers["X-Taillift-Version"], top_labels(answer)) == ("2", ["green"])
        assert pinned.json()["type"] == "urn:taillift:problem:no-such-version"


def reading(engine: Engine) -> int:
    """Return how many requests have begun and have no image yet."""
    loads = [one.load for one in list(engine.workshop.admission._reservations)]
    return sum(load.size > 0 and load.images == 0 for load in loads)


def test_a_client_that_reads_its_answer_slowly_holds_no_version(store: VersionStore) -> None:
    engine, held = Engine(read_settings(store=store.folder)), list[int]()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Message) -> None:
        held.append(engine.champion.leases)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        held.append(engine.champion.leases)
        await Response("an answer")(scope, receive, send)

    scope = {"type": "http", "path": "/classes", "query_string": b"", "headers": []}
    asyncio.run(VersionLease(answer, engine)(scope, receive, send))
    assert held == [1, 0, 0]
    engine.labels.close()
    engine.evidence.close()


def test_a_process_that_is_killed_while_no_version_is_loaded_serves_the_champion_afterwards(
    store: VersionStore, admin_keys: Path, tmp_path: Path
) -> None:
    # The check of its golden views takes about a second.
    colours = [*COLOURS.values(), SLOW]
    replace_golden(store.path(2), canvases(colours), logits_of(colours))
    flags = ["--store", str(store.folder), "--swap", "replace"]
    with process(tmp_path / "no", *flags, "--admin-keys-file", str(admin_keys)) as (server, client):
        promote_by_api(client, 2)
        until(lambda: "in place of" in client.get("/readyz").json().get("detail", ""))
        server.kill()
    assert store.roles().champion == 1
    with process(tmp_path / "no", *flags) as (server, client):
        assert top_labels(client.post("/classify", content=photo(COLOURS["red"]))) == ["red"]
        store.promote(2)
        until(lambda: "in place of" in client.get("/readyz").json().get("detail", ""))
        server.kill()
    with process(tmp_path / "no", *flags) as (_, client):
        assert top_labels(client.post("/classify", content=photo(COLOURS["red"]))) == ["green"]
        assert served(client) == "2"


def test_if_the_new_version_fails_its_checks_the_old_one_is_loaded_again(
    store: VersionStore, admin_keys: Path, tmp_path: Path
) -> None:
    store.add(write_bundle(tmp_path / "third", name="third"))
    change_golden_logits(store.path(2))
    with running_store(store, swap="replace", admin_keys_file=admin_keys) as (client, engine):
        store.challenge(Challenger(version=3, shadow=Shadow()))
        until(lambda: engine.challenge is not None)
        client.post("/classify", content=new_photo(COLOURS["black"]))
        before, old = client.get("/classes").json()["classes"], engine.champion
        promote_by_api(client, 2)
        until(lambda: outcome(client, "refused") == 1)
        assert engine.champion is not old
        assert client.get("/readyz").status_code == 200
        assert top_labels(client.post("/classify", content=photo(COLOURS["red"]))) == ["red"]
        assert client.get("/classes").json()["classes"] != before
        assert sample(client, "taillift_class_predictions_total", class_="black", group="few") == 1
        roles = store.roles()
        assert (roles.champion, roles.previous) == (1, None)
        assert store.log()[-1].action == "refused"
        assert "gives other logits here" in engine.refusals[2]
        # The challenger meets the champion that was loaded again.
        until(lambda: engine.challenge is not None and engine.challenge.champion is engine.champion)


def test_a_champion_that_fails_while_it_is_closed_is_loaded_again(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise RuntimeError("the loop has died")

    with running_store(store, swap="replace") as (client, engine):
        old = engine.champion
        monkeypatch.setattr(old, "close", fail)
        store.promote(2)
        until(lambda: outcome(client, "refused") == 1)
        assert client.get("/readyz").status_code == 200
        assert engine.champion is not old
        assert served(client) == "1"


def test_damage_that_shows_in_the_files_costs_no_gap(store: VersionStore) -> None:
    flip_a_byte(store.path(2))
    with running_store(store, swap="replace") as (client, engine):
        old = engine.champion
        store.promote(2)
        until(lambda: outcome(client, "refused") == 1)
        assert "its hash differs" in engine.refusals[2]
        assert engine.champion is old
        assert old.is_open


def test_roles_that_change_during_a_replacement_count(
    store: VersionStore, admin_keys: Path, tmp_path: Path
) -> None:
    store.add(write_bundle(tmp_path / "third", name="third"))
    with (
        running_store(store, swap="replace", admin_keys_file=admin_keys) as (client, engine),
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(client.post, "/classify", content=photo(SLOW))
        until(lambda: engine.workshop.admission.images == 1)
        promote_by_api(client, 2)
        until(lambda: engine.gap is not None)
        assert store.roles().champion == 1
        states = client.get("/admin/versions", headers={"X-API-Key": KEY}).json()
        assert [row["state"] for row in states["versions"]] == ["draining", "loading", "stored"]
        assert (states["served"], states["pending"]) == (None, 2)
        store.promote(3)
        until(lambda: engine.champion.number == 3 and engine.gap is None)
        assert outcome(client, "overtaken") == 1
        assert slow.result().status_code == 200
        assert served(client) == "3"
        assert store.roles().champion == 3


def test_a_service_that_can_serve_neither_version_ends(
    store: VersionStore,
) -> None:
    change_golden_logits(store.path(2))
    engine = Engine(read_settings(store=store.folder, port=0, swap="replace"))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        flip_a_byte(store.path(1))
        store.promote(2)
        until(lambda: engine.failure is not None)
    assert isinstance(engine.failure, UserError)
    assert "its hash differs" in str(engine.failure)


def test_the_budget_of_a_replacement_counts_what_the_champion_gives_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 50 * 2**20)
    memory.check_budget(140 * 2**20, 2, freed=100 * 2**20)
    with pytest.raises(memory.OverBudgetError, match=r"140 MB next to .* 50 MB are left.*replace"):
        memory.check_budget(140 * 2**20, 2)
    with pytest.raises(memory.OverBudgetError, match=r"160 MB in place of .* 150 MB are left"):
        memory.check_budget(160 * 2**20, 2, freed=100 * 2**20)
