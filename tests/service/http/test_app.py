"""Tests of answers that cost the same however often they are asked for."""

import httpx

from tests.support.palette import CLASSES, photo


def test_the_description_is_the_same_each_time(client: httpx.Client) -> None:
    first, second = client.get("/openapi.json"), client.get("/openapi.json")
    assert first.headers["content-type"] == "application/json"
    assert first.content == second.content
    assert "/classify" in first.json()["paths"]


def test_a_label_that_is_named_often_is_given_once(client: httpx.Client) -> None:
    query = {"classes": ["red", "blue"] + ["red"] * 2_000}
    answer = client.post("/confidence", params=query, content=photo(CLASSES["red"][0]))
    (result,) = answer.json()["results"]
    assert [entry["label"] for entry in result["classes"]] == ["red", "blue"]
