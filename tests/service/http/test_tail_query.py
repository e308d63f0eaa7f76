"""Requests that lean toward the rare classes, by a parameter or by the service's setting."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import taillift
from tests.support.palette import CLASSES, photo
from tests.support.serving import running

# Between red, of 300 training photos, and black, of 5.
DARK = (125, 0, 0)
COUNTS = {label: count for label, (_, count) in CLASSES.items()}


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle) as client:
        yield client


def ask(client: httpx.Client, path: str = "/classify", **params: Any) -> dict[str, Any]:
    answer = client.post(path, params=params, content=photo(DARK))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def shares(answer: dict[str, Any]) -> dict[str, float]:
    (result,) = answer["results"]
    rows = result["predictions"] if "predictions" in result else result["classes"]
    return {row["label"]: row["confidence"] for row in rows}


def without_id(answer: bytes) -> bytes:
    """Return an answer without the id of its prediction, which is another each time."""
    return re.sub(rb'"id":"[^"]*",', b"", answer)


@pytest.mark.parametrize("path", ["/classify", "/confidence"])
@pytest.mark.parametrize("prior", ["uniform", "train"])
@pytest.mark.parametrize("tail", [0.25, 1])
def test_odds_grow_by_the_ratio_of_the_training_images(
    client: httpx.Client, path: str, prior: str, tail: float
) -> None:
    query = {"ensemble": "full", "prior": prior} | ({"top_k": 7} if path == "/classify" else {})
    before, after = (
        shares(ask(client, path, **query)),
        shares(ask(client, path, tail=tail, **query)),
    )
    growth = (after["black"] / after["red"]) / (before["black"] / before["red"])
    assert growth == pytest.approx((COUNTS["red"] / COUNTS["black"]) ** tail, rel=1e-3)


def test_an_answer_names_its_tail_and_takes_no_decision(client: httpx.Client) -> None:
    answer = ask(client, tail=0.25)
    assert answer["tail"] == 0.25
    assert answer["results"][0]["decision"] is None


@pytest.mark.parametrize("path", ["/classify", "/confidence"])
def test_no_tail_is_the_answer_without_one_to_the_byte(client: httpx.Client, path: str) -> None:
    plain, zero = (
        without_id(client.post(path, params=params, content=photo(DARK)).content)
        for params in ({}, {"tail": "0"})
    )
    assert plain == zero
    assert b"tail" not in plain


def test_classes_that_are_named_lean_among_themselves(client: httpx.Client) -> None:
    everything = shares(ask(client, tail=0.5, top_k=7))
    two = shares(ask(client, tail=0.5, classes="red,black"))
    total = everything["red"] + everything["black"]
    assert two["black"] == pytest.approx(everything["black"] / total, rel=1e-4)


@pytest.mark.parametrize("tail", ["1.01", "-0.1", "nan", "inf"])
def test_a_tail_out_of_range_is_refused_with_the_range(client: httpx.Client, tail: str) -> None:
    answer = client.post("/classify", params={"tail": tail}, content=photo(DARK))
    assert answer.status_code == 422
    assert "is not from 0 to 1" in answer.json()["detail"]


def test_the_setting_is_for_requests_that_do_not_say(bundle: Path) -> None:
    with running(bundle, tail=0.25) as leaning:
        assert leaning.get("/model").json()["usual_tail"] == 0.25
        usual, asked = ask(leaning), ask(leaning, tail=0.25)
        assert usual["tail"] == 0.25
        assert shares(usual) == shares(asked)
        assert "tail" not in ask(leaning, tail=0)


def test_python_and_the_service_lean_alike(client: httpx.Client, bundle: Path) -> None:
    result = taillift.load(bundle).classify(photo(DARK), tail=0.75, top_k=7)
    served = shares(ask(client, tail=0.75, top_k=7))
    found = [ranked.confidence for ranked in result.ranking]
    np.testing.assert_allclose(found, list(served.values()), rtol=1e-5)
    assert result.decision is None
