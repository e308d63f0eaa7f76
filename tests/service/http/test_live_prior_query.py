"""Requests that ask for the prior of the live shares, and that name shares of the groups."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import taillift
from taillift.models.bundle.version_store import VersionStore
from taillift.models.errors import UserError
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support.palette import CLASSES, new_photo, photo, write_bundle, write_confusion
from tests.support.serving import form, running, scrape, serving, until

LIVE = {"live_prior": True, "live_prior_images": 100}
# Between red, a class of the group many, and black, one of few.
DARK = (125, 0, 0)
KEY = "k" * 40


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The palette bundle with held-out photos, in which it was always right."""
    bundle = write_bundle(tmp_path_factory.mktemp("live") / "palette")
    write_confusion(bundle, {})
    return bundle


@pytest.fixture(scope="module")
def client(known: Path) -> Iterator[httpx.Client]:
    """A client of a service that has answered many photos of rare classes."""
    with running(known, **LIVE) as client:
        assert ask(client, prior="live")["live_prior"] == {
            "prior": "many:0.428571,medium:0.285714,few:0.285714",
            "shares": {"many": 0.428571, "medium": 0.285714, "few": 0.285714},
            "as_of": None,
            "frozen": None,
        }
        send(client, 112)
        yield client


def send(client: httpx.Client, photos: int) -> None:
    """Let the service answer new photos, six of seven of the classes white and black."""
    colours = [CLASSES[label][0] for label in ("white", "black")]
    every = [colour for colour, _ in CLASSES.values()]
    random = np.random.default_rng(0)
    for _ in range(photos // 16):
        several = [
            (colours if random.random() < 6 / 7 else every)[random.integers(2)] for _ in range(16)
        ]
        files = form(*((f"{n}.png", new_photo(colour)) for n, colour in enumerate(several)))
        assert client.post("/classify", files=files).status_code == 200


def ask(client: httpx.Client, path: str = "/classify", **params: Any) -> dict[str, Any]:
    headers = {"X-Taillift-Count": "no"}
    answer = client.post(path, params=params, content=photo(DARK), headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def odds(answer: dict[str, Any]) -> float:
    """Return how many times likelier black is than red."""
    shares = {row["label"]: row["confidence"] for row in answer["results"][0]["predictions"]}
    return float(shares["black"] / shares["red"])


def test_the_answer_names_and_dates_its_prior_and_is_repeated_by_it(client: httpx.Client) -> None:
    answer = ask(client, prior="live", top_k=7)
    live = answer["live_prior"]
    assert (answer["prior"], live["frozen"]) == ("live", None)
    shares = live["shares"]
    assert shares["few"] > 0.6 > shares["many"]
    age = datetime.now(UTC) - datetime.fromisoformat(live["as_of"])
    assert 0 <= age.total_seconds() < 600
    growth = odds(answer) / odds(ask(client, top_k=7))
    assert growth == pytest.approx((shares["few"] / 2) / (shares["many"] / 3), rel=1e-3)

    again = ask(client, prior=live["prior"], top_k=7)
    assert again["prior"] == live["prior"]
    assert "live_prior" not in again
    for one in (answer, again):
        del one["results"][0]["id"]
    assert again["results"] == answer["results"]
    assert answer["results"][0]["decision"] is None


def test_the_same_request_has_the_same_bytes(client: httpx.Client) -> None:
    headers = {"X-Taillift-Count": "no"}
    one, other = (
        client.post("/classify?prior=live", content=photo(DARK), headers=headers).content
        for _ in range(2)
    )
    assert re.sub(rb'"id":"[^"]*"', b"", one) == re.sub(rb'"id":"[^"]*"', b"", other)


def test_it_holds_wherever_a_prior_does(client: httpx.Client, known: Path) -> None:
    live = ask(client, prior="live")["live_prior"]
    named = ask(client, "/confidence", prior=live["prior"])
    assert ask(client, "/confidence", prior="live")["results"] == named["results"]
    two: dict[str, Any] = {"classes": "red,black", "tail": 0.5}
    odds_of_two = odds(ask(client, prior=live["prior"], **two))
    assert odds(ask(client, prior="live", **two)) == odds_of_two != odds(ask(client, **two))

    image = {"name": "image", "datatype": "UINT8", "shape": [1, 16, 20, 3]}
    image["data"] = np.full((16, 20, 3), DARK).ravel().tolist()
    document = {"inputs": [image], "parameters": {"prior": "live"}}
    answer = client.post("/v2/models/palette/infer", json=document).json()
    as_of = datetime.fromisoformat(live["as_of"]).isoformat()
    assert answer["parameters"] == {"prior": live["prior"], "prior_as_of": as_of}

    result = taillift.load(known).classify(photo(DARK), prior=live["prior"], top_k=7)
    in_python = {one.label: one.confidence for one in result.ranking}
    over_http = odds(ask(client, prior="live", top_k=7))
    assert in_python["black"] / in_python["red"] == pytest.approx(over_http, rel=1e-4)


def test_the_operator_sees_it(client: httpx.Client) -> None:
    live = ask(client, prior="live")["live_prior"]
    model = client.get("/model").json()
    assert (model["priors"], model["live_prior"]) == (["uniform", "train", "live"], live)
    samples = scrape(client)
    for group, share in live["shares"].items():
        key = ("taillift_live_prior_share", frozenset({("group", group)}))
        assert samples[key] == pytest.approx(share)
    assert samples["taillift_live_prior_frozen", frozenset()] == 0


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("lice", "did you mean `live`?"),
        ("many:1,few:1", "give each group of the bundle a weight of 0 or more, such as many:0.33"),
        ("many:1,medium:1,few:x", "'many:1,medium:1,few:x'"),
        ("many:1,medium:1,few:-1", "0 or more"),
        ("many:1,medium:1,few:nan", "0 or more"),
        ("many:1,medium:1,few:inf", "0 or more"),
        ("many:1,medium:1,few:1,few:1", "0 or more"),
        ("many:1,medium:1,rare:1", "0 or more"),
        ("many:0,medium:0,few:0", "0 or more"),
        (":" * 5_000, "'::::"),
    ],
)
def test_what_is_not_a_prior_is_said(client: httpx.Client, prior: str, words: str) -> None:
    for path in ("/classify", "/confidence"):
        answer = client.post(path, params={"prior": prior}, content=photo(DARK))
        assert answer.status_code == 400
        assert words in answer.json()["detail"]
        assert len(answer.json()["detail"]) < 300


def test_a_group_of_weight_0_cannot_occur(client: httpx.Client) -> None:
    answer = ask(client, prior="few:0,medium:1,many:1", top_k=7)
    shares = {row["label"]: row["confidence"] for row in answer["results"][0]["predictions"]}
    assert shares["black"] == shares["white"] == 0 < shares["red"]


def test_without_the_setting_there_is_none(known: Path) -> None:
    with running(known) as client:
        answer = client.post("/classify?prior=live", content=photo(DARK))
        assert answer.status_code == 400
        assert "started with the setting live_prior" in answer.json()["detail"]
        assert "live_prior" not in client.get("/model").json()


def test_it_outlives_a_restart_and_is_reset_by_an_admin(known: Path, tmp_path: Path) -> None:
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(known))
    keys = tmp_path / "admin.keys"
    keys.write_text(f"{KEY} ann\n")
    settings = read_settings(
        store=store.folder, port=0, admin_keys_file=keys, tail_file=tmp_path / "tail.db", **LIVE
    )
    with serving(Engine(settings)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        send(client, 128)
        before = ask(client, prior="live")["live_prior"]
        assert before["shares"]["few"] > 0.6
    with serving(Engine(settings)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/model").json()["live_prior"] == before
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/admin/live-prior/reset").status_code == 401
        answer = client.post("/admin/live-prior/reset", headers=headers)
        assert (answer.status_code, answer.json()["as_of"]) == (200, None)
    with serving(Engine(settings)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/model").json()["live_prior"]["as_of"] is None
        assert ask(client, prior="live")["live_prior"]["shares"]["few"] == 0.285714


def test_a_bundle_without_held_out_photos_is_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match="0 held-out photos of the group 'many'"):
        Engine(read_settings(bundle=bundle, **LIVE))


def test_a_prior_of_the_file_may_not_take_its_name(known: Path, tmp_path: Path) -> None:
    priors = tmp_path / "priors.json"
    weights = ", ".join(f'"{label}": 1' for label in CLASSES)
    priors.write_text(f'{{"live": {{{weights}}}}}')
    with pytest.raises(UserError, match=r"'live' .* the name is taken"):
        Engine(read_settings(bundle=known, priors=priors, **LIVE))
    Engine(read_settings(bundle=known, priors=priors)).labels.close()
