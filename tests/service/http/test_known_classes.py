"""Requests that say which classes their images may show, and how many of them show each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import taillift
from tests.support.palette import CLASSES, photo
from tests.support.serving import form, running

RED = CLASSES["red"][0]
# Between red and black, and between green and yellow.
DARK, LIME, DIM = (120, 10, 5), (130, 250, 5), (100, 5, 5)
BROKEN = photo(RED)[:40]


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    priors = tmp_path_factory.mktemp("priors") / "priors.json"
    pair = {label: int(label in ("green", "black")) for label in CLASSES}
    priors.write_text(json.dumps({"pair": pair}))
    with running(bundle, priors=priors) as client:
        yield client


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def ask(client: httpx.Client, *images: bytes, **params: Any) -> httpx.Response:
    files = form(*((f"{number}.png", image) for number, image in enumerate(images)))
    return client.post("/classify", params=params, files=files)


@pytest.mark.parametrize(
    "params", [{"classes": "black,green"}, {"classes": ["green", "black", "green"]}]
)
@pytest.mark.parametrize("colour", [RED, DARK, LIME])
def test_the_answer_is_among_them_as_by_a_file_of_priors_to_the_bit(
    client: httpx.Client, params: dict[str, Any], colour: tuple[int, int, int]
) -> None:
    (found,) = results(ask(client, photo(colour), **params))
    (by_prior,) = results(ask(client, photo(colour), prior="pair"))
    assert {one["label"] for one in found["predictions"]} == {"black", "green"}
    assert found["predictions"] == by_prior["predictions"][:2]
    assert (found["decision"], found["set"]) == (None, None)


def test_classes_multiply_the_prior(client: httpx.Client) -> None:
    query = {"classes": "red,black", "prior": "train"}
    (found,) = results(ask(client, photo(DARK), **query))
    (everything,) = results(ask(client, photo(DARK), prior="train", top_k=100))
    shares = {one["label"]: one["confidence"] for one in everything["predictions"]}
    total = shares["red"] + shares["black"]
    for one in found["predictions"]:
        assert one["confidence"] == pytest.approx(shares[one["label"]] / total, rel=1e-5)


def test_the_answer_names_the_classes(client: httpx.Client) -> None:
    assert ask(client, photo(RED), classes="white,red").json()["classes"] == ["white", "red"]
    assert ask(client, photo(RED)).json()["classes"] is None


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"classes": "gren,red"}, ["'gren'", 'did you mean "green"?']),
        ({"classes": "red"}, ["at least two"]),
        ({"classes": ["red", "red"]}, ["at least two"]),
        ({"classes": ""}, ["no class ''"]),
        ({"classes": "red,,blue"}, ["no class ''"]),
        ({"classes": "red,blue", "prior": "pair"}, ["none of them can occur"]),
        ({"classes": "x" * 5000}, ["no class 'xxx"]),
        ({"counts": "{"}, ["not JSON"]),
        ({"counts": "[" * 5_000}, ["JSON"]),
        ({"counts": "[1]"}, ["JSON object"]),
        ({"counts": '{"red": 1, "red": 1}'}, ["'red' appears twice"]),
        ({"counts": '{"gren": 1}'}, ['did you mean "green"?']),
        ({"counts": '{"red": 1.5}'}, ["'1.5' of 'red'"]),
        ({"counts": '{"red": true}'}, ["'True' of 'red'"]),
        ({"counts": '{"red": -1}'}, ["'-1' of 'red'"]),
        ({"counts": '{"red": "1±"}'}, ["'1±' of 'red'"]),
        ({"counts": '{"red": {"a": 1}}'}, ["of 'red'"]),
        ({"counts": "{}"}, ["0 images, and there are 2"]),
        ({"counts": '{"red": 3}'}, ["3 images, and there are 2"]),
        ({"counts": '{"red": "9±2"}'}, ["7 to 11 images, and there are 2"]),
        ({"counts": '{"red": 1, "other": "1±1"}'}, ["other needs an exact number"]),
    ],
)
def test_what_cannot_be_used_is_said(
    client: httpx.Client, params: dict[str, Any], words: list[str]
) -> None:
    answer = ask(client, photo(RED), photo(LIME), **params)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "urn:taillift:problem:classes"
    for word in words:
        assert word in answer.json()["detail"]


def test_counts_assign_the_images_together(client: httpx.Client) -> None:
    """Alone, all three are black; one must be red: the one that is most so."""
    images = [photo(DIM), photo(DARK), photo((0, 0, 0))]
    assert [one["predictions"][0]["label"] for one in results(ask(client, *images))] == 3 * [
        "black"
    ]
    found = results(ask(client, *images, counts='{"red": 1, "black": 2}'))
    assert [one["assigned"]["label"] for one in found] == ["black", "red", "black"]
    assert [one["assigned"]["instead"] for one in found] == ["red", "black", "red"]
    close, _, sure = (one["assigned"]["confidence"] for one in found)
    assert found[1]["assigned"]["confidence"] == close < sure < 1
    assert found[0]["assigned"]["group"] == "few"
    assert found[1]["assigned"]["group"] == "many"


def test_other_takes_what_looks_least_like_the_classes(client: httpx.Client) -> None:
    found = results(ask(client, photo(RED), photo(LIME), counts='{"red": 1, "other": 1}'))
    assert [one["assigned"]["label"] for one in found] == ["red", "other"]
    assert found[1]["assigned"]["group"] is None


def test_an_image_that_cannot_be_used_takes_the_place_that_is_left(client: httpx.Client) -> None:
    found = results(ask(client, BROKEN, photo(RED), counts='{"red": 1, "blue": 1}'))
    assert "error" in found[0]
    assert found[1]["assigned"]["label"] == "red"


def test_a_count_that_is_refused_is_not_counted(bundle: Path) -> None:
    with running(bundle) as client:
        ask(client, photo(RED), counts='{"red": 3}')
        live = client.get("/classes/red").json()["live"]
        assert live["predicted"] == 0


def test_python_answers_as_http_does(client: httpx.Client, bundle: Path) -> None:
    classifier = taillift.load(bundle)
    images = [photo(DIM), photo(DARK), photo(LIME)]
    counts: dict[str, int | str] = {"red": 1, "black": "1±1", "green": 1}
    served = results(ask(client, *images, counts=json.dumps(counts), classes="red,black,green"))
    known = classifier.classify(images, counts=counts, classes=["red", "black", "green"])
    for one, result in zip(served, known, strict=True):
        assert result.assigned is not None
        assert result.assigned._asdict() == one["assigned"]
        assert [ranked.label for ranked in result.ranking] == [
            prediction["label"] for prediction in one["predictions"]
        ]
    with pytest.raises(taillift.UserError, match='did you mean "red"'):
        classifier.classify(images, classes="rde,blue")
