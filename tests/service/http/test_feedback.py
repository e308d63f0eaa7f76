"""Labels that come back over HTTP: joined to their predictions, counted, kept and refused."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from taillift.models.errors import UserError
from taillift.service.feedback.label_book import LabelBook
from taillift.service.feedback.prediction_id import PredictionId, Signer
from taillift.service.http.feedback import MAX_BODY_BYTES, MAX_LABELS, Feedback
from tests.support.palette import CLASSES, new_photo
from tests.support.serving import form, running, sample, scrape, until

KEY = "the key that signs the ids"
LABELS = list(CLASSES)
WITHOUT, WITH_RIGHT = "a-key-of-the-camera", "a-key-of-the-labellers"


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    file = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    with running(bundle, feedback_file=file, feedback_key=KEY) as client:
        yield client


def classify(client: httpx.Client, *labels: str) -> list[str]:
    """Classify new photos of these colours, and return the ids of the predictions."""
    files = form(*((label, new_photo(CLASSES[label][0])) for label in labels))
    results = client.post("/classify", files=files).raise_for_status().json()["results"]
    return [result["id"] for result in results]


def send(client: httpx.Client, *labels: tuple[str, str | None]) -> list[str]:
    """Send labels by their ids, and return what became of each."""
    body = {"labels": [{"id": one, "label": label} for one, label in labels]}
    answer = client.post("/feedback", json=body).raise_for_status().json()
    statuses = [result["status"] for result in answer["results"]]
    assert answer["accepted"] == statuses.count("accepted")
    assert answer["replaced"] == statuses.count("replaced")
    return statuses


def sampled_ids(client: httpx.Client, label: str, count: int, probability: float) -> list[str]:
    """Return ids of answers with this label whose photos were chosen for labelling."""
    signer = Signer([KEY.encode()])
    prediction = replace(signer.read(classify(client, label)[0]), probability=probability)
    return [
        signer.sign(replace(prediction, nonce=number.to_bytes(4, "big"))) for number in range(count)
    ]


def test_a_label_finds_its_prediction(service: httpx.Client) -> None:
    one, two = classify(service, "red", "black")
    before = sample(service, "taillift_labels_total", group="few", kind="volunteered")
    assert send(service, (one, "red"), (two, "white")) == ["accepted", "accepted"]
    after = sample(service, "taillift_labels_total", group="few", kind="volunteered")
    assert after == before + 1


def test_an_id_says_what_was_answered(service: httpx.Client) -> None:
    prediction = Signer([KEY.encode()]).read(classify(service, "cyan")[0])
    assert LABELS[prediction.label] == "cyan"
    assert prediction.group == "medium"
    assert prediction.confidence > 0.9
    assert prediction.kind == "volunteered"


def test_the_last_label_counts_and_a_repeated_request_changes_nothing(
    service: httpx.Client,
) -> None:
    (one,) = classify(service, "green")
    assert send(service, (one, "green")) == ["accepted"]
    assert send(service, (one, "green")) == ["same"]
    assert send(service, (one, None)) == ["replaced"]
    assert send(service, (one, "green"), (one, "blue")) == ["replaced", "replaced"]


def test_what_cannot_be_taken_is_told_apart(service: httpx.Client) -> None:
    (one,) = classify(service, "red")
    changed = one[:20] + ("A" if one[20] != "A" else "B") + one[21:]
    old = Signer([KEY.encode()]).sign(PredictionId(0, 0, 0.5, "many", time=1_000_000_000))
    assert send(service, (one, "rot"), (changed, "red"), (old, "red"), ("", "red")) == [
        "unknown_label",
        "forged",
        "expired",
        "forged",
    ]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[]", "object"),
        (b"{}", "labels: Field required"),
        (b'{"labels": [{"id": "x"}]}', "labels.0.label"),
        (b'{"labels": [{"id": 3, "label": "red"}]}', "labels.0.id"),
        (b'{"labels": [], "more": 1}', "more"),
        (b'{"labels": [{"id": "x", "label": "red", "note": "%s"}]}' % (b"n" * 501), "note"),
        (b'{"labels": [%s]}' % b",".join([b'{"id":"x","label":null}'] * (MAX_LABELS + 1)), "1000"),
    ],
)
def test_a_body_of_another_kind_is_refused_in_one_line(
    service: httpx.Client, body: bytes, says: str
) -> None:
    answer = service.post("/feedback", content=body)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


MEMBERS = b",".join(b'"%x":0' % number for number in range(20_000))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{%s}" % MEMBERS, "more than 100 members"),
        (b'{"labels": [], %s}' % MEMBERS, "more than 100 members"),
        (b'{"labels": [{%s}]}' % MEMBERS, "labels.0: an object has more than 100 members"),
        (b'{"labels": [%s{}]}' % (b"{}," * 80_000), "labels.0.id: Field required"),
        (b'{"labels": [%s1]}' % (b"1," * 100_000), "labels.0: Input should be"),
        (b'{"labels": [%s{}]}' % (b'{"id":"a","label":7},' * 10_000), "labels.0.label"),
        (b'{"labels": [{"id": "a", "label": %s' % (b"[" * 200_000), "Invalid JSON"),
    ],
)
def test_however_much_of_a_body_is_wrong_one_mistake_is_told_and_few_are_noted(
    service: httpx.Client, body: bytes, says: str
) -> None:
    assert len(body) <= MAX_BODY_BYTES
    answer = service.post("/feedback", content=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:taillift:problem:malformed")
    assert says in answer.json()["detail"]
    with pytest.raises(ValidationError) as refused:
        Feedback.model_validate_json(body)
    assert refused.value.error_count() <= 100


def test_a_body_that_is_too_large_or_compressed_is_refused(service: httpx.Client) -> None:
    assert service.post("/feedback", content=b" " * (MAX_BODY_BYTES + 1)).status_code == 413
    chunks = (b" " * 1024 for _ in range(MAX_BODY_BYTES // 1024 + 1))
    assert service.post("/feedback", content=chunks).status_code == 413
    gzip = {"Content-Encoding": "gzip"}
    assert service.post("/feedback", content=b"{}", headers=gzip).status_code == 415


def test_a_label_finds_its_prediction_after_a_restart_and_at_another_replica(
    bundle: Path, tmp_path: Path
) -> None:
    file, other, keys = tmp_path / "a.sqlite", tmp_path / "b.sqlite", tmp_path / "keys.txt"
    with running(bundle, feedback_file=file, feedback_key=KEY) as client:
        one, two = classify(client, "red", "blue")
        assert send(client, (one, "red")) == ["accepted"]
    keys.write_text(f"# rotated\nanother key, which signs now\n{KEY}\n")
    with running(bundle, feedback_file=file, feedback_key_file=keys) as client:
        assert send(client, (one, "red"), (two, "blue")) == ["same", "accepted"]
        assert client.get("/classes").json()["labelled"]["labels"] == 2
    with running(bundle, feedback_file=other, feedback_key=KEY) as client:
        assert send(client, (one, "red")) == ["accepted"]
    with running(bundle) as client:
        assert send(client, (one, "red")) == ["forged"]


def test_labels_of_chosen_photos_show_the_live_accuracy(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    with running(bundle, feedback_file=file, feedback_key=KEY) as client:
        chosen = sampled_ids(client, "black", 9, 0.5)
        send(client, *((one, "black") for one in chosen))
        answer = client.get("/classes").json()
        assert answer["labelled"]["accuracy"] == "too few (9)"
        assert answer["groups"]["few"]["labelled"]["recall"] == "too few (9)"
        assert ("taillift_live_accuracy", frozenset({("bound", "low")})) not in scrape(client)

        often = sampled_ids(client, "red", 20, 0.02)
        send(
            client, *((one, "red" if number < 15 else "black") for number, one in enumerate(often))
        )
        send(client, *((one, "blue") for one in classify(client, *["red"] * 3)))
        answer = client.get("/classes").json()
        assert answer["labelled"]["labels"] == 32
        assert answer["labelled"]["sampled"] == 29
        accuracy = answer["labelled"]["accuracy"]
        assert accuracy["share"] == pytest.approx((9 * 2 + 15 * 50) / (9 * 2 + 20 * 50), rel=1e-3)
        assert accuracy["low"] < accuracy["share"] < accuracy["high"]
        red = client.get("/classes/red").json()["labelled"]
        assert red["recall"]["share"] == 1
        assert red["precision"]["share"] == pytest.approx(0.75)
        assert red["corrected"] == pytest.approx(8 / 23, rel=1e-5)
        black = client.get("/classes/black").json()["labelled"]
        assert (black["labels"], black["recall"]) == (14, "too few (5)")
        assert sample(client, "taillift_live_accuracy", bound="low") == pytest.approx(
            accuracy["low"], rel=1e-5
        )
        # Its confidence is nearly 1, and every fourth answer is wrong.
        evidence = answer["groups"]["many"]["labelled"]["evidence"]
        assert evidence > 0.2
        assert sample(client, "taillift_calibration_evidence", group="many") == pytest.approx(
            evidence, rel=1e-5
        )
        assert sample(client, "taillift_calibration_evidence", group="medium") < 1e-9


def test_labels_from_another_process_are_seen(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taillift.service.feedback.label_book.REFRESH_SECONDS", 0.05)
    file = tmp_path / "labels.sqlite"
    with (
        running(bundle, feedback_file=file, feedback_key=KEY) as client,
        running(bundle, feedback_file=file, feedback_key=KEY) as other,
    ):
        chosen = sampled_ids(client, "black", 12, 0.5)
        send(other, *((one, "black") for one in chosen))
        until(lambda: ("taillift_live_accuracy", frozenset({("bound", "low")})) in scrape(client))
        assert client.get("/classes").json()["labelled"]["labels"] == 12


def test_the_service_answers_while_the_file_is_busy(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    with (
        running(bundle, feedback_file=file, feedback_key=KEY) as client,
        ThreadPoolExecutor() as threads,
    ):
        (one,) = classify(client, "red")
        busy = sqlite3.connect(file, isolation_level=None)
        busy.execute("BEGIN IMMEDIATE")
        sent = threads.submit(send, client, (one, "red"))
        try:
            classify(client, "red", "blue")
            assert client.get("/metrics").status_code == 200
            assert not sent.done()
        finally:
            busy.execute("COMMIT")
            busy.close()
        assert sent.result() == ["accepted"]


def test_labels_that_cannot_be_kept_are_refused_and_photos_are_not(
    bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "labels.sqlite"
    with running(bundle, feedback_file=file, feedback_key=KEY) as client:
        (one,) = classify(client, "red")
        file.rename(tmp_path / "moved.sqlite")
        answer = client.post("/feedback", json={"labels": [{"id": one, "label": "red"}]})
        assert answer.status_code == 503
        assert str(file) in answer.json()["detail"]
        assert sample(client, "taillift_rejections_total", reason="labels_not_kept") == 1
        classify(client, "red")


def test_labels_that_are_kept_are_taken_even_if_they_cannot_be_counted_now(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise UserError("the disk cannot be read")

    with running(bundle) as client:
        (one,) = classify(client, "red")
        with monkeypatch.context() as patched:
            patched.setattr(LabelBook, "report", unreadable)
            assert send(client, (one, "red")) == ["accepted"]
        assert send(client, (one, "red")) == ["same"]
        assert client.get("/classes").json()["labelled"]["labels"] == 1


def test_more_labels_than_allowed_are_too_many(bundle: Path) -> None:
    with running(bundle, feedback_max=2) as client:
        ids = classify(client, "red", "blue", "green")
        labels = [(one, "red") for one in ids]
        assert send(client, *labels) == ["accepted", "accepted", "too_many"]
        assert send(client, (ids[0], "blue")) == ["replaced"]


def test_labels_need_a_key_with_the_right(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"{WITHOUT} the camera\n{WITH_RIGHT} the labellers feedback\n")

    def post(client: httpx.Client, key: str | None) -> httpx.Response:
        headers: dict[str, Any] = {} if key is None else {"X-API-Key": key}
        return client.post("/feedback", json={"labels": []}, headers=headers)

    with running(bundle, keys_file=file) as client:
        assert post(client, None).status_code == 401
        refused = post(client, WITHOUT)
        assert refused.status_code == 403
        assert "KEY NAME feedback" in refused.json()["detail"]
        assert refused.json()["type"] == "urn:taillift:problem:no-right"
        assert post(client, WITH_RIGHT).status_code == 200
        photo = new_photo(CLASSES["red"][0])
        for key in (WITHOUT, WITH_RIGHT):
            answer = client.post("/classify", content=photo, headers={"X-API-Key": key})
            assert answer.status_code == 200
