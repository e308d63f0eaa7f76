"""The queue of a real service: what is kept and offered, labels, keys, a restart, and bad disks."""

import asyncio
import io
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from taillift.models.bundle.version_store import Challenger, Shadow, VersionStore
from taillift.service.feedback.prediction_id import PredictionId, Signer
from taillift.service.inference.engine import Engine
from taillift.service.review import review_sampler, reviewer
from taillift.service.review.review_folder import QueuedPhoto, ReviewEntry, ReviewFolder
from taillift.service.review.reviewer import AnsweredPhoto, Reviewer
from taillift.service.settings import read_settings
from tests.support.palette import (
    CLASSES,
    Colour,
    new_photo,
    palette_manifest,
    photo,
    write_bundle,
)
from tests.support.serving import form, running, sample, serving, until

# The palette's features are the direction of a colour: these four are not alike.
RARE: dict[str, Colour] = {"white": (255, 255, 255), "pink": (255, 235, 140)}
SIGNING_KEY = "a-key-that-signs-the-ids"
PLAIN, LABELLER = "a-plain-key-of-the-tests", "a-label-key-of-the-tests"
# With such a budget c is 1 at first: a photo of a few-shot class is certain to be drawn.
MANY = {"review_per_day": 10**6, "feedback_key": SIGNING_KEY}


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def client(bundle: Path, queue: Path) -> Iterator[httpx.Client]:
    with running(bundle, review_dir=queue, **MANY) as client:
        yield client


def classify(client: httpx.Client, data: bytes, **headers: str) -> dict[str, Any]:
    answer = client.post("/classify", content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def probability(result: dict[str, Any]) -> float:
    return Signer([SIGNING_KEY.encode()]).read(result["id"]).probability


def label(client: httpx.Client, key: str, label: str | None) -> str:
    answer = client.post("/feedback", json={"labels": [{"id": key, "label": label}]})
    assert answer.status_code == 200, answer.text
    status: str = answer.json()["results"][0]["status"]
    return status


def waiting(client: httpx.Client, **query: str | int) -> list[dict[str, Any]]:
    answer = client.get("/review", params=query)
    assert answer.status_code == 200, answer.text
    photos: list[dict[str, Any]] = answer.json()
    return photos


def with_place(colour: Colour) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8825)[29] = "1999:12:31"
    Image.new("RGB", (20, 16), colour).save(file, "JPEG", exif=exif, quality=100)
    return file.getvalue()


def test_a_rare_photo_is_offered_under_the_id_of_its_answer_without_its_place(
    client: httpx.Client,
) -> None:
    data = with_place(RARE["white"])
    result = classify(client, data)
    assert probability(result) == 1
    (offered,) = waiting(client)
    assert offered["id"] == result["id"]
    assert (offered["group"], offered["why"], offered["p"]) == ("few", "tail", 1)
    assert [guess["label"] for guess in offered["predictions"]] == [
        guess["label"] for guess in result["predictions"]
    ]
    kept = client.get(offered["photo"])
    assert kept.headers["content-type"] == "image/jpeg"
    assert b"1999:12:31" in data
    assert b"1999:12:31" not in kept.content
    assert Image.open(io.BytesIO(kept.content)).tobytes() == Image.open(io.BytesIO(data)).tobytes()
    assert sample(client, "taillift_review_kept_total", group="few") == 1
    assert sample(client, "taillift_review_photos", group="few", state="waiting") == 1
    assert sample(client, "taillift_review_bytes") > 0


def test_a_common_photo_is_seldom_drawn_and_its_id_says_whether_it_was(
    client: httpx.Client,
) -> None:
    """About 4 of 200 photos with p = 0.02 are drawn, but only the first of a colour is kept."""
    files = form(*(("x", new_photo(CLASSES["red"][0])) for _ in range(50)))
    answers = [client.post("/classify", files=files).json() for _ in range(4)]
    results = [result for answer in answers for result in answer["results"]]
    drawn = [result["id"] for result in results if probability(result)]
    assert [photo["id"] for photo in waiting(client)] == drawn
    assert len(drawn) <= 1
    alike = sample(client, "taillift_review_dropped_total", reason="alike")
    assert alike + len(drawn) < 25
    for offered in waiting(client):
        assert offered["why"] == "random"
        assert offered["p"] == pytest.approx(0.02, abs=0.002)


def test_photos_that_look_alike_are_kept_once_and_the_others_count_as_not_drawn(
    client: httpx.Client,
) -> None:
    results = [
        classify(client, data)
        for data in (
            new_photo(RARE["white"]),
            new_photo(RARE["white"]),
            new_photo((200, 210, 205)),
            new_photo(RARE["pink"]),
        )
    ]
    assert [probability(result) > 0 for result in results][:3] == [True, False, False]
    assert sample(client, "taillift_review_dropped_total", reason="alike") >= 1
    assert waiting(client)[0]["id"] == results[0]["id"]


def test_two_photos_of_one_request_that_look_alike_are_kept_once(client: httpx.Client) -> None:
    files = form(("a", new_photo(RARE["white"])), ("b", new_photo(RARE["white"])))
    assert client.post("/classify", files=files).status_code == 200
    assert len(waiting(client)) == 1


def test_a_probe_is_answered_and_not_kept(client: httpx.Client) -> None:
    result = classify(client, new_photo(RARE["white"]), **{"X-Taillift-Count": "no"})
    assert probability(result) == 0
    assert waiting(client) == []


def test_a_label_takes_the_photo_off_the_queue_and_stays_with_it(
    client: httpx.Client, queue: Path
) -> None:
    key = classify(client, new_photo(RARE["white"]))["id"]
    assert label(client, key, "white") == "accepted"
    assert waiting(client) == []
    assert label(client, key, None) == "replaced"
    until(lambda: sample(client, "taillift_review_photos", group="few", state="labelled") == 1)
    summary = client.get("/review/summary").json()
    assert summary["waiting"] == {"many": 0, "medium": 0, "few": 0}
    assert summary["labelled"] == {"many": 0, "medium": 0, "few": 1}
    assert [info["label"] for info in summary["classes"]] == list(CLASSES)
    (kept,) = ReviewFolder(queue, 1, 10**9).photos()
    assert kept.given is not None
    assert kept.given.label is None
    assert client.get(f"/review/{key}/photo").status_code == 200


def test_labels_of_photos_that_are_not_in_the_queue_do_not_read_all_of_it(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = list[ReviewFolder]()
    trimmed = ReviewFolder.trimmed

    def counted(folder: ReviewFolder) -> list[QueuedPhoto]:
        looks.append(folder)
        return trimmed(folder)

    monkeypatch.setattr(ReviewFolder, "trimmed", counted)
    probe = classify(client, new_photo(RARE["white"]), **{"X-Taillift-Count": "no"})["id"]
    for name in ("white", "red"):
        assert label(client, probe, name) in ("accepted", "replaced")
    assert waiting(client) == []
    assert looks == []
    assert label(client, classify(client, new_photo(RARE["white"]))["id"], "white") == "accepted"
    until(lambda: len(looks) == 1)


@pytest.mark.parametrize("spoiled", ["forged", "unknown"])
def test_a_label_that_is_not_taken_leaves_the_photo_in_the_queue(
    client: httpx.Client, spoiled: str
) -> None:
    key = classify(client, new_photo(RARE["white"]))["id"]
    if spoiled == "forged":
        assert label(client, f"{key[:-3]}AAA", "white") == "forged"
    else:
        assert label(client, key, "a hat") == "unknown_label"
    assert len(waiting(client)) == 1


def test_a_photo_can_be_removed(client: httpx.Client, queue: Path) -> None:
    key = classify(client, new_photo(RARE["white"]))["id"]
    assert waiting(client)
    assert client.delete(f"/review/{key}").status_code == 204
    assert waiting(client) == []
    assert list(queue.glob(f"*{key}*")) == []
    for answer in (client.delete(f"/review/{key}"), client.get(f"/review/{key}/photo")):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:taillift:problem:no-such-photo"
    # What it looked like may be drawn again.
    assert probability(classify(client, new_photo(RARE["white"]))) == 1


def test_the_queue_is_read_in_pages_the_oldest_first(bundle: Path, queue: Path) -> None:
    keys = fill(queue, 5)
    with running(bundle, review_dir=queue, **MANY) as client:
        assert [photo["id"] for photo in waiting(client)] == keys
        assert [photo["id"] for photo in waiting(client, limit=2)] == keys[:2]
        assert [photo["id"] for photo in waiting(client, limit=2, after=keys[1])] == keys[2:4]
        assert waiting(client, after=keys[-1]) == []
        label(client, keys[2], "red")
        assert [photo["id"] for photo in waiting(client, after=keys[2])] == keys[3:]
        assert client.get("/review?after=gone-long-ago").status_code == 404
        assert client.get("/review?limit=0").status_code == 400


def fill(queue: Path, number: int) -> list[str]:
    """Put so many photos into a queue, with signed ids, and return these in their order."""
    folder, signer = ReviewFolder(queue, 1, 10**9), Signer([SIGNING_KEY.encode()])
    keys = []
    for index in range(number):
        key = signer.sign(PredictionId(1, 0, 0.5, "few", probability=0.5))
        document = {
            "id": key,
            "time": 4e9 + index,
            "kind": "png",
            "predictions": [
                {"label": name, "group": "few", "confidence": 0.3} for name in list(CLASSES)[-5:]
            ],
            "why": "tail",
            "p": 0.5,
            "version": "other-version",
            "number": 1,
            "digest": index,
            "features": "",
        }
        folder.add(ReviewEntry.model_validate(document), new_photo((index, 99, 9)), list(CLASSES))
        keys.append(key)
    return keys


def test_the_queue_survives_a_restart_and_so_do_what_it_looks_like(
    bundle: Path, queue: Path
) -> None:
    with running(bundle, review_dir=queue, **MANY) as client:
        key = classify(client, new_photo(RARE["white"]))["id"]
    with running(bundle, review_dir=queue, **MANY) as client:
        assert [photo["id"] for photo in waiting(client)] == [key]
        assert probability(classify(client, new_photo(RARE["white"]))) == 0
        assert label(client, key, "white") == "accepted"
        assert waiting(client) == []


def test_only_keys_with_the_right_see_photos(bundle: Path, queue: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{PLAIN} camera\n{LABELLER} person feedback\n")
    fill(queue, 1)
    with running(bundle, review_dir=queue, keys_file=keys, **MANY) as client:
        (photo,) = client.get("/review", headers={"X-API-Key": LABELLER}).json()
        for method, path in (
            ("GET", "/review"),
            ("GET", "/review/summary"),
            ("GET", photo["photo"]),
            ("DELETE", f"/review/{photo['id']}"),
        ):
            assert client.request(method, path).status_code == 401
            plain = client.request(method, path, headers={"X-API-Key": PLAIN})
            assert plain.status_code == 403
            right = client.request(method, path, headers={"X-API-Key": LABELLER})
            assert right.status_code in (200, 204)


def test_a_queue_that_cannot_be_read_is_a_problem_of_one_line_and_answers_go_on(
    client: httpx.Client, queue: Path
) -> None:
    shutil.rmtree(queue)
    queue.write_text("a file in the place of the folder")
    answer = client.get("/review")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:taillift:problem:queue-failed"
    assert str(queue) in answer.json()["detail"]
    assert classify(client, new_photo(RARE["white"]))["predictions"][0]["label"] == "white"
    until(lambda: sample(client, "taillift_review_dropped_total", reason="disk") == 1)


def test_the_routes_are_described_if_they_exist(client: httpx.Client, bundle: Path) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = {path for path in paths if path.startswith("/review")}
    assert described == {"/review", "/review/summary", "/review/{id}/photo", "/review/{id}"}
    with running(bundle) as other:
        assert not [path for path in other.get("/openapi.json").json()["paths"] if "review" in path]


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_service_that_shows_photos_to_everyone_says_so(
    bundle: Path, queue: Path, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    with running(bundle, review_dir=queue, host=host, **MANY):
        assert ("anyone who reaches this service" in caplog.text) == warned


def test_a_full_disk_drops_photos_and_no_answer(bundle: Path, small_disk: Path) -> None:
    with running(bundle, review_dir=small_disk / "queue", **MANY) as client:
        (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        result = classify(client, new_photo(RARE["white"]))
        assert result["predictions"][0]["label"] == "white"
        until(lambda: sample(client, "taillift_review_dropped_total", reason="disk") == 1)
        assert waiting(client) == []
        (small_disk / "filler").unlink()
        again = classify(client, new_photo(RARE["white"]))
        assert [photo["id"] for photo in waiting(client)] == [again["id"]]


def test_a_disk_that_hangs_delays_no_answer(
    bundle: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = photo(RARE["white"]), photo(CLASSES["black"][0])
    monkeypatch.setattr(reviewer, "WAITING_BYTES", len(first) + len(second) // 2)
    disk = Event()
    add = ReviewFolder.add

    def slow(*arguments: Any) -> None:
        disk.wait(20)
        add(*arguments)

    monkeypatch.setattr(ReviewFolder, "add", slow)
    with running(bundle, review_dir=queue, **MANY) as client:
        try:
            assert probability(classify(client, first)) == 1
            # What cannot be kept in memory meanwhile counts as not drawn.
            assert probability(classify(client, second)) == 0
            assert sample(client, "taillift_review_dropped_total", reason="busy") == 1
        finally:
            disk.set()
        assert len(waiting(client)) == 1


@pytest.fixture
def exchanged(bundle: Path, tmp_path: Path) -> VersionStore:
    """A store with champion 1 and a challenger 2 that takes red for green, and green for red."""
    labels = {"red": "green", "green": "red"}
    classes = tuple(
        info.model_copy(update={"label": labels.get(info.label, info.label)})
        for info in palette_manifest("", {}).classes
    )
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write_bundle(tmp_path / "exchanged", classes=classes))
    store.challenge(Challenger(version=2, shadow=Shadow(share=0.9999999, few=1.0), canary=None))
    return store


def test_photos_on_which_a_challenger_differs_are_offered_and_count_for_no_estimate(
    exchanged: VersionStore, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_sampler, "Random", lambda: random.Random(0))
    engine = Engine(read_settings(store=exchanged.folder, port=0, review_dir=queue, **MANY))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200 and engine.challenge is not None)
        files = form(*((name, new_photo(CLASSES[name][0])) for name in ("blue", "red", "green")))
        results = client.post("/classify", files=files).json()["results"]
        assert [probability(result) for result in results] == [0, 0, 0]
        until(lambda: len(waiting(client)) == 2)
        assert {offered["id"] for offered in waiting(client)} == {
            result["id"] for result in results[1:]
        }
        assert [photo["why"] for photo in waiting(client)] == ["differs", "differs"]
        assert waiting(client)[0]["p"] == pytest.approx(1)
        # One that looks like it is not kept again.
        client.post("/classify", content=new_photo(CLASSES["red"][0]))
        until(lambda: sample(client, "taillift_review_dropped_total", reason="alike") == 1)
        assert len(waiting(client)) == 2


def test_without_room_a_drawn_photo_counts_for_no_verdict_either(
    exchanged: VersionStore, queue: Path
) -> None:
    """Else photos with few-shot answers, which are drawn more often, would count more often."""
    settings = read_settings(store=exchanged.folder, port=0, review_dir=queue, review_per_day=2)
    engine, chosen = Engine(settings), dict[str, bool]()
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200 and engine.challenge is not None)
        choose = engine.choose_for_labelling

        def noted(key: str, probability: float) -> bool:
            chosen[key] = choose(key, probability)
            return chosen[key]

        engine.choose_for_labelling = noted
        for count, label in enumerate(("red", "green"), 1):
            classify(client, new_photo(CLASSES[label][0]))
            until(lambda: len(chosen) == count)  # noqa: B023
        assert list(chosen.values()) == [True, False]


def copied(label: str, feature: int) -> AnsweredPhoto:
    """Return a photo that was answered with this class, and of which a challenger sees a copy."""
    shares = np.eye(len(CLASSES))[list(CLASSES).index(label)]
    data, features = new_photo(CLASSES[label][0]), np.eye(4, dtype=np.float32)[feature]
    manifest = palette_manifest("", {})
    return AnsweredPhoto(data, feature, manifest, 1, shares, shares, features, is_copied=True)


def test_a_challenger_that_answers_too_late_leaves_out_drawn_photos_as_well(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the drawn ones alone would decide, which are those with rare answers."""
    monkeypatch.setattr(reviewer, "RECENT_BYTES", 0)

    async def choose() -> list[bool]:
        settings = read_settings(bundle=queue, review_dir=queue, **MANY)
        work = Reviewer(settings, CollectorRegistry(), random=random.Random(0))
        for key, label in (("drawn-one", "white"), ("other-one", "red")):
            work.offer(copied(label, len(label) % 4), lambda _: key)  # noqa: B023
        assert list(work.sampler.kept) == ["drawn-one"]
        chosen = [work.choose_difference(key, 1.0) for key in ("drawn-one", "other-one")]
        await work.close()
        return chosen

    assert asyncio.run(choose()) == [False, False]


def test_half_of_the_smallest_budget_is_room_for_a_difference_after_a_day(queue: Path) -> None:
    now = 1_800_000_000.0

    async def choose() -> list[bool]:
        nonlocal now
        settings = read_settings(bundle=queue, review_dir=queue, review_per_day=1)
        work = Reviewer(settings, CollectorRegistry(), lambda: now, random.Random(0))
        chosen = []
        for day in range(2):
            work.offer(copied("red", day), lambda _: f"photo-of-day-{day}")  # noqa: B023
            chosen.append(work.choose_difference(f"photo-of-day-{day}", 1.0))
            now += review_sampler.DAY
        await work.close()
        return chosen

    assert asyncio.run(choose()) == [False, True]


OPENED: list[str] = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    """Note each file that this process opens for writing, by whatever way."""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        OPENED.append(os.fspath(arguments[0]) if not isinstance(arguments[0], int) else "")


def files_below(*folders: Path) -> dict[Path, int]:
    return {
        path: path.lstat().st_mtime_ns
        for folder in folders
        for path in folder.rglob("*")
        if not path.name.endswith(".pyc")
    }


@pytest.mark.parametrize("kept", [False, True])
def test_without_review_dir_no_photo_touches_the_disk(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The second run shows that the first would have been noticed."""
    sys.addaudithook(note_opened)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = {"review_dir": tmp_path / "queue"} if kept else {}
    with running(bundle, **MANY, **settings) as client:
        before = files_below(tmp_path, bundle)
        OPENED.clear()
        for colour, _ in CLASSES.values():
            key = classify(client, new_photo(colour))["id"]
            assert label(client, key, "white") == "accepted"
        big = [(f"{number}.jpg", with_place(RARE["white"])) for number in range(20)]
        assert client.post("/classify", files=form(*big)).status_code == 200
        if kept:
            assert waiting(client) is not None
            assert [name for name in OPENED if "photo" in name]
            assert files_below(tmp_path, bundle) != before
        else:
            assert client.get("/review").status_code == 404
            assert OPENED == []
            assert files_below(tmp_path, bundle) == before
