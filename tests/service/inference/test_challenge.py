"""A challenger in the shadow of the champion, as a canary, and what is known of the two."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from taillift.models.bundle.version_store import Canary, Challenger, Shadow, VersionStore
from taillift.service.inference.agreement import Agreement, Answer, WeightedShare
from taillift.service.inference.challenge import SHADOW_VIEWS, place_of
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support.palette import (
    CLASSES,
    SLOW,
    new_photo,
    palette_manifest,
    photo,
    write_bundle,
)
from tests.support.serving import sample, serving, top_labels, until

COLOURS = {label: colour for label, (colour, _) in CLASSES.items()}
KEY = "an-admin-key-of-the-tests"
ADMIN = {"X-API-Key": KEY}


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> VersionStore:
    """A store with champion 1, and 2, which exchanges red and green, and white and black."""
    exchanged = {"red": "green", "green": "red", "white": "black", "black": "white"}
    classes = tuple(
        info.model_copy(update={"label": exchanged.get(info.label, info.label)})
        for info in palette_manifest("", {}).classes
    )
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write_bundle(tmp_path / "exchanged", classes=classes))
    return store


@pytest.fixture
def engine(store: VersionStore, tmp_path: Path) -> Engine:
    keys = tmp_path / "admin.keys"
    keys.write_text(f"{KEY} ann\n")
    return Engine(read_settings(store=store.folder, port=0, admin_keys_file=keys))


@pytest.fixture
def client(engine: Engine) -> Iterator[httpx.Client]:
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def challenge(client: httpx.Client, engine: Engine, **plan: object) -> None:
    """Begin a comparison with version 2, and wait until it is loaded."""
    answer = client.put("/admin/roles/challenger", json={"version": 2, **plan}, headers=ADMIN)
    assert answer.status_code == 202, answer.text
    wanted = Challenger.model_validate({"version": 2, **plan})
    until(lambda: engine.challenge is not None and engine.challenge.plan == wanted)


def report(client: httpx.Client) -> Any:
    answer = client.get("/admin/challenger", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def compared(client: httpx.Client) -> float:
    return sum(
        sample(client, "taillift_shadow_images_total", outcome=outcome)
        for outcome in ("same", "different")
    )


def send(client: httpx.Client, label: str, **headers: str) -> httpx.Response:
    answer = client.post("/classify", content=new_photo(COLOURS[label]), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def test_copies_are_compared_and_nobody_sees_the_challengers_answers(
    client: httpx.Client, engine: Engine
) -> None:
    assert client.get("/admin/challenger", headers=ADMIN).status_code == 404
    challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
    ids = {}
    for number, label in enumerate(("red", "blue", "black", "cyan"), 1):
        answer = send(client, label, **{"X-Request-Id": f"photo-{label}"})
        assert answer.headers["X-Taillift-Version"] == "1"
        assert top_labels(answer) == [label]
        ids[label] = answer.json()["results"][0]["id"]
        until(lambda: compared(client) == number)  # noqa: B023
    found = report(client)
    assert found["agreement"]["images"] == 4
    assert found["agreement"]["share"] == 0.5
    assert found["by_champion"]["few"]["share"] == 0
    assert found["by_champion"]["medium"]["share"] == 1
    assert found["differences"] == [
        {
            "request_id": f"photo-{label}",
            "image": 0,
            "champion": label,
            "challenger": other,
            "id": ids[label],
        }
        for label, other in (("black", "white"), ("red", "green"))
    ]
    assert found["rare"][0] == {"label": "white", "champion": 0.0, "challenger": 0.25}
    # The tail counts what was answered, and not the copies.
    assert client.get("/classes").json()["window"]["predictions"] == 4
    assert sample(client, "taillift_agreement", group="few", bound="estimate") == 0
    send(client, "red", **{"X-Taillift-Count": "no"})
    assert compared(client) == 4


def test_rare_images_are_copied_and_of_the_others_a_share(
    client: httpx.Client, engine: Engine
) -> None:
    challenge(client, engine, shadow={"share": 0.0, "few": 1.0})
    for _ in range(5):
        send(client, "red")
    send(client, "black")
    until(lambda: compared(client) == 1)
    assert report(client)["agreement"]["images"] == 1


def test_copies_wait_for_requests_and_are_dropped_beyond_the_buffer(
    client: httpx.Client, engine: Engine
) -> None:
    challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
    with ThreadPoolExecutor(1) as pool:
        # While a request is in work, no copy is answered.
        slow = pool.submit(client.post, "/classify?ensemble=off", content=photo(SLOW))
        until(lambda: engine.workshop.admission.images == 1)
        for _ in range(SHADOW_VIEWS // 5 + 3):
            client.post("/classify?ensemble=full", content=new_photo(COLOURS["blue"]))
        assert slow.result().status_code == 200
    until(lambda: compared(client) >= 1)
    dropped = sample(client, "taillift_shadow_dropped_total", reason="full")
    until(lambda: compared(client) + dropped == SHADOW_VIEWS // 5 + 4)


def test_a_canary_gives_a_key_the_same_version_and_a_larger_share_only_adds(
    client: httpx.Client, engine: Engine
) -> None:
    keys = [f"customer {number}" for number in range(40)]

    def versions() -> dict[str, str]:
        return {
            key: send(client, "red", **{"X-Canary-Key": key}).headers["X-Taillift-Version"]
            for key in keys
        }

    challenge(client, engine, canary={"share": 0.3})
    first = versions()
    assert 1 < list(first.values()).count("2") < 30
    assert versions() == first
    challenge(client, engine, canary={"share": 0.7})
    second = versions()
    assert all(second[key] == "2" for key in keys if first[key] == "2")
    assert list(second.values()).count("2") > list(first.values()).count("2")
    chosen = next(key for key in keys if second[key] == "2")
    answer = send(client, "red", **{"X-Canary-Key": chosen})
    assert top_labels(answer) == ["green"]
    assert answer.json()["model"]["number"] == 2
    # A pin counts more.
    pinned = client.post(
        "/classify?version=champion",
        content=photo(COLOURS["red"]),
        headers={"X-Canary-Key": chosen},
    )
    assert pinned.headers["X-Taillift-Version"] == "1"


def test_without_a_key_a_photo_always_gets_the_same_version(
    client: httpx.Client, engine: Engine
) -> None:
    challenge(client, engine, canary={"share": 0.5})
    photos = [new_photo(COLOURS["red"]) for _ in range(20)]

    def versions(path: str) -> list[str]:
        answers = [client.post(path, content=one) for one in photos]
        return [answer.headers["X-Taillift-Version"] for answer in answers]

    first = versions("/classify")
    assert set(first) == {"1", "2"}
    assert versions("/classify") == first
    assert versions("/confidence") == first


def test_a_challenger_leaves_and_another_plan_goes_on(
    client: httpx.Client, engine: Engine, store: VersionStore
) -> None:
    challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
    send(client, "red")
    until(lambda: compared(client) == 1)
    challenge(client, engine, shadow={"share": 0.5, "few": 1.0})
    assert report(client)["agreement"]["images"] == 1
    assert client.delete("/admin/roles/challenger", headers=ADMIN).status_code == 202
    until(lambda: engine.challenge is None and not engine.draining)
    assert client.get("/admin/challenger", headers=ADMIN).status_code == 404
    assert store.roles().challenger is None


def test_a_challenger_that_is_promoted_answers_at_once(
    client: httpx.Client, engine: Engine, store: VersionStore
) -> None:
    challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
    resident = engine.challenger
    put = client.put("/admin/roles/champion", json={"version": 2}, headers=ADMIN)
    assert put.status_code == 202
    until(lambda: engine.champion is resident)
    assert top_labels(send(client, "red")) == ["green"]
    until(lambda: engine.challenge is None)
    roles = store.roles()
    assert (roles.champion, roles.previous, roles.challenger) == (2, 1, None)


def test_the_command_begins_a_comparison_that_the_service_notices(
    client: httpx.Client, engine: Engine, store: VersionStore
) -> None:
    assert client.get("/readyz").status_code == 200
    plan = Challenger(version=2, canary=Canary(share=1.0))
    store.challenge(plan)
    until(lambda: engine.challenge is not None)
    assert top_labels(send(client, "red")) == ["green"]
    store.challenge(Challenger(version=2, shadow=Shadow()))
    until(lambda: engine.challenge is not None and engine.challenge.plan.canary is None)
    assert top_labels(send(client, "red")) == ["red"]


def test_a_tenth_of_the_keys_is_about_a_tenth() -> None:
    places = [place_of("salt", f"key {number}") for number in range(1000)]
    assert 70 <= sum(place < 0.1 for place in places) <= 130
    assert places != [place_of("pepper", f"key {number}") for number in range(1000)]


def test_agreement_among_chosen_images_estimates_that_of_all() -> None:
    """90 % of the common and 50 % of the rare images agree: weighted, it is 88 %."""
    random = np.random.default_rng(0)
    covered, estimates = 0, []
    for _ in range(200):
        share = WeightedShare()
        for _ in range(2000):
            rare = random.random() < 0.05
            probability = 1.0 if rare else 0.1
            if random.random() < probability:
                share.add(random.random() < (0.5 if rare else 0.9), 1 / probability)
        low, high = share.interval
        covered += low <= 0.88 <= high
        estimates.append(share.estimate or 0.0)
    assert abs(np.mean(estimates) - 0.88) < 0.01
    assert covered >= 180


def test_nothing_compared_is_no_share() -> None:
    classes = palette_manifest("", {}).classes
    agreement = Agreement(classes, classes)
    assert agreement.overall.estimate is None
    assert agreement.overall.interval == (0.0, 1.0)
    assert agreement.add(Answer(6, 0.9, 1), Answer(6, 0.8, 5), 0.5, None, 0) is None
    assert agreement.rare() == [("white", 0.0, 0.0), ("black", 1.0, 1.0)]


def label(client: httpx.Client, *labels: tuple[str, str | None]) -> None:
    """Send labels by the ids of the answers."""
    body = {"labels": [{"id": one, "label": label} for one, label in labels]}
    answer = client.post("/feedback", json=body)
    assert answer.status_code == 200, answer.text
    assert {result["status"] for result in answer.json()["results"]} <= {"accepted", "replaced"}


def verdict(client: httpx.Client, labels: str = "chosen") -> Any:
    answer = client.get("/admin/challenger", params={"labels": labels}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()["verdict"]


def wins_and_losses(client: httpx.Client, labels: str = "chosen") -> dict[str, tuple[int, int]]:
    """Return the wins and losses over all, and in the groups that have any."""
    found = verdict(client, labels)
    tallies = {"all": found["overall"], **found["groups"]}
    rows = {name: (tally["wins"], tally["losses"]) for name, tally in tallies.items()}
    return {name: row for name, row in rows.items() if any(row) or name == "all"}


def different(client: httpx.Client, *labels: str) -> list[str]:
    """Send photos of these colours, wait for the challenger, and return the ids of the answers."""
    before = compared(client)
    ids = [send(client, label).json()["results"][0]["id"] for label in labels]
    until(lambda: compared(client) == before + len(labels))
    return ids


def test_labels_of_photos_that_nobody_chose_count_for_no_verdict_unless_asked_for(
    client: httpx.Client, engine: Engine
) -> None:
    """People send back what was wrong: an equal challenger would seem to be better."""
    challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
    red, black, blue = different(client, "red", "black", "blue")
    # What the challenger says, what the champion says, and a photo on which they agree.
    label(client, (red, "green"), (black, "black"), (blue, "cyan"))
    assert wins_and_losses(client) == {"all": (0, 0)}
    assert verdict(client)["labels"] == 0
    assert wins_and_losses(client, "all") == {"all": (1, 1), "many": (1, 0), "few": (0, 1)}
    assert verdict(client, "all")["labels"] == 2
    # The last label counts, and one of neither class is a label without a winner.
    label(client, (red, "red"), (black, None))
    assert wins_and_losses(client, "all") == {"all": (0, 1), "many": (0, 1)}
    assert verdict(client, "all")["labels"] == 2
    assert verdict(client, "all")["decision"] == "undecided"


def test_labels_of_chosen_photos_decide_also_after_a_restart_and_for_these_two_alone(
    store: VersionStore, tmp_path: Path
) -> None:
    keys = tmp_path / "admin.keys"
    keys.write_text(f"{KEY} ann\n")
    store.add(write_bundle(tmp_path / "third", classes=store.version(2).manifest.classes[::-1]))
    settings = read_settings(
        store=store.folder,
        port=0,
        admin_keys_file=keys,
        review_dir=tmp_path / "queue",
        review_per_day=1_000,
        feedback_file=tmp_path / "labels.sqlite",
        feedback_key="the key that signs the ids",
    )
    engine = Engine(settings)
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        challenge(client, engine, shadow={"share": 1.0, "few": 1.0})
        red, white, green = different(client, "red", "white", "green")
        # The queue offers what differs; a photo that looks like one of it is not chosen.
        (alike,) = different(client, "red")
        label(client, (red, "green"), (alike, "green"))
        found = {"all": (1, 0), "many": (1, 0)}
        until(lambda: wins_and_losses(client) == found)
        until(
            lambda: (
                sample(client, "taillift_challenger_labels", group="all", right="challenger") == 1
            )
        )
        evidence = verdict(client)["overall"]["evidence"]
        assert evidence == pytest.approx(np.log10(1.5), abs=1e-3)
        assert sample(
            client, "taillift_challenger_evidence", group="many", right="challenger"
        ) == pytest.approx(evidence)
    engine = Engine(settings)
    with serving(engine) as client:
        until(lambda: engine.challenge is not None)
        assert wins_and_losses(client) == found
        label(client, (white, "black"), (green, "green"))
        assert wins_and_losses(client) == {"all": (2, 1), "many": (1, 1), "few": (1, 0)}
        # Another challenger begins with nothing.
        body = {"version": 3, "shadow": {"share": 1.0, "few": 1.0}}
        client.put("/admin/roles/challenger", json=body, headers=ADMIN)
        until(lambda: engine.challenger is not None and engine.challenger.number == 3)
        until(lambda: engine.challenge is not None)
        assert wins_and_losses(client, "all") == {"all": (0, 0)}


def test_a_challengers_new_class_is_a_label(
    client: httpx.Client, engine: Engine, store: VersionStore, tmp_path: Path
) -> None:
    classes = tuple(
        info.model_copy(update={"label": "pink"}) if info.label == "red" else info
        for info in palette_manifest("", {}).classes
    )
    number = store.add(write_bundle(tmp_path / "pink", classes=classes), classes_change=True)
    store.challenge(Challenger(version=number, shadow=Shadow(share=1.0, few=1.0)))
    until(lambda: engine.challenge is not None)
    (red,) = different(client, "red")
    label(client, (red, "pink"))
    assert wins_and_losses(client, "all") == {"all": (1, 0), "many": (1, 0)}
